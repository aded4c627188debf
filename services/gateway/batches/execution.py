"""Running the requests of a batch: a few at a time, tried again while a service is overloaded, recorded as they end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import orjson

from services.gateway.batches.config import BatchesConfig
from services.gateway.batches.execute import Execute
from services.gateway.batches.patience import LONGEST_PAUSE, Stop, patiently, pauses, single, unless
from services.gateway.batches.rows import MAX_COUNT, Lease, request_id_of
from services.gateway.batches.steps import Line, Outcome, Steps
from services.gateway.errors import error_body, status_of
from stack_client.errors import DeadlineExceededError, InternalError, StackError

logger = logging.getLogger(__name__)

OVERLOADED = (429, 503)
"""Tried again for as long as the batch lasts."""
TIMED_OUT = 504
"""Tried again a few times."""
TOLD_SECONDS = 1.0
TOLD_PARTS = 100
"""Watchers hear of progress after so many seconds, or each time so large a part of the batch is done."""


class Ended:
    """What has ended and waits to be recorded.

    Args:
        places: Lines at most that run, wait for a slot or a service, or wait to be recorded.
    """

    def __init__(self, *, places: int) -> None:
        self.queue: asyncio.Queue[Outcome | None] = asyncio.Queue()
        """Never full, so that a line that has ended is not lost to a stop; None comes last."""
        self.places = asyncio.Semaphore(places)
        """Taken with a line, released when it is recorded."""


class Execution:
    """Runs requests of all batches of this process.

    Args:
        steps: Keeps what comes of them.
        execute: Runs one.
        config: How many at once, and pauses.
    """

    def __init__(self, steps: Steps, *, execute: Execute, config: BatchesConfig) -> None:
        self._steps = steps
        self._execute = execute
        self._config = config
        self._slots = asyncio.Semaphore(config.concurrency)

    async def run(self, lease: Lease, *, total: int, stop: Stop) -> bool:
        """Run what has not run; whether all has. What ended before a stop is recorded.

        Raises:
            LeaseLostError: If another process took the batch.
            StackError: If waiting cannot help.
        """
        ended = Ended(places=2 * self._config.concurrency)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._record(lease, ended, total=total))
                finished = await unless(stop.asked, self._all(lease, ended))
                ended.queue.put_nowait(None)
        except ExceptionGroup as failures:
            raise single(failures) from None
        return bool(finished)

    async def _all(self, lease: Lease, ended: "Ended") -> bool:
        async with asyncio.TaskGroup() as group:
            async for line in self._pending(lease):
                await ended.places.acquire()
                group.create_task(self._one(lease, line, ended))
        return True

    async def _pending(self, lease: Lease) -> AsyncIterator[Line]:
        after = -1
        while True:
            found = await patiently(
                partial(self._steps.pending, lease, after=after, limit=self._config.concurrency),
                retry_seconds=self._config.retry_seconds,
            )
            if not found:
                return
            for line in found:
                yield line
            after = found[-1].place

    async def _one(self, lease: Lease, line: Line, ended: "Ended") -> None:
        timed_out = 0
        for pause in pauses(self._config.retry_seconds):
            async with self._slots:
                outcome, retry_after = await self._call(lease, line)
            late = outcome.status_code == TIMED_OUT
            timed_out += late
            if outcome.status_code not in OVERLOADED and not (late and timed_out < self._config.timeout_tries):
                break
            await asyncio.sleep(max(pause, min(retry_after, LONGEST_PAUSE)))
        ended.queue.put_nowait(outcome)

    async def _call(self, lease: Lease, line: Line) -> tuple[Outcome, float]:
        """What comes of one try, and the seconds after which the service asked to be tried again."""
        request_id = request_id_of(lease.batch_id, line.place)
        body, endpoint = orjson.loads(line.body), lease.batch["endpoint"]
        error: StackError
        try:
            async with asyncio.timeout(self._config.request_seconds):
                status, answer = await self._execute(endpoint, body, tenant=lease.tenant, request_id=request_id)
            return _outcome(line, status, answer), 0.0
        except StackError as raised:
            error = raised
        except TimeoutError:
            most = self._config.request_seconds
            error = DeadlineExceededError(f"the request took longer than {most:g} seconds; ask for less in one")
        except Exception:  # a bug over one request must not end the batch, nor repeat for ever
            logger.exception("a request of a batch met a bug", extra={"batch": lease.batch_id, "line": line.place + 1})
            error = InternalError("the request met a fault of the server; its log says which")
        status = status_of(error)
        return _outcome(line, status, error_body(error, status=status)), error.retry_after or 0.0

    async def _record(self, lease: Lease, ended: "Ended", *, total: int) -> None:
        """Keep outcomes, all that have come meanwhile in one transaction."""
        loop = asyncio.get_running_loop()
        quiet, silent_since, closed = 0, loop.time(), False
        while not closed:
            batch = [await ended.queue.get()]
            while not ended.queue.empty():
                batch.append(ended.queue.get_nowait())
            closed = batch[-1] is None
            outcomes = [outcome for outcome in batch if outcome is not None]
            if not outcomes:
                return
            quiet += len(outcomes)
            told = quiet * TOLD_PARTS >= total or loop.time() - silent_since >= TOLD_SECONDS
            await patiently(
                partial(self._steps.record, lease, outcomes, told=told),
                retry_seconds=self._config.retry_seconds,
            )
            for _ in outcomes:
                ended.places.release()
            if told:
                quiet, silent_since = 0, loop.time()


def _outcome(line: Line, status: int, answer: Mapping[str, Any]) -> Outcome:
    return Outcome(place=line.place, status_code=status, answer=orjson.dumps(answer), tokens=tokens_of(answer))


def tokens_of(answer: Mapping[str, Any]) -> dict[str, int]:
    """The tokens that an answer of any endpoint says were used, by column."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return {}
    prompt = _number(usage, "prompt_tokens") or _number(usage, "input_tokens")
    completion = _number(usage, "completion_tokens") or _number(usage, "output_tokens")
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": _number(usage, "total_tokens") or prompt + completion,
        "cached_tokens": _number(details, "cached_tokens") if isinstance(details, dict) else 0,
    }


def _number(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return min(value, MAX_COUNT) if isinstance(value, int) and value > 0 else 0

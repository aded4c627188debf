"""What is done with one batch, from its file to its files. Each stage can be left at any step and gone on with."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from llamastack import v1
from services.gateway.batches.checks import Checker, Read
from services.gateway.batches.config import BatchesConfig
from services.gateway.batches.execute import Execute, KnowsModel
from services.gateway.batches.execution import Execution
from services.gateway.batches.patience import Stop, patiently, unless
from services.gateway.batches.rows import BatchRow, Lease
from services.gateway.batches.steps import Steps
from services.gateway.batches.transfer import Transfer
from stack_client.errors import NotFoundError, StackError

logger = logging.getLogger(__name__)

T = TypeVar("T")

PIECE = 1 << 20
"""Bytes of a file that are looked at together, in a thread."""


class Worker:
    """Works on batches.

    Args:
        steps: Keeps what is done.
        transfer: Files.
        execute: Runs one request.
        knows_model: Asked of each model that a file names; None: requests that name a wrong one fail by themselves.
        config: Bounds.
    """

    def __init__(
        self,
        steps: Steps,
        transfer: Transfer,
        *,
        execute: Execute,
        knows_model: KnowsModel | None,
        config: BatchesConfig,
    ) -> None:
        self._steps = steps
        self._transfer = transfer
        self._knows_model = knows_model
        self._config = config
        self._execution = Execution(steps, execute=execute, config=config)

    async def work(self, lease: Lease, stop: Stop) -> None:
        """Do all that is left of a batch.

        Raises:
            LeaseLostError: If another process took it.
        """
        batch, code = lease.batch, "internal_error"
        try:
            if batch["ending"] is None:
                ran = await self._run(lease, stop)
                if stop.over or (stop.left and not ran):
                    return
                ending = v1.BATCH_STATUS_COMPLETED if ran else stop.ending
                batch = await self._patiently(lambda: self._steps.finalize(lease, ending=ending))
            code = "output_failed"
            await self._write(lease, batch)
        except StackError as error:
            extra = {"batch": lease.batch_id, "reason": error.reason, "error": error.message}
            logger.warning("a batch cannot go on", extra=extra)
            await self._fail(lease, stop, [v1.BatchError(code=code, message=error.message)])
        else:
            stop.over = True
            await self._patiently(lambda: self._steps.end(lease))

    async def _run(self, lease: Lease, stop: Stop) -> bool:
        """Check the file and run its requests; whether all have run. A refused file ends the batch: see `stop.over`."""
        total = int(lease.batch["total"])
        if lease.batch["in_progress_at"] is None:
            checker = await unless(stop.asked, self._patiently(lambda: self._read(lease)))
            if checker is None:
                await self._patiently(lambda: self._steps.clear_lines(lease))
                return False
            if checker.errors:
                await self._fail(lease, stop, checker.errors)
                return False
            total = checker.count
            await self._patiently(lambda: self._steps.start(lease, total=total, model=checker.model))
        return await self._execution.run(lease, total=total, stop=stop)

    async def _read(self, lease: Lease) -> Checker:
        """Read the file and keep its requests, unless they are wrong."""
        checker = Checker(endpoint=lease.batch["endpoint"], config=self._config)
        await self._steps.clear_lines(lease)
        try:
            async for piece in self._pieces(lease.batch["input_file_id"]):
                await self._keep(lease, checker, await asyncio.to_thread(checker.feed, piece))
                if checker.full:
                    break
            else:
                await self._keep(lease, checker, await asyncio.to_thread(checker.feed, b"", last=True))
        except NotFoundError as error:
            checker.refuse("file_not_found", error.message, param="input_file_id", whole=True)
            return checker
        checker.finish()
        return checker

    async def _pieces(self, file_id: str) -> AsyncIterator[bytes]:
        buffer = bytearray()
        async with aclosing(self._transfer.read(file_id)) as pieces:
            async for piece in pieces:
                buffer += piece
                if len(buffer) >= PIECE:
                    yield bytes(buffer)
                    buffer.clear()
        yield bytes(buffer)

    async def _keep(self, lease: Lease, checker: Checker, read: Read) -> None:
        for model, line in read.models.items():
            if self._knows_model is not None and not await self._knows_model(model):
                message = f"no model {model[:80]!r}; list those that there are"
                checker.refuse("model_not_found", message, param="body.model", line=line)
        if read.lines and not checker.errors:
            await self._steps.add_lines(lease, read.lines)

    async def _write(self, lease: Lease, batch: BatchRow) -> None:
        """Write the files that have not been written and would not be empty."""
        counts = {"output": batch["completed"], "error": batch["total"] - batch["completed"]}
        for part, count in counts.items():
            if count and batch[f"{part}_file_id"] is None:
                write = partial(self._transfer.write, lease, part=part, ending=batch["ending"])
                file_id = await self._patiently(write)
                await self._patiently(partial(self._steps.written, lease, part=part, value=file_id))

    async def _fail(self, lease: Lease, stop: Stop, errors: Sequence[v1.BatchError]) -> None:
        stop.over = True
        await self._patiently(lambda: self._steps.fail(lease, errors))

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        return await patiently(step, retry_seconds=self._config.retry_seconds)

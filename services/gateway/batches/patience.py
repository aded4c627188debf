"""Waiting: for services that are away, and for a batch's end that somebody asks for."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from llamastack import v1
from services.gateway.batches.rows import BatchRow
from services.runtime.database import StoreError
from services.runtime.moments import now
from stack_client.errors import (
    CancelledError,
    DeadlineExceededError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

PASSING = (UnavailableError, DeadlineExceededError, ResourceExhaustedError, CancelledError, StoreError)
"""What is waited for, however long it takes."""
LONGEST_PAUSE = 30.0


def pauses(first: float) -> Iterator[float]:
    """Seconds to wait before each further try; those of many that failed at once come apart."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
        pause = min(pause * 2, LONGEST_PAUSE)


async def patiently(step: Callable[[], Awaitable[T]], *, retry_seconds: float) -> T:
    """What a step answers, once what it needs is there.

    Raises:
        StackError: If waiting cannot help.
    """
    for pause in pauses(retry_seconds):
        try:
            return await step()
        except PASSING as error:
            if error.reason == "MESSAGE_TOO_LARGE":
                raise
            logger.warning("a batch waits", extra={"reason": error.reason, "error": error.message})
        await asyncio.sleep(pause)
    raise AssertionError


class Stop:
    """Whether a batch is to end before its requests have run."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Set when it is."""
        self.ending = v1.BATCH_STATUS_COMPLETED
        """What becomes of it."""
        self.over = False
        """Whether it has ended or is about to: then its lease may be gone."""
        self.left = False
        """Whether this process goes away: others go on with the batch."""

    def leave(self) -> None:
        """Give the batch up, once what has ended is recorded."""
        self.left = True
        self.asked.set()

    def look(self, batch: BatchRow) -> None:
        """See how the batch stands now."""
        if batch["status"] == v1.BATCH_STATUS_CANCELLING:
            self.ending = v1.BATCH_STATUS_CANCELLED
            self.asked.set()
        elif batch["expires_at"] <= now():
            self.ending = v1.BATCH_STATUS_EXPIRED
            self.asked.set()


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Do some work until it is done or the event is set; what it answers, or None when it was stopped.

    Raises:
        Exception: The first failure of the work, as it was raised.
    """
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            watcher = group.create_task(_cancel_on(event, task))
            await asyncio.wait({task})
            watcher.cancel()
    except ExceptionGroup as failures:
        raise single(failures) from None
    return None if task.cancelled() else task.result()


async def _cancel_on(event: asyncio.Event, task: "asyncio.Task[Any]") -> None:
    await event.wait()
    task.cancel()


def single(failures: ExceptionGroup[Exception]) -> Exception:
    """The first failure of nested groups: what went wrong, not how tasks were nested; failures of calls come last."""
    leaves = list(_leaves(failures))
    return next((one for one in leaves if not isinstance(one, StackError)), leaves[0])


def _leaves(failures: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for failure in failures.exceptions:
        if isinstance(failure, ExceptionGroup):
            yield from _leaves(failure)
        else:
            yield failure

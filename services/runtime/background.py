"""Work beside the calls: in the background, and waking up those who wait for it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from stack_client.errors import StackError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""Pause after a round that failed."""


class Signals:
    """Wakes up who waits in this process for a change; changes of other processes are found by looking now and then."""

    def __init__(self) -> None:
        self._waiting: dict[int, set[asyncio.Event]] = {}

    def tell(self, number: int) -> None:
        """Wake up all who listen to this number."""
        for event in self._waiting.get(number, ()):
            event.set()

    @contextmanager
    def listening(self, number: int) -> Iterator[asyncio.Event]:
        """An event that is set with each change; clear it before looking."""
        event = asyncio.Event()
        self._waiting.setdefault(number, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[number].discard(event)
            if not self._waiting[number]:
                del self._waiting[number]


async def wait(event: asyncio.Event, *, seconds: float) -> None:
    """Wait until the event is set, or so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def repeat(work: Callable[[], Awaitable[float]], *, wake: asyncio.Event) -> None:
    """Do some work again and again, until cancelled.

    Args:
        work: One round; answers the seconds until the next.
        wake: Set by whoever wants the next round at once.
    """
    while True:
        wake.clear()
        try:
            pause = await work()
        except StackError as error:  # the database may be away for a while
            logger.warning("background work failed", extra={"work": work.__qualname__, "error": error.message})
            pause = RETRY_SECONDS
        await wait(wake, seconds=pause)


@asynccontextmanager
async def background(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run some work beside the body, and stop it at its end."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

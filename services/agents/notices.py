"""News of turns: that one has new events, or is to be cancelled. What the news are stands in the database."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol
from weakref import WeakValueDictionary

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
KEPT = 10_000
"""Notices that a Redis stream keeps; whoever is further behind looks into the database anyway."""


class Notices:
    """Wakes those of this process who wait for news of a turn."""

    def __init__(self) -> None:
        # Events live as long as somebody awaits them.
        self._changes: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    def change(self, turn_id: str) -> asyncio.Event:
        """Set at the next news of a turn; ask for it before you look at what is there."""
        return self._changes.setdefault(turn_id, asyncio.Event())

    def wake(self, turn_id: str) -> None:
        """There are news."""
        change = self._changes.pop(turn_id, None)
        if change is not None:
            change.set()


class FanOut(Protocol):
    """Carries news between the replicas of one database."""

    def publish(self, turn_id: str) -> None:
        """Tell the others; returns at once, and may fail silently: nobody relies on it."""


class NoFanOut:
    """For one replica, or for several that look into the database."""

    def publish(self, turn_id: str) -> None:
        """Nobody listens."""


class RedisFanOut:
    """News over a Redis stream.

    Args:
        url: Of the Redis.
        stream: Key of the stream.
        heard: Told the turn of every notice.
    """

    def __init__(self, url: str, *, stream: str, heard: Callable[[str], None]) -> None:
        from redis.asyncio import Redis  # noqa: PLC0415 (only where it is configured)

        self._redis = Redis.from_url(url)
        self._stream = stream
        self._heard = heard
        self._waiting: dict[str, None] = {}
        self._added = asyncio.Event()

    def publish(self, turn_id: str) -> None:
        """Tell the others soon; several notices of one turn are one."""
        self._waiting[turn_id] = None
        self._added.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send and listen until the block ends; goes on by itself when Redis was away."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._again(self._send)), group.create_task(self._again(self._listen))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
        await self._redis.aclose()

    async def _again(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        from redis.exceptions import RedisError  # noqa: PLC0415

        while True:
            try:
                await work()
            except (RedisError, OSError) as error:
                logger.warning("redis is away, so watchers look into the database: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _send(self) -> None:
        while True:
            await self._added.wait()
            self._added.clear()
            turn_ids, self._waiting = list(self._waiting), {}
            async with self._redis.pipeline(transaction=False) as pipe:
                for turn_id in turn_ids:
                    pipe.xadd(self._stream, {"turn_id": turn_id}, maxlen=KEPT, approximate=True)
                await pipe.execute()

    async def _listen(self) -> None:
        last = "$"
        while True:
            read: Any = await self._redis.xread({self._stream: last}, count=1000, block=5000)
            for _, entries in read or ():
                for entry, fields in entries:
                    last = entry
                    self._heard(fields[b"turn_id"].decode())

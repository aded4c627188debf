"""How many calls of a group run at once, and how many wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stack_client.errors import ResourceExhaustedError

RETRY_SECONDS = 1.0


class Slots:
    """Places of all groups.

    Args:
        waiting: Calls of a group that may wait.
    """

    def __init__(self, *, waiting: int) -> None:
        self._most = waiting
        self._groups: dict[tuple[str, str, int], tuple[asyncio.Semaphore, list[int]]] = {}

    @asynccontextmanager
    async def place(self, owner: str, group: str, *, limit: int, seconds: float) -> AsyncIterator[None]:
        """Hold one of a group's places.

        Args:
            owner: The tenant to whom the group belongs.
            group: Its name.
            limit: Its places.
            seconds: Longest wait.

        Raises:
            ResourceExhaustedError: If too many wait already, or the wait is over.
        """
        key = (owner, group, limit)
        places, users = self._groups.setdefault(key, (asyncio.Semaphore(limit), [0]))
        if users[0] >= limit + self._most:
            message = f"{group}: {limit} calls run and {self._most} wait; try again later"
            raise ResourceExhaustedError(message, retry_after=RETRY_SECONDS)
        users[0] += 1
        try:
            try:
                async with asyncio.timeout(seconds):
                    await places.acquire()
            except TimeoutError:
                message = f"{group}: all of its {limit} places were taken for {seconds:g} s; try again later"
                raise ResourceExhaustedError(message, retry_after=RETRY_SECONDS) from None
            try:
                yield
            finally:
                places.release()
        finally:
            users[0] -= 1
            if not users[0]:
                self._groups.pop(key, None)

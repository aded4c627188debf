"""Makes deadlines hold: expired calls are refused, running ones end in time, outgoing calls inherit the rest."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from services.runtime.calls import Call
from services.runtime.interceptors.base import Around, Context, is_watched_by_machines
from stack_client.errors import DeadlineExceededError


class Deadline(Around):
    """Puts the caller's deadline, else the method's default, on the call and cancels the handler when it passes."""

    def __init__(self, *, default: float | None, by_method: Mapping[str, float]) -> None:
        self._default = default
        self._by_method = by_method

    @asynccontextmanager
    async def around(self, call: Call, *, context: Context, streams: bool) -> AsyncIterator[None]:
        """Run the handler until the deadline."""
        seconds = context.time_remaining()
        if seconds is None:
            unset = None if streams or is_watched_by_machines(call.method) else self._default
            seconds = self._by_method.get(call.method, unset)
        if seconds is None:
            yield
            return
        if seconds <= 0:
            raise DeadlineExceededError(f"{call.method}: the deadline had passed when the call arrived")
        call.deadline = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds) as scope:
                yield
        except TimeoutError as error:
            if not scope.expired():  # a TimeoutError of the handler's own is its bug, not the caller's deadline
                raise
            raise DeadlineExceededError(
                f"{call.method}: not done within {seconds:.3g} s; allow more time or ask for less"
            ) from error

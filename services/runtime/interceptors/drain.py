"""Ends calls that outlive the grace of a shutdown."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.runtime.calls import Call
from services.runtime.interceptors.base import Around, Context
from stack_client.errors import UnavailableError


class Drain(Around):
    """Knows the calls in flight; `expire` ends them with UNAVAILABLE and reason DRAINING."""

    def __init__(self) -> None:
        self._scopes: set[asyncio.Timeout] = set()

    @property
    def in_flight(self) -> int:
        """Calls being handled now."""
        return len(self._scopes)

    def expire(self) -> None:
        """Cancel every handler that still runs."""
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(now)

    @asynccontextmanager
    async def around(self, call: Call, *, context: Context, streams: bool) -> AsyncIterator[None]:  # noqa: ARG002
        """Run the handler until it ends or the grace does."""
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scopes.add(scope)
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise UnavailableError(
                f"{call.method}: the service is shutting down; call again to reach another replica", reason="DRAINING"
            ) from error
        finally:
            self._scopes.discard(scope)

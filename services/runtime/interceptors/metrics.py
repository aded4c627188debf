"""Counts and times calls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.runtime.calls import Call
from services.runtime.interceptors.base import Around, Context, is_watched_by_machines
from services.runtime.telemetry import Telemetry


class Metrics(Around):
    """Records calls in flight, calls by status, and their duration."""

    def __init__(self, *, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    @asynccontextmanager
    async def around(self, call: Call, *, context: Context, streams: bool) -> AsyncIterator[None]:  # noqa: ARG002
        """Record the call."""
        if is_watched_by_machines(call.method):
            yield
            return
        self._telemetry.call_started(call)
        try:
            yield
        finally:
            self._telemetry.call_ended(call)

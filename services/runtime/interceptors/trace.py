"""Continues the caller's W3C trace and, when an exporter is configured, records a span."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.runtime.calls import TRACEPARENT, TRACESTATE, Call, Trace
from services.runtime.interceptors.base import Around, Context, header, is_watched_by_machines
from services.runtime.telemetry import Telemetry


class TraceContext(Around):
    """Reads `traceparent`, makes a span id of this hop, and ends the span however the call ends."""

    def __init__(self, *, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    @asynccontextmanager
    async def around(self, call: Call, *, context: Context, streams: bool) -> AsyncIterator[None]:  # noqa: ARG002
        """Enter the trace."""
        call.trace = Trace.from_headers(
            traceparent=header(context, name=TRACEPARENT), tracestate=header(context, name=TRACESTATE)
        )
        if is_watched_by_machines(call.method):
            yield
            return
        end_span = self._telemetry.start_span(call)
        cancelled = False
        try:
            yield
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            end_span(call, cancelled=cancelled)

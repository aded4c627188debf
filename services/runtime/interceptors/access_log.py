"""One line per call."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.runtime.calls import Call
from services.runtime.interceptors.base import Around, Context, is_watched_by_machines

_log = logging.getLogger(__name__)


class AccessLog(Around):
    """Logs method, status, duration and message count when a call ends; health checks only at DEBUG."""

    @asynccontextmanager
    async def around(self, call: Call, *, context: Context, streams: bool) -> AsyncIterator[None]:  # noqa: ARG002
        """Measure and log."""
        try:
            yield
        except asyncio.CancelledError:
            call.code = grpc.StatusCode.CANCELLED
            raise
        finally:
            _log.log(
                logging.DEBUG if is_watched_by_machines(call.method) else logging.INFO,
                "call ended",
                extra={
                    "rpc.method": call.method,
                    "rpc.status_code": call.code.name,
                    "error.type": call.reason,
                    "duration_ms": round((time.monotonic() - call.started) * 1000, 2),
                    "messages": call.messages,
                    "peer": context.peer(),
                },
            )

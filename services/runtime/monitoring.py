"""The HTTP port for monitoring: /metrics, /livez, /readyz."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus

from services.runtime.listen import ListenError
from services.runtime.readiness import Readiness
from services.runtime.telemetry import Telemetry

_log = logging.getLogger(__name__)
_HEAD_LIMIT = 16 * 1024
_HEAD_SECONDS = 5.0
_TEXT = "text/plain; charset=utf-8"


class Monitoring:
    """Answers GET requests, one per connection."""

    def __init__(self, *, telemetry: Telemetry, readiness: Sequence[Readiness]) -> None:
        self._telemetry = telemetry
        self._readiness = readiness

    @asynccontextmanager
    async def listening(self, *, host: str, port: int) -> AsyncIterator[int]:
        """Serve until the context ends; yields the port."""
        try:
            server = await asyncio.start_server(self._connection, host, port, limit=_HEAD_LIMIT)
        except OSError as error:
            raise ListenError(
                f"monitoring: cannot listen on {host}:{port}: {error.strerror}; set runtime.telemetry.metrics_port"
            ) from error
        async with server:
            bound: int = server.sockets[0].getsockname()[1]
            _log.info("monitoring listens", extra={"address": f"{host}:{bound}"})
            yield bound

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body for a path."""
        if path == "/metrics":
            return HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", self._telemetry.text()
        if path == "/livez":
            return HTTPStatus.OK, _TEXT, b"alive\n"
        if path == "/readyz":
            lines = [f"{item.name}: {item.state} {item.reason}".rstrip() for item in self._readiness]
            ready = all(item.is_ready for item in self._readiness)
            status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
            return status, _TEXT, ("\n".join(lines) + "\n").encode()
        return HTTPStatus.NOT_FOUND, _TEXT, b"there are /metrics, /livez and /readyz\n"

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            if len(parts) != 3 or parts[0] != "GET":
                status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"only GET\n"
            else:
                status, kind, body = self.answer(parts[1].split("?")[0])
            writer.write(
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # the peer went away or speaks no HTTP: there is nobody to tell
        finally:
            writer.close()

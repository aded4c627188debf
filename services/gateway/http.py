"""The HTTP server: uvicorn on the process's event loop."""

import asyncio
import contextlib
import logging
import math
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.config import GatewayConfig
from services.runtime.config import ConfigError

logger = logging.getLogger(__name__)

PORT = 8321
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 30
LAST_SECONDS = 3
"""For telling clients that their streams end, after the time that streams have to end by themselves."""


class Protocol(HttpToolsProtocol):
    """Closes connections that do not send their headers in time."""

    read_seconds = 30.0

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - asyncio's
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._late = self.loop.call_later(self.read_seconds, self._close_late)

    def on_headers_complete(self) -> None:
        """The request is there."""
        self._late.cancel()
        super().on_headers_complete()

    def on_message_begin(self) -> None:
        """A request on a connection that was kept: its headers must come in time too."""
        self._late.cancel()
        self._late = self.loop.call_later(self.read_seconds, self._close_late)
        super().on_message_begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for any more."""
        self._late.cancel()
        super().connection_lost(exc)

    def _close_late(self) -> None:
        self.transport.close()


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def listen(config: GatewayConfig, *, file: object) -> socket.socket:
    """The socket that is listened on; without a configured port 8321, or a free one where that is taken.

    Raises:
        ConfigError: The configured port cannot be opened.
    """
    host, wished = config.http_host, config.http_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem: OSError | None = None
    for port in [wished] if wished is not None else [PORT, 0]:
        # With the protocol named, asyncio turns Nagle's algorithm off; answers would wait 40 ms for an acknowledgement.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(BACKLOG)
            listening.settimeout(0)
        except OSError as error:
            listening.close()
            problem = error
            continue
        if problem is not None:
            port_now = listening.getsockname()[1]
            logger.warning("the usual HTTP port is taken", extra={"port": PORT, "instead": port_now})
        return listening
    raise ConfigError(f"{file}: gateway.http_port: {host}:{wished if wished is not None else PORT}: {problem}")


@asynccontextmanager
async def serving(
    app: ASGIApp,
    *,
    config: GatewayConfig,
    listening: socket.socket,
    grace_seconds: float,
    break_off: Callable[[], None],
) -> AsyncIterator[str]:
    """Serve until the block ends; yields the base URL.

    Args:
        app: The application.
        config: Bounds.
        listening: The socket.
        grace_seconds: How long requests have to end once the block has.
        break_off: Ends those that have not, in a way that tells their clients.
    """
    _raise_file_limit()
    protocol = type("GatewayProtocol", (Protocol,), {"read_seconds": config.read_seconds})
    settings = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(grace_seconds) + LAST_SECONDS,
        backlog=BACKLOG,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = _Server(settings)
    port = listening.getsockname()[1]
    shown = f"[{config.http_host}]" if ":" in config.http_host else config.http_host
    async with asyncio.TaskGroup() as tasks:
        serve = tasks.create_task(server.serve(sockets=[listening]))
        url = f"http://{shown}:{port}"
        logger.info("gateway listens", extra={"url": url})
        try:
            yield url
        finally:
            server.should_exit = True
            await asyncio.wait([serve], timeout=grace_seconds)
            break_off()
            await serve


def _raise_file_limit() -> None:
    """Every connection is an open file; the usual soft limit is for programs that have few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wished = 65_536 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wished:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wished, hard))

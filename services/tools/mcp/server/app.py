"""The HTTP side of the MCP server: who may come in, and to what."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import Receive, Scope, Send

from services.tools.mcp.quiet import quieten
from services.tools.mcp.server.caller import Caller
from services.tools.mcp.server.config import McpServerConfig
from services.tools.mcp.server.handlers import PLACE, Handlers, Place, place_of

logger = logging.getLogger(__name__)

ROOT = "/mcp"
NAME = "llama-stack-mesh"
STOP_SECONDS = 5
LOCAL = ("127.0.0.1", "localhost", "[::1]")


class Keys:
    """Who comes with which bearer key.

    Args:
        tenants: Tenant by key; empty means that nobody needs one.
    """

    def __init__(self, tenants: Mapping[str, str]) -> None:
        self._tenants = [(_digest(key), tenant) for key, tenant in tenants.items()]

    def tenant(self, authorization: str) -> str | None:
        """The tenant of a request, None when its key is none of ours; takes the same time for all."""
        if not self._tenants:
            return ""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip() if scheme.lower() == "bearer" else "")
        found = None
        for digest, tenant in self._tenants:
            if hmac.compare_digest(digest, given):
                found = tenant
        return found

    def state_key(self) -> bytes:
        """A secret that all processes with the same keys share."""
        return hashlib.sha256(b"mcp request state\0" + b"".join(sorted(one for one, _ in self._tenants))).digest()

    def __len__(self) -> int:
        return len(self._tenants)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class App:
    """The ASGI application: `/mcp` has all tools of the tenant, `/mcp/<group>` those of a group.

    Args:
        caller: Lists and runs tools.
        config: Of the server.
        keys: Who may come in.
    """

    def __init__(self, caller: Caller, *, config: McpServerConfig, keys: Keys) -> None:
        self._keys = keys
        self.handlers = Handlers(caller, sessions=config.max_sessions)
        server = self.handlers.server()
        policy: dict[str, Any] = {"bind_principal": lambda ctx: place_of(ctx).tenant or None}
        security = RequestStateSecurity(keys=[keys.state_key()], **policy) if keys else RequestStateSecurity.ephemeral()
        server.middleware.append(RequestStateBoundary(security, default_audience=NAME))
        hosts = [*config.hosts, *(form for one in LOCAL for form in (one, f"{one}:*"))]
        origins = [*config.origins, *(f"{scheme}://{one}" for one in hosts for scheme in ("http", "https"))]
        self.manager = StreamableHTTPSessionManager(
            server,
            security_settings=TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins),
            session_idle_timeout=config.session_seconds,
            max_sessions=config.max_sessions,
            max_request_body_size=config.max_request_bytes,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        path = scope["path"].rstrip("/")
        if path != ROOT and not path.startswith(f"{ROOT}/"):
            await _refuse(send, 404, f"nothing is here; the tools are at {ROOT} and {ROOT}/<group>")
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        tenant = self._keys.tenant(headers.get(b"authorization", ""))
        if tenant is None:
            await _refuse(send, 401, "give a key: Authorization: Bearer <key>")
            return
        # The key goes no further. The SDK lets a session be used by nobody but the user who began it.
        user = AuthenticatedUser(AccessToken(token="", client_id=tenant or "anybody", scopes=[]))
        place = Place(tenant, path[len(ROOT) + 1 :])
        if scope["method"] == "DELETE":
            self.handlers.forget(headers.get(b"mcp-session-id", ""))
        await self.manager.asgi_app({**scope, "user": user, PLACE: place}, receive, send)


async def _refuse(send: Send, status: int, message: str) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="mcp"'))
    body = json.dumps({"error": message}).encode()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class McpServer:
    """The server while it runs.

    Attributes:
        url: Address of all tools.
    """

    def __init__(self, app: App, url: str) -> None:
        self._app = app
        self.url = url
        self._changes: asyncio.Queue[str] = asyncio.Queue()

    def changed(self, tenant: str) -> None:
        """The tools of a tenant changed; returns at once."""
        self._changes.put_nowait(tenant)

    async def tell_changes(self) -> None:
        """Tell clients of changes, until cancelled."""
        while True:
            await self._app.handlers.changed(await self._changes.get())


@asynccontextmanager
async def serving(
    caller: Caller, *, config: McpServerConfig, keys: Mapping[str, str], listening: socket.socket
) -> AsyncIterator[McpServer]:
    """Serve until the block ends.

    Args:
        caller: Lists and runs tools.
        config: Of the server.
        keys: Tenant by key.
        listening: The socket.
    """
    quieten()
    app = App(caller, config=config, keys=Keys(keys))
    port = listening.getsockname()[1]
    shown = f"[{config.host}]" if ":" in config.host else config.host
    running = McpServer(app, f"http://{shown}:{port}{ROOT}")
    settings = uvicorn.Config(
        app,
        http="h11",  # takes the space around the values of headers away, as RFC 9110 demands; httptools leaves it
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = _Server(settings)
    async with app.manager.run(), asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(running.tell_changes())
        serve = tasks.create_task(server.serve(sockets=[listening]))
        logger.info("MCP server listens", extra={"url": running.url})
        try:
            yield running
        finally:
            telling.cancel()
            app.handlers.close()
            server.should_exit = True
            await serve

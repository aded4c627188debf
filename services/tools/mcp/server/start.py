"""Starting the MCP server with the service; the SDK is loaded only where it is wanted."""

import asyncio
import importlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from services.runtime.config import LOOPBACK, ConfigError
from services.tools.config import SecretSource, ToolsConfig
from services.tools.groups import Groups
from services.tools.invoke import Invoker
from services.tools.listings import Listings
from services.tools.mcp.server.config import McpServerConfig

if TYPE_CHECKING:
    from services.tools.mcp.server.app import McpServer

KEYS_VARIABLE = "STACK_TOOLS_MCP_KEYS"
"""Environment variable with further keys, `tenant=key`, separated by spaces."""
SHORTEST = 16
"""Characters of a key."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What the server needs, ready before the service opens anything else."""

    settings: McpServerConfig
    keys: Mapping[str, str] = field(repr=False)
    """Tenant by key."""
    listening: socket.socket


@asynccontextmanager
async def open_mcp(config: ToolsConfig, *, file: Path | str) -> AsyncIterator[Opening | None]:
    """Listen if `tools.mcp_port` is set; yields None if not.

    Raises:
        ConfigError: If the server would be open to other machines without keys, a key is no good, or it cannot listen.
    """
    if config.mcp_port is None:
        yield None
        return
    keys = await asyncio.to_thread(_keys, config.mcp_keys, file)
    if not keys and config.mcp_host not in LOOPBACK:
        raise ConfigError(
            f'{file}: tools.mcp_host: "{config.mcp_host}" is reachable from other machines without a key; '
            "set tools.mcp_keys"
        )
    settings = McpServerConfig(
        port=config.mcp_port, host=config.mcp_host, hosts=config.mcp_hosts, origins=config.mcp_origins
    )
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as listening:
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((settings.host, settings.port))
            listening.listen()
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise ConfigError(f"{file}: tools.mcp_port: cannot listen on {where}: {error.strerror}") from error
        yield Opening(settings=settings, keys=keys, listening=listening)


@asynccontextmanager
async def serve_mcp(
    opening: Opening | None, *, groups: Groups, listings: Listings, invoker: Invoker
) -> AsyncIterator[str]:
    """Serve MCP while the block runs; yields the address, empty if it is not wanted.

    The server lives in a task of its own, for the SDK's scopes must be left by the task that entered them.
    """
    if opening is None:
        yield ""
        return
    app = await asyncio.to_thread(importlib.import_module, "services.tools.mcp.server.app")
    caller = await asyncio.to_thread(importlib.import_module, "services.tools.mcp.server.caller")
    tools = caller.ServiceCaller(groups, listings, invoker)
    ready: asyncio.Future[McpServer] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def own() -> None:
        serving = app.serving(tools, config=opening.settings, keys=opening.keys, listening=opening.listening)
        async with serving as server:
            ready.set_result(server)
            await stop.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(own())
        server = await ready
        with _told(groups, server.changed):
            yield server.url
        stop.set()


@contextmanager
def _told(groups: Groups, changed: Callable[[str], None]) -> Iterator[None]:
    """Tell of changes of the groups while the block runs."""
    groups.listeners.append(changed)
    try:
        yield
    finally:
        groups.listeners.remove(changed)


def _keys(sources: Mapping[str, SecretSource], file: Path | str) -> dict[str, str]:
    """Tenant by key, of configuration and environment."""
    found: dict[str, str] = {}
    given = [part.partition("=")[::2] for part in os.environ.get(KEYS_VARIABLE, "").split()]
    for tenant, source in sources.items():
        where = f"tools.mcp_keys.{tenant}"
        try:
            text = os.environ.get(source.env, "") if source.file is None else source.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: {where}: {source.file} cannot be read ({type(error).__name__})") from error
        if not text.split():
            raise ConfigError(f"{file}: {where}: {source.env or source.file} holds no key")
        given += [(tenant, key) for key in text.split()]
    for tenant, key in given:
        if len(key) < SHORTEST:
            raise ConfigError(f"{file}: a key of {tenant!r} has fewer than {SHORTEST} characters")
        if found.setdefault(key, tenant) != tenant:
            raise ConfigError(f"{file}: {tenant!r} and {found[key]!r} have the same key")
    return found

"""Connections that are open, one for each server, credential and tenant; opened when wanted, again after a fault."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import mcp_types as types
from mcp.client.session import ClientSession

from services.tools.mcp.config import McpConfig
from services.tools.mcp.connection import Connection, Request, Work
from services.tools.mcp.endpoint import Addresses, Endpoint
from services.tools.mcp.exchange import ConnectionLostError, Exchange
from services.tools.mcp.requests import PAGES
from stack_client.errors import ResourceExhaustedError, UnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class _Listing:
    tools: tuple[types.Tool, ...]
    changes: int
    until: float
    """By the loop's clock."""


class Pool:
    """The open connections.

    Args:
        config: Bounds.
        group: Where their tasks run.
        addresses: Checks where requests go.
    """

    def __init__(self, config: McpConfig, group: asyncio.TaskGroup, *, addresses: Addresses) -> None:
        self._config = config
        self._group = group
        self._addresses = addresses
        self._open: dict[tuple[str, str, str], Connection] = {}
        self._listings: dict[Connection, _Listing] = {}
        self._listing: dict[Connection, asyncio.Lock] = {}

    @property
    def size(self) -> int:
        """How many are open."""
        return len(self._open)

    async def connection(self, endpoint: Endpoint) -> Connection:
        """An open connection.

        Raises:
            StackError: If the server does not answer, refuses the credential, or may not be reached.
        """
        key = endpoint.key
        connection = self._open.get(key)
        if connection is None or connection.closing:
            if len(self._open) >= self._config.max_connections:
                self._make_room()
            connection = Connection(endpoint, config=self._config, addresses=self._addresses)
            self._open[key] = connection
            self._group.create_task(self._own(key, connection))
        await asyncio.shield(connection.opened)
        return connection

    async def _own(self, key: tuple[str, str, str], connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            if self._open.get(key) is connection:
                del self._open[key]
            self._listings.pop(connection, None)
            self._listing.pop(connection, None)

    def _make_room(self) -> None:
        idle = next((one for one in self._open.values() if not one.busy and one.opened.done()), None)
        if idle is None:
            raise ResourceExhaustedError(
                f"{len(self._open)} MCP connections are in use, the limit (max_connections); try again later"
            )
        self._open.pop(idle.endpoint.key, None)
        idle.close()

    async def request(self, endpoint: Endpoint, work: Work[T]) -> T:
        """Make a request that changes nothing; once more on a new connection if the old one was lost.

        Raises:
            ServerError: If the server answers with an error.
            StackError: If it cannot be reached.
        """
        for attempt in (1, 2):
            connection = await self.connection(endpoint)
            try:
                async with running(connection, work, Exchange()) as request:
                    return await asyncio.shield(request.done)
            except ConnectionLostError as error:
                await self.drop(connection)
                if attempt == 2:
                    raise UnavailableError(f"{endpoint.label}: the MCP server is lost: {error.reason}") from error
        raise AssertionError("unreachable")

    async def drop(self, connection: Connection) -> None:
        """Forget a connection that is broken; what still runs on it ends."""
        key = connection.endpoint.key
        if self._open.get(key) is connection:
            del self._open[key]
        connection.close()

    async def tools(self, endpoint: Endpoint) -> tuple[tuple[types.Tool, ...], types.ServerCapabilities]:
        """The server's tools, from the last list while it holds, and what else it offers.

        Raises:
            ServerError: If the server answers with an error.
            StackError: If it cannot be reached.
        """
        connection = await self.connection(endpoint)
        if connection.capabilities.tools is None:
            return (), connection.capabilities
        async with self._listing.setdefault(connection, asyncio.Lock()):
            known = self._listings.get(connection)
            now = asyncio.get_running_loop().time()
            if known is not None and known.changes == connection.list_changes and now < known.until:
                return known.tools, connection.capabilities
            changes = connection.list_changes  # a change while we list makes the list stale at once
            tools, ttl = await self.request(endpoint, _list_tools)
            seconds = ttl or self._config.list_seconds
            until = float("inf") if connection.watched else now + seconds
            if not connection.closing:
                self._listings[connection] = _Listing(tools, changes, until)
            return tools, connection.capabilities

    def close_idle(self, tenant: str, uri: str) -> None:
        """Let go of a server that a tenant has no more use for."""
        for connection in list(self._open.values()):
            endpoint = connection.endpoint
            if endpoint.tenant == tenant and endpoint.uri == uri and not connection.busy:
                connection.close()

    def close(self) -> None:
        """End all connections."""
        for connection in self._open.values():
            connection.close()


@asynccontextmanager
async def running(connection: Connection, work: Work[T], exchange: Exchange) -> AsyncIterator[Request[T]]:
    """A request that is cancelled when its caller leaves before it has ended."""
    request = connection.start(work, exchange)
    try:
        yield request
    finally:
        if not request.done.done():
            await request.cancel()


async def _list_tools(session: ClientSession) -> tuple[tuple[types.Tool, ...], float]:
    """All tools, and for how many seconds the server says that the list holds (0 = it does not)."""
    tools: list[types.Tool] = []
    cursor, ttl = None, 0.0
    for _ in range(PAGES):
        params = types.PaginatedRequestParams(cursor=cursor) if cursor else None
        page = await session.list_tools(params=params)
        tools += page.tools
        ttl = page.ttl_ms / 1000
        cursor = page.next_cursor
        if not cursor:
            break
    return tuple(tools), ttl

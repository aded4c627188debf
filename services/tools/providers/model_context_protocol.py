"""Provider `model-context-protocol`: the tools, resources and prompts of MCP servers (modelcontextprotocol.io)."""

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from llamastack import v1
from services.runtime.reader import read_config
from services.tools.mcp.calls import Calls
from services.tools.mcp.config import McpConfig
from services.tools.mcp.egress import checked_addresses
from services.tools.mcp.endpoint import FIELD, Endpoint, read_endpoint
from services.tools.mcp.exchange import ServerError
from services.tools.mcp.http import Addresses
from services.tools.mcp.listing import tool_defs
from services.tools.mcp.pool import Pool
from services.tools.provider import Access, Call, ProviderContext
from stack_client.errors import InvalidArgumentError, PermissionDeniedError, UnavailableError

logger = logging.getLogger(__name__)

PROVIDER_ID = "model-context-protocol"


class ModelContextProtocol:
    """Speaks MCP to servers behind streamable HTTP, HTTP with SSE, and to programs over their pipes.

    Args:
        context: Of the service.
    """

    def __init__(self, context: ProviderContext) -> None:
        at = f"tools.providers.{PROVIDER_ID}"
        self._config = read_config(McpConfig, context.config, file=context.service.config.file, at=at)
        allow = context.service.config.sections.get("tools", {}).get("egress_allow", ())
        self._addresses: Addresses = checked_addresses(tuple(allow))
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._pool = Pool(self._config, self._group)
        self._calls = Calls(self._pool)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.close()
        await self._group.__aexit__(kind, error, traceback)

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        """Refuse an address that is none or may not be reached."""
        endpoint = self._endpoint(group, access)
        if endpoint.stdio:
            return
        parts = urlsplit(endpoint.uri)
        try:
            await self._addresses(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        except PermissionDeniedError as error:
            raise InvalidArgumentError(f"mcp_endpoint: {error.message}", field=FIELD) from error

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:
        """The server's tools, from the last list while it holds, and tools for its resources and prompts."""
        endpoint = self._endpoint(group, access)
        try:
            tools = await self._pool.tools(endpoint, self._addresses)
            connection = await self._pool.connection(endpoint, self._addresses)
        except ServerError as error:
            message = f"{endpoint.label}: the MCP server does not list its tools: {error.message}"
            raise UnavailableError(message) from error
        trusted = endpoint.trust_name in self._config.trust_annotations
        return tool_defs(tools, connection.capabilities, group, server=endpoint.label, trusted=trusted)

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """Run a call on the server; see `services.tools.mcp.calls`."""
        return await self._calls.run(call, self._endpoint(call.group, call.access), self._addresses)

    async def removed(self, group: v1.ToolGroup, access: Access) -> None:
        """Close what is open to the group's server for the tenant and not in use."""
        self._pool.close_idle(access.tenant, group.mcp_endpoint.uri)

    def _endpoint(self, group: v1.ToolGroup, access: Access) -> Endpoint:
        return read_endpoint(group, access, self._config)

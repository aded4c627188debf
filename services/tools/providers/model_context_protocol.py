"""Provider `model-context-protocol`: the tools, resources and prompts of MCP servers (modelcontextprotocol.io)."""

import asyncio
import importlib
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from llamastack import v1
from services.runtime.egress import Egress
from services.runtime.reader import read_config
from services.tools.config import ToolsConfig
from services.tools.mcp.config import McpConfig
from services.tools.mcp.endpoint import FIELD, Endpoint, place_of, read_endpoint
from services.tools.provider import Access, Call, ProviderContext
from stack_client.errors import InvalidArgumentError, PermissionDeniedError

if TYPE_CHECKING:
    from services.tools.mcp.client import McpClient

PROVIDER_ID = "model-context-protocol"


class ModelContextProtocol:
    """Speaks MCP to servers behind streamable HTTP, HTTP with SSE, and to programs over their pipes.

    Args:
        context: Of the service.
    """

    def __init__(self, context: ProviderContext) -> None:
        at = f"tools.providers.{PROVIDER_ID}"
        self._config = read_config(McpConfig, context.config, file=context.service.config.file, at=at)
        tools = context.service.section(ToolsConfig)
        self._secrets = tools.secrets
        self._egress = Egress(tools.egress_allow, setting="tools.egress_allow")
        self._tasks = asyncio.TaskGroup()
        self._client: McpClient | None = None
        self._loading = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.pool.close()
        await self._tasks.__aexit__(kind, error, traceback)

    async def client(self) -> "McpClient":
        """The client; the SDK is loaded when it is first wanted, beside the event loop."""
        async with self._loading:
            if self._client is None:
                module = await asyncio.to_thread(importlib.import_module, "services.tools.mcp.client")
                self._client = module.McpClient(self._config, addresses=self._egress.addresses, tasks=self._tasks)
        assert self._client is not None
        return self._client

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        """Refuse an address that is none or may not be reached."""
        endpoint = self._endpoint(group, access)
        if endpoint.stdio:
            return
        try:
            await self._egress.addresses(*place_of(endpoint.uri))
        except PermissionDeniedError as error:
            raise InvalidArgumentError(f"mcp_endpoint: {error.message}", field=FIELD) from error

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:
        """The server's tools, from the last list while it holds, and tools for its resources and prompts."""
        return await (await self.client()).list_tools(group, self._endpoint(group, access))

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """Run a call on the server; see `services.tools.mcp.calls`."""
        return await (await self.client()).invoke(call, self._endpoint(call.group, call.access))

    async def removed(self, group: v1.ToolGroup, access: Access) -> None:
        """Close what is open to the group's server for the tenant and not in use."""
        if self._client is not None:
            self._client.pool.close_idle(access.tenant, group.mcp_endpoint.uri)

    def _endpoint(self, group: v1.ToolGroup, access: Access) -> Endpoint:
        secret = self._secrets.get(group.settings.secrets_ref) if access.secret else None
        endpoint = read_endpoint(group, access, self._config, secret_hosts=secret.hosts if secret else ())
        plain = endpoint.uri.startswith("http:") and not self._egress.is_allowed(place_of(endpoint.uri)[0])
        if plain and endpoint.has_credential:
            raise PermissionDeniedError(f"{endpoint.label}: a credential is not sent without TLS; use https")
        return endpoint

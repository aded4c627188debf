"""The MCP client as the provider uses it. Importing it loads the SDK, which takes most of a second."""

import asyncio
from collections.abc import Sequence

from llamastack import v1
from services.tools.mcp.calls import Calls
from services.tools.mcp.config import McpConfig
from services.tools.mcp.endpoint import Addresses, Endpoint
from services.tools.mcp.exchange import ServerError
from services.tools.mcp.listing import tool_defs
from services.tools.mcp.pool import Pool
from services.tools.mcp.quiet import quieten
from services.tools.provider import Call
from stack_client.errors import UnavailableError


class McpClient:
    """Lists and calls the tools of servers.

    Args:
        config: Bounds.
        addresses: Checks where requests go.
        tasks: In which connections live.
    """

    def __init__(self, config: McpConfig, *, addresses: Addresses, tasks: asyncio.TaskGroup) -> None:
        quieten()
        self._config = config
        self.pool = Pool(config, tasks, addresses=addresses)
        self.calls = Calls(self.pool)

    async def list_tools(self, group: v1.ToolGroup, endpoint: Endpoint) -> Sequence[v1.ToolDef]:
        """The server's tools, and tools that read its resources and prompts.

        Raises:
            UnavailableError: If the server does not answer, or does not list them.
            AuthenticationError: If it refuses the credential.
        """
        try:
            tools, capabilities = await self.pool.tools(endpoint)
        except ServerError as error:
            message = f"{endpoint.label}: the MCP server does not list its tools: {error.message}"
            raise UnavailableError(message) from error
        trusted = endpoint.trust_name in self._config.trust_annotations
        return tool_defs(tools, capabilities, group, server=endpoint.label, trusted=trusted)

    async def invoke(self, call: Call, endpoint: Endpoint) -> v1.ToolInvocationResult:
        """Run a call; see `Calls.run`."""
        return await self.calls.run(call, endpoint)

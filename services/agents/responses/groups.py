"""MCP servers of single responses: registered with the tools service under a name of their own, and removed."""

import logging
from collections.abc import Iterable

from llamastack import v1
from stack_client.errors import NotFoundError, StackError, UnsupportedError
from stack_client.toolgroups import Tools

logger = logging.getLogger(__name__)


class McpGroups:
    """Registers and removes groups.

    Args:
        tools: The tools service; None where the stack has none.
    """

    def __init__(self, tools: Tools | None) -> None:
        self._tools = tools

    async def register(self, response_id: str, tool: v1.MCPTool) -> str:
        """Register a server for one response; returns its group.

        Raises:
            UnsupportedError: If the stack has no tools service.
            StackError: As the tools service refuses the server.
        """
        if self._tools is None:
            raise UnsupportedError("tools: this stack has no tools service; set addresses.tools", field="tools")
        name = f"mcp::{response_id}::{tool.server_label}"
        await self._tools.register(name, mcp_endpoint=tool.server_url, description=f"of response {response_id}")
        return name

    async def remove(self, names: Iterable[str]) -> None:
        """Remove groups; what cannot be removed now is left to the operator."""
        for name in names:
            try:
                if self._tools is not None:
                    await self._tools.unregister(name)
            except NotFoundError:
                continue
            except StackError as error:
                logger.warning("a tool group of a response is left group=%s: %s", name, error.message)

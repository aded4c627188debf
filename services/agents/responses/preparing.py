"""Getting a response ready: instructions, MCP servers, and the tools of all groups, listed once."""

from llamastack import v1
from services.agents.offered import group_of, server_groups
from services.agents.responses.echo import created
from services.agents.responses.groups import McpGroups
from services.agents.responses.prompts import instructions_of
from services.agents.responses.setup import Setup, choose_tool, configure, mcp_tools
from services.agents.store import AgentStore
from services.agents.toolbox import Toolbox
from services.agents.validate import check_agent
from stack_client.errors import StackError


class Preparation:
    """Makes setups.

    Args:
        store: Where prompts are.
        toolbox: Lists tools.
        groups: Registers MCP servers.
    """

    def __init__(self, store: AgentStore, toolbox: Toolbox, groups: McpGroups) -> None:
        self._store = store
        self._toolbox = toolbox
        self._groups = groups

    async def prepare(
        self, request: v1.CreateResponseRequest, response_id: str, *, tenant: str
    ) -> tuple[Setup, v1.ResponseObject]:
        """How a response runs, and what it is at first; its own groups of tools are registered.

        Raises:
            StackError: If it cannot be made; nothing is left registered.
        """
        instructions = request.instructions
        if request.HasField("prompt"):
            prompt = await self._store.read(lambda connection: instructions_of(connection, request.prompt, tenant))
            instructions = "\n\n".join(text for text in (prompt, instructions) if text)
        groups = {}
        own = []
        try:
            for index, tool in mcp_tools(request.tools):
                groups[index] = tool.connector_id
                if not tool.connector_id:
                    groups[index] = await self._groups.register(response_id, tool)
                    own.append(groups[index])
            setup = configure(request, instructions=instructions, groups=groups)
            setup.own = own
            check_agent(setup.config)
            await self._list(setup)
            choose_tool(request, setup)
        except StackError:
            await self._groups.remove(own)
            raise
        return setup, created(request, response_id, instructions=instructions)

    async def _list(self, setup: Setup) -> None:
        """List the tools of all groups; the response goes by them to its end."""
        for name in dict.fromkeys(group_of(group.name) for group in server_groups(setup.config)):
            for tool in await self._toolbox.tools(name):
                setup.pin.tools.data.add().CopyFrom(tool)
                setup.pin.tools.data[-1].toolgroup_id = name
        setup.tools()

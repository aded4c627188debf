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
from stack_client.errors import InvalidArgumentError, StackError, UnsupportedError
from stack_client.safety import Shields


class Preparation:
    """Makes setups.

    Args:
        store: Where prompts are.
        toolbox: Lists tools.
        groups: Registers MCP servers.
        shields: Lists shields; None where the stack has no safety service.
    """

    def __init__(self, store: AgentStore, toolbox: Toolbox, groups: McpGroups, shields: Shields | None) -> None:
        self._shields = shields
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
        shields = await self._default_shields() if request.default_guardrails else []
        groups = {}
        own = []
        try:
            for index, tool in mcp_tools(request.tools):
                groups[index] = tool.connector_id
                if not tool.connector_id:
                    groups[index] = await self._groups.register(response_id, tool)
                    own.append(groups[index])
            setup = configure(request, instructions=instructions, groups=groups, default_shields=shields)
            setup.own = own
            check_agent(setup.config)
            await self._list(setup)
            choose_tool(request, setup)
        except StackError:
            await self._groups.remove(own)
            raise
        return setup, created(request, response_id, instructions=instructions)

    async def _default_shields(self) -> list[str]:
        """All shields: what nobody would judge must not seem to be judged."""
        if self._shields is None:
            message = "default_guardrails: this stack has no safety service; set addresses.safety, or name none"
            raise UnsupportedError(message, field="default_guardrails")
        found = [shield.identifier for shield in await self._shields.list()]
        if not found:
            message = "default_guardrails: no shield is registered; register one with ShieldsService"
            raise InvalidArgumentError(message, field="default_guardrails")
        return found

    async def _list(self, setup: Setup) -> None:
        """List the tools of all groups; the response goes by them to its end."""
        for name in dict.fromkeys(group_of(group.name) for group in server_groups(setup.config)):
            for tool in await self._toolbox.tools(name):
                setup.pin.tools.data.add().CopyFrom(tool)
                setup.pin.tools.data[-1].toolgroup_id = name
        setup.tools()

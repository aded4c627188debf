"""The agent that speaks in a turn, pinned: its configuration and its tools stay as they were when it began to speak."""

from collections.abc import Sequence
from dataclasses import dataclass

from llamastack import v1
from services.agents.offered import Offered, group_of, offer, server_groups
from services.agents.store import AgentStore
from services.agents.toolbox import Toolbox
from services.agents.turn_log import TurnLog
from services.agents.turn_store import Pin, TurnContext


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """Who answers."""

    agent: v1.Agent
    """The agent, in the version that the turn goes by."""
    tools: dict[str, Offered]
    """Its tools by the name that the model calls."""

    @property
    def config(self) -> v1.AgentConfig:
        """What it is."""
        return self.agent.agent_config


class Speakers:
    """Finds who answers in a turn.

    Args:
        store: Agents and what turns have pinned.
        toolbox: Lists the tools of groups.
    """

    def __init__(self, store: AgentStore, toolbox: Toolbox) -> None:
        self._store = store
        self._toolbox = toolbox

    async def find(self, log: TurnLog, context: TurnContext, earlier: Sequence[v1.Turn]) -> Speaker:
        """The agent that has the dialog; what it goes by is stored with the next commit when it is found first.

        Raises:
            NotFoundError: If the agent, a tool group or a tool does not exist.
            UnavailableError: If the tools of a group cannot be listed now.
        """
        turn, request = log.turn, context.request
        agent_id = turn.agent_id or _heir_of(earlier) or request.agent_id
        pinned = context.pinned.get(agent_id)
        if pinned is not None:
            agent, listed = pinned.agent, pinned.tools
        else:
            first = agent_id == request.agent_id
            if first and context.agent is not None:
                agent = context.agent
            else:
                agent = await self._store.agent(agent_id, tenant=None, version=turn.agent_version if first else 0)
            if first:
                _override(agent.agent_config, request)
            groups = server_groups(agent.agent_config)
            listed = v1.ListRuntimeToolsResponse()
            for name in dict.fromkeys(group_of(group.name) for group in groups):
                for tool in await self._toolbox.tools(name):
                    listed.data.add().CopyFrom(tool)
                    listed.data[-1].toolgroup_id = name
            if groups or agent_id != request.agent_id:  # else its version says all
                log.pin(Pin(agent=agent, tools=listed))
        turn.agent_id = agent_id
        groups = server_groups(agent.agent_config)
        by_group: dict[str, list[v1.ToolDef]] = {group_of(group.name): [] for group in groups}
        for tool in listed.data:
            by_group.setdefault(tool.toolgroup_id, []).append(tool)
        return Speaker(agent=agent, tools=offer(agent.agent_config, groups, by_group))


def _override(config: v1.AgentConfig, request: v1.CreateTurnRequest) -> None:
    """What a turn asks for in place of its agent's own."""
    if request.toolgroups:
        del config.toolgroups[:]
        config.toolgroups.extend(request.toolgroups)
    if request.HasField("tool_config"):
        config.tool_config.CopyFrom(request.tool_config)


def _heir_of(earlier: Sequence[v1.Turn]) -> str:
    """The agent that the turn before was handed over to; empty where it was not."""
    return earlier[-1].agent_id if earlier else ""

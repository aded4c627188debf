"""The tools of a turn as its model knows them: of the caller, of the tools service, and other agents."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.agents.retrieval import GROUP as RETRIEVAL
from stack_client.content import struct
from stack_client.errors import NotFoundError

Kind = Literal["client", "server", "agent", "handoff"]
LONGEST_NAME = 64
_ODD = re.compile(r"[^A-Za-z0-9_.-]")
# Llama models were trained to search the web under this name.
_SPOKEN = {"builtin::websearch/web_search": "brave_search"}
_QUESTION = {
    "type": "object",
    "properties": {"message": {"type": "string", "description": "The question or task, with all it needs to know."}},
    "required": ["message"],
    "additionalProperties": False,
}
_HANDOFF = {
    "type": "object",
    "properties": {"reason": {"type": "string", "description": "Why the dialog is handed over."}},
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class Offered:
    """One tool of a turn."""

    name: str
    """As the model calls it."""
    kind: Kind
    """Who runs it."""
    tool: str
    """Full name, `group/tool`; the bare name of tools of the caller; `agent/<id>` of agents."""
    definition: v1.ToolDef
    """Description, schema, effect, approval, bounds."""
    args: Struct | None = None
    """Arguments of the agent's own, merged over the model's."""

    @property
    def effect(self) -> "v1.ToolEffect.ValueType":
        """What a call changes; what nobody stated is treated as a write that must not be repeated."""
        return self.definition.effect or v1.TOOL_EFFECT_WRITE

    def declared(self) -> v1.ToolDefinition:
        """As the inference service is told of it."""
        tool = self.definition
        return v1.ToolDefinition(
            tool_name=self.name,
            description=tool.description,
            input_schema=tool.input_schema if tool.HasField("input_schema") else None,
            parameters={
                parameter.name: v1.ToolParamDefinition(
                    param_type=parameter.parameter_type,
                    description=parameter.description,
                    required=parameter.required if parameter.HasField("required") else None,
                    default=parameter.default if parameter.HasField("default") else None,
                )
                for parameter in tool.parameters
            },
        )


def server_groups(config: v1.AgentConfig) -> list[v1.AgentToolGroup]:
    """The groups whose tools the tools service runs; the one that stands for retrieval before answers is not."""
    return [group for group in config.toolgroups if group.name != RETRIEVAL]


def group_of(name: str) -> str:
    """The group of `group` or `group/tool`."""
    return name.partition("/")[0]


def choose(group: v1.AgentToolGroup, listed: Sequence[v1.ToolDef]) -> list[v1.ToolDef]:
    """The tools that a group, or `group/tool`, of an agent's configuration means.

    Raises:
        NotFoundError: If the group has no such tool.
    """
    wanted = group.name.partition("/")[2]
    chosen = [tool for tool in listed if wanted in {"", tool.name}]
    if not chosen and wanted:
        known = ", ".join(tool.name for tool in listed) or "none"
        raise NotFoundError(f"tool group {group_of(group.name)!r} has no tool {wanted!r}; its tools are: {known}")
    return chosen


def offer(
    config: v1.AgentConfig, groups: Sequence[v1.AgentToolGroup], listed: Mapping[str, Sequence[v1.ToolDef]]
) -> dict[str, Offered]:
    """All tools of an agent by the name that the model calls; clashing names get their group in front.

    Args:
        config: Of the agent.
        groups: Whose tools the tools service runs.
        listed: The tools of each such group.

    Raises:
        NotFoundError: If a group has no tool that is asked for.
    """
    found = [Offered(name=tool.name, kind="client", tool=tool.name, definition=tool) for tool in config.client_tools]
    found += [_agent(tool) for tool in config.agent_tools]
    for group in groups:
        args = group.args if group.HasField("args") else None
        for tool in choose(group, listed[group_of(group.name)]):
            full = f"{group_of(group.name)}/{tool.name}"
            spoken = _SPOKEN.get(full, tool.name)
            found.append(Offered(name=spoken, kind="server", tool=full, definition=tool, args=args))
    taken: dict[str, Offered] = {}
    for one in found:
        name = one.name if one.kind != "server" else _printable(one.name)
        if name in taken and taken[name].tool == one.tool:
            continue  # the same tool, named twice
        if name in taken:
            name = _printable(one.tool.replace("::", "_").replace("/", "__"))
        taken[name] = Offered(name=name, kind=one.kind, tool=one.tool, definition=one.definition, args=one.args)
    return taken


def _agent(tool: v1.AgentTool) -> Offered:
    definition = v1.ToolDef(
        name=tool.name,
        description=tool.description or (f"Hands the dialog over to {tool.name}." if tool.handoff else tool.name),
        input_schema=struct(_HANDOFF if tool.handoff else _QUESTION),
        # Its turn is found again by the call's key: asking twice makes one turn.
        effect=v1.TOOL_EFFECT_IDEMPOTENT_WRITE,
    )
    kind: Kind = "handoff" if tool.handoff else "agent"
    return Offered(name=tool.name, kind=kind, tool=f"agent/{tool.agent_id}", definition=definition)


def _printable(name: str) -> str:
    return _ODD.sub("_", name)[-LONGEST_NAME:]

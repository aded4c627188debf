"""What may stand in `Agent(tools=[...], approvals=...)`, and what the agents service is told of it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from llamastack import v1
from stack_client.content import struct
from stack_client.errors import InvalidArgumentError
from stack_client.results import Pending
from stack_client.tools import APPROVALS, FunctionTool

if TYPE_CHECKING:
    from stack_client.agent import Agent
    from stack_client.client import StackClient

Decide: TypeAlias = Callable[[Pending], Any]
"""Looks at a call: True allows it, False or a text (the reason) denies it, None leaves it to a person. May be async."""
Approvals: TypeAlias = str | Decide | Mapping[str, str | Decide]


@dataclass(frozen=True)
class ToolGroup:
    """A group of the tools service, or one tool of it as `group/tool`, with arguments for every call."""

    name: str
    """For example `builtin::websearch` or `builtin::rag/knowledge_search`."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Merged over the model's arguments."""


@dataclass(frozen=True)
class MCP:
    """An MCP server, which the stack's tools service speaks to.

    Agent("m", tools=[MCP("https://tools.example.com/mcp")])
    """

    endpoint: str
    """Its address, or `stdio:NAME` for a program that the operator configured."""
    name: str = ""
    """Names its tool group, `mcp::NAME`; empty takes the host, or the program's name."""
    tools: Sequence[str] = ()
    """Only these of its tools; empty means all."""
    secret: str = ""
    """Secret of the tools service with its credentials, for example a bearer token; empty means none."""
    approval: str = "never"
    """When a person must allow a call: `never`, `always` or `writes`."""

    @property
    def group(self) -> str:
        """Its tool group."""
        host = self.endpoint.partition("://")[2] or self.endpoint.partition(":")[2] or self.endpoint
        return f"mcp::{self.name or host.partition('/')[0]}"

    async def ensure(self, client: "StackClient") -> None:
        """Register its group, unless that is done.

        Raises:
            StackError: If the tools service refuses the server or cannot reach it.
        """
        await client.tools.register(
            self.group, mcp_endpoint=self.endpoint, secrets_ref=self.secret, approval=self.approval
        )


@dataclass
class Toolset:
    """The tools of an agent, sorted by who runs them."""

    functions: dict[str, FunctionTool] = field(default_factory=dict)
    """Those that run in this program, by name."""
    groups: list[ToolGroup] = field(default_factory=list)
    """Those that the stack runs."""
    servers: list[MCP] = field(default_factory=list)
    """MCP servers whose groups are registered before the first run."""
    agents: list["Agent"] = field(default_factory=list)
    """Agents that answer questions of this one."""

    @classmethod
    def of(cls, tools: Sequence[Any], agent_type: "type[Agent]") -> "Toolset":
        """Sort what a user gave.

        Raises:
            InvalidArgumentError: If something is no tool, or a name occurs twice.
        """
        found = cls()
        for one in [tools] if isinstance(tools, str) or callable(tools) else tools:
            found._add(one, agent_type)
        return found

    def _add(self, one: Any, agent_type: "type[Agent]") -> None:  # noqa: ANN401 (whatever a user gives)
        if isinstance(one, agent_type):
            self.agents.append(one)
        elif isinstance(one, str):
            self.groups.append(ToolGroup(one))
        elif isinstance(one, ToolGroup):
            self.groups.append(one)
        elif isinstance(one, MCP):
            self.servers.append(one)
        elif isinstance(one, Mapping) and "name" in one:  # as Llama Stack's clients write it
            self.groups.append(ToolGroup(one["name"], one.get("args", {})))
        elif callable(one):
            tool = FunctionTool(one)
            if tool.name in self.functions:
                raise InvalidArgumentError(f"there are two tools called {tool.name!r}; rename one", field="tools")
            self.functions[tool.name] = tool
        else:
            message = f"{one!r} is no tool: give a function, the name of a tool group, ToolGroup, MCP or an Agent"
            raise InvalidArgumentError(message, field="tools")

    def toolgroups(self) -> list[v1.AgentToolGroup]:
        """What the agents service is told of groups."""
        groups = [*self.groups]
        for server in self.servers:
            groups += [ToolGroup(f"{server.group}/{name}") for name in server.tools] or [ToolGroup(server.group)]
        return [v1.AgentToolGroup(name=one.name, args=struct(one.args) if one.args else None) for one in groups]


@dataclass
class ApprovalPolicy:
    """Which calls a person must allow, and what decides in a person's place."""

    rules: list[v1.ApprovalRule] = field(default_factory=list)
    """For the agents service."""
    deciders: dict[str, Decide] = field(default_factory=dict)
    """By tool; `*` for all others."""

    @classmethod
    def of(cls, approvals: Approvals | None) -> "ApprovalPolicy":
        """Read what a user gave: `"always"`, a function, or a mapping of tools to these.

        Raises:
            InvalidArgumentError: If a policy is unknown.
        """
        found = cls()
        given = approvals if isinstance(approvals, Mapping) else {} if approvals is None else {"*": approvals}
        for tool, policy in given.items():
            if callable(policy):
                found.deciders[tool] = policy
                found.rules.append(v1.ApprovalRule(tool=tool, approval=v1.TOOL_APPROVAL_ALWAYS))
            elif policy in APPROVALS:
                found.rules.append(v1.ApprovalRule(tool=tool, approval=APPROVALS[policy]))
            else:
                message = f"approvals: {policy!r} is none of {', '.join(APPROVALS)}, nor a function"
                raise InvalidArgumentError(message, field="approvals")
        return found

    async def decide(self, one: Pending) -> v1.ToolDecision | None:
        """What is decided without a person; None where nobody can."""
        names = (one.tool, one.raw.call.tool_name, one.tool.partition("/")[0], "*")
        decider = next((self.deciders[name] for name in names if name in self.deciders), None)
        if decider is None:
            return None
        said = decider(one)
        if inspect.isawaitable(said):
            said = await said
        if said is None:
            return None
        if said is True:
            kind, reason = v1.TOOL_DECISION_KIND_APPROVE, ""
        else:
            kind, reason = v1.TOOL_DECISION_KIND_DENY, said if isinstance(said, str) else ""
        return v1.ToolDecision(call_id=one.id, kind=kind, reason=reason, decided_by="a function of the caller")

"""What a response needs to run: the request as an agent's configuration, with its tools and their names."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.agents.offered import Offered, group_of, offer, server_groups
from services.agents.responses.request import wants_logprobs
from services.agents.turn_store import Pin
from stack_client.content import sampling, struct
from stack_client.errors import InvalidArgumentError, UnsupportedError
from stack_client.filters import plain_filter

WEB = "builtin::websearch"
FILES = "builtin::rag/knowledge_search"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MODES = {
    v1.RESPONSE_TOOL_CHOICE_MODE_UNSPECIFIED: "auto",
    v1.RESPONSE_TOOL_CHOICE_MODE_AUTO: "auto",
    v1.RESPONSE_TOOL_CHOICE_MODE_REQUIRED: "required",
    v1.RESPONSE_TOOL_CHOICE_MODE_NONE: "none",
}


_PAGES: Mapping[int, int] = {v1.SEARCH_CONTEXT_SIZE_LOW: 3, v1.SEARCH_CONTEXT_SIZE_HIGH: 10}
"""Pages that a search shows to the model; medium is what the search does by itself."""
_PRIORITIES: Mapping[int, int] = {v1.SERVICE_TIER_FLEX: -10, v1.SERVICE_TIER_PRIORITY: 10}


@dataclass(kw_only=True)
class Setup:
    """How a response runs, as it is kept with it."""

    labels: dict[str, str] = field(default_factory=dict)
    """Labels of MCP servers by tool group."""
    own: list[str] = field(default_factory=list)
    """Groups that were registered for this response alone."""
    include: list["v1.ResponseInclude.ValueType"] = field(default_factory=list)
    """What its items are shown with beyond the usual."""
    approved: list[dict[str, str]] = field(default_factory=list)
    """Calls that the input allowed: `call_id`, `name`, `tool`, `arguments`, `approval`."""
    pin: Pin = field(default_factory=lambda: Pin(agent=v1.Agent(), tools=v1.ListRuntimeToolsResponse()))
    """The configuration and the tools as they were listed."""

    before: Sequence[v1.Message] = ()
    """What stands before the turn's own messages; kept with the turn."""

    @property
    def config(self) -> v1.AgentConfig:
        """The agent's configuration."""
        return self.pin.agent.agent_config

    def facts(self) -> str:
        """What is kept beside the pin, as JSON."""
        return json.dumps({"labels": self.labels, "own": self.own, "approved": self.approved, "include": self.include})

    @classmethod
    def of(cls, facts: str, pin: Pin) -> "Setup":
        """As it was kept."""
        return cls(**json.loads(facts), pin=pin)

    def tools(self) -> dict[str, Offered]:
        """The tools by the name that the model calls.

        Raises:
            NotFoundError: If a group has no tool that is asked for.
        """
        groups = server_groups(self.config)
        by_group: dict[str, list[v1.ToolDef]] = {group_of(group.name): [] for group in groups}
        for tool in self.pin.tools.data:
            by_group.setdefault(tool.toolgroup_id, []).append(tool)
        return offer(self.config, groups, by_group)

    def listed(self, group: str) -> list[v1.MCPListedTool]:
        """The tools of an MCP server, as its list shows them."""
        return [
            v1.MCPListedTool(
                name=tool.name,
                description=tool.description if tool.HasField("description") else None,
                input_schema=tool.input_schema,
            )
            for tool in self.pin.tools.data
            if tool.toolgroup_id == group
        ]


def configure(
    request: v1.CreateResponseRequest,
    *,
    instructions: str,
    groups: Mapping[int, str],
    default_shields: Sequence[str] = (),
) -> Setup:
    """The request as an agent's configuration, without the tools that its groups list.

    Args:
        request: Checked.
        instructions: With the prompt's.
        groups: The tool group of each MCP tool, by its place among the tools.
        default_shields: Those that stand for `default_guardrails`.

    Raises:
        InvalidArgumentError: If a tool lacks what it needs.
        UnsupportedError: If a tool asks for what is not built.
    """
    config = v1.AgentConfig(model=request.model, instructions=instructions)
    config.sampling_params.CopyFrom(
        sampling(
            temperature=request.temperature if request.HasField("temperature") else None,
            top_p=request.top_p if request.HasField("top_p") else None,
            frequency_penalty=request.frequency_penalty if request.HasField("frequency_penalty") else None,
            presence_penalty=request.presence_penalty if request.HasField("presence_penalty") else None,
        )
    )
    if request.HasField("max_infer_iters"):
        config.max_infer_iters = request.max_infer_iters
    if request.HasField("parallel_tool_calls") and not request.parallel_tool_calls:
        config.max_parallel_tools = 1
        config.tool_config.parallel_tool_calls = False
    shields = list(dict.fromkeys([*(guardrail.type for guardrail in request.guardrails), *default_shields]))
    config.input_shields.extend(shields)
    config.output_shields.extend(shields)
    _take_format(request, config)
    if wants_logprobs(request):
        config.logprobs.top_k = request.top_logprobs
    if request.HasField("max_tool_calls"):
        config.max_tool_calls = request.max_tool_calls
    config.compaction.drop_oldest = request.truncation == v1.RESPONSE_TRUNCATION_AUTO
    config.priority = _PRIORITIES.get(request.service_tier, 0)
    config.show_thoughts = True
    setup = Setup(
        include=list(request.include),
        pin=Pin(agent=v1.Agent(agent_config=config, version=1), tools=v1.ListRuntimeToolsResponse()),
    )
    for index, tool in enumerate(request.tools):
        _take_tool(tool, setup, field=f"tools[{index}]", group=groups.get(index, ""))
    return setup


def _take_format(request: v1.CreateResponseRequest, config: v1.AgentConfig) -> None:
    wanted = request.text.format
    match wanted.WhichOneof("format"):
        case "json_schema":
            config.response_format.json_schema.CopyFrom(wanted.json_schema.schema)
        case "json_object":
            config.response_format.json_object.SetInParent()


def _take_tool(tool: v1.ResponseTool, setup: Setup, *, field: str, group: str) -> None:
    config = setup.config
    match tool.WhichOneof("tool"):
        case "function":
            function = tool.function
            _check_name(function.name, config, field=f"{field}.function.name")
            declared = config.client_tools.add(name=function.name)
            if function.HasField("description"):
                declared.description = function.description
            declared.input_schema.CopyFrom(function.parameters)
            if not function.parameters.fields:
                declared.input_schema.update({"type": "object", "properties": {}})
        case "web_search":
            _refuse_web(tool.web_search, field=f"{field}.web_search")
            most = _PAGES.get(tool.web_search.search_context_size)
            config.toolgroups.add(name=WEB, args=struct({"max_results": most}) if most else None)
        case "file_search":
            config.toolgroups.add(name=FILES).args.CopyFrom(_file_args(tool.file_search, field=f"{field}.file_search"))
        case "mcp":
            _take_mcp(tool.mcp, setup, group=group)
        case _:
            raise InvalidArgumentError(f"{field} has no kind", reason="MISSING_FIELD", field=field)


def _check_name(name: str, config: v1.AgentConfig, *, field: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError(f"{field} is {name!r}; use letters, digits, '_' and '-', at most 64", field=field)
    if any(tool.name == name for tool in config.client_tools):
        raise InvalidArgumentError(f"{field}: there are two functions called {name!r}", field=field)


def _refuse_web(tool: v1.WebSearchTool, *, field: str) -> None:
    asked = {
        "filters": bool(tool.filters.allowed_domains),
        "user_location": tool.HasField("user_location"),
    }
    for name, wanted in asked.items():
        if wanted:
            message = f"{field}.{name}: the stack's web search takes a query only; leave it out"
            raise UnsupportedError(message, field=f"{field}.{name}")


def _file_args(tool: v1.FileSearchTool, *, field: str) -> Struct:
    if not tool.vector_store_ids:
        message = f"{field}.vector_store_ids is empty; name at least one"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field=f"{field}.vector_store_ids")
    most = tool.max_num_results if tool.HasField("max_num_results") else 10
    if not 1 <= most <= 50:
        where = f"{field}.max_num_results"
        raise InvalidArgumentError(f"{where} is {most}; allowed: 1 to 50", field=where)
    config: dict[str, Any] = {"max_chunks": most}
    if tool.HasField("filters"):
        config["filters"] = plain_filter(tool.filters)
    if tool.HasField("ranking_options"):
        config |= _ranking(tool.ranking_options, field=f"{field}.ranking_options")
    args = struct({"vector_db_ids": list(tool.vector_store_ids), "query_config": config})
    assert args is not None
    return args


def _ranking(options: v1.RankingOptions, *, field: str) -> dict[str, Any]:
    """Ranking options as settings of the search tool; a ranker by name joins words and vectors."""
    config: dict[str, Any] = {}
    if options.HasField("score_threshold"):
        config["score_threshold"] = options.score_threshold
    weights = options.hybrid_search
    total = weights.embedding_weight + weights.text_weight
    if options.ranker == "weighted" or total > 0:
        alpha = weights.embedding_weight / total if total > 0 else options.alpha if options.HasField("alpha") else 0.5
        config |= {"mode": "hybrid", "ranker": {"type": "weighted", "alpha": alpha}}
    elif options.ranker == "rrf":
        impact = {"impact_factor": options.impact_factor} if options.HasField("impact_factor") else {}
        config |= {"mode": "hybrid", "ranker": {"type": "rrf", **impact}}
    elif options.ranker not in {"", "none", "auto", "default-2024-11-15", "default_2024_08_21"}:
        message = f"{field}.ranker is {options.ranker!r}; file search has auto, none, rrf, weighted"
        raise UnsupportedError(message, field=f"{field}.ranker")
    return config


def _take_mcp(tool: v1.MCPTool, setup: Setup, *, group: str) -> None:
    config = setup.config
    setup.labels[group] = tool.server_label
    for name in [f"{group}/{allowed}" for allowed in tool.allowed_tools] or [group]:
        config.toolgroups.add(name=name)
    match tool.WhichOneof("require_approval"):
        case "approval_mode" if tool.approval_mode == v1.MCP_APPROVAL_MODE_ALWAYS:
            config.approvals.add(tool=group, approval=v1.TOOL_APPROVAL_ALWAYS)
        case "approval_filter":
            always, never = tool.approval_filter.always, tool.approval_filter.never
            for name in always:
                config.approvals.add(tool=f"{group}/{name}", approval=v1.TOOL_APPROVAL_ALWAYS)
            for name in never:
                config.approvals.add(tool=f"{group}/{name}", approval=v1.TOOL_APPROVAL_NEVER)


def choose_tool(request: v1.CreateResponseRequest, setup: Setup) -> None:
    """Take the request's choice of tools into the configuration, once the tools are listed.

    Raises:
        InvalidArgumentError: If there is no such tool.
        UnsupportedError: If the choice cannot be demanded of models.
    """
    choice, tools = request.tool_choice, setup.tools()
    match choice.WhichOneof("choice"):
        case None:
            return
        case "mode":
            wanted = _MODES[choice.mode]
            found = [wanted] if tools or wanted != "required" else []
        case "function":
            found = [name for name, one in tools.items() if one.kind == "client" and name == choice.function.name]
        case "file_search":
            found = [name for name, one in tools.items() if one.tool == FILES]
        case "web_search":
            found = [name for name, one in tools.items() if group_of(one.tool) == WEB]
        case "mcp":
            wanted_tools = {
                f"{group}/{choice.mcp.name}"
                for group, label in setup.labels.items()
                if label == choice.mcp.server_label
            }
            if not choice.mcp.HasField("name"):
                message = "tool_choice.mcp: only one tool can be demanded; give its name"
                raise UnsupportedError(message, field="tool_choice.mcp.name")
            found = [name for name, one in tools.items() if one.tool in wanted_tools]
        case "allowed_tools":
            found = _allow(choice.allowed_tools, setup, tools)
        case kind:
            raise UnsupportedError(f"tool_choice.{kind} is not built; choose otherwise", field=f"tool_choice.{kind}")
    if not found:
        known = ", ".join(sorted(tools)) or "none"
        message = f"tool_choice asks for a tool that the response does not have; its tools are: {known}"
        raise InvalidArgumentError(message, field="tool_choice")
    setup.config.tool_config.tool_choice = found[0]


def _allow(choice: v1.AllowedToolsChoice, setup: Setup, tools: Mapping[str, Offered]) -> list[str]:
    """Leave only some tools to the model; gives what may be demanded of it, nothing where one is not there."""
    kept: dict[str, Offered] = {}
    for wanted in choice.tools:
        fits = {name: one for name, one in tools.items() if _is_meant(wanted, name, one, setup.labels)}
        if not fits:
            return []
        kept |= fits
    if not kept:
        return []
    names = {name for name, one in kept.items() if one.kind == "client"}
    own = [tool for tool in setup.config.client_tools if tool.name in names]
    del setup.config.client_tools[:]
    setup.config.client_tools.extend(own)
    args = {group.name: group.args for group in setup.config.toolgroups if group.HasField("args")}
    del setup.config.toolgroups[:]
    for one in kept.values():
        if one.kind == "server":
            given = args.get(one.tool, args.get(group_of(one.tool)))
            setup.config.toolgroups.add(name=one.tool, args=given)
    return [_MODES[choice.mode]]


def _is_meant(wanted: Struct, name: str, one: Offered, labels: Mapping[str, str]) -> bool:
    """Whether an entry of `allowed_tools` means a tool."""
    fields = {key: value.string_value for key, value in wanted.fields.items()}
    match fields.get("type", ""):
        case "function":
            return one.kind == "client" and name == fields.get("name")
        case "file_search":
            return one.tool == FILES
        case "mcp":
            group, _, tool = one.tool.partition("/")
            return labels.get(group) == fields.get("server_label") and fields.get("name", tool) == tool
        case kind:
            return kind.startswith("web_search") and group_of(one.tool) == WEB


def mcp_tools(tools: Sequence[v1.ResponseTool]) -> list[tuple[int, v1.MCPTool]]:
    """The MCP tools with their places; checked.

    Raises:
        InvalidArgumentError: If one lacks its label or its address.
        UnsupportedError: If it brings secrets.
    """
    found, labels = [], set()
    for index, tool in enumerate(tools):
        if tool.WhichOneof("tool") != "mcp":
            continue
        where, mcp = f"tools[{index}].mcp", tool.mcp
        if not _NAME.fullmatch(mcp.server_label) or mcp.server_label in labels:
            message = f"{where}.server_label: use letters, digits, '_' and '-', at most 64, each label once"
            raise InvalidArgumentError(message, field=f"{where}.server_label")
        if bool(mcp.server_url) == bool(mcp.connector_id):
            message = f"{where}: give server_url, or connector_id, the name of a registered tool group"
            raise InvalidArgumentError(message, field=f"{where}.server_url")
        for name in ("headers", "authorization"):
            if getattr(mcp, name):
                message = (
                    f"{where}.{name}: secrets are kept by the tools service only; register a tool group with "
                    "secrets_ref and name it as connector_id"
                )
                raise UnsupportedError(message, field=f"{where}.{name}")
        labels.add(mcp.server_label)
        found.append((index, mcp))
    return found

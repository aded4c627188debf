"""What an agent and a turn may ask for."""

import re

from llamastack import v1
from services.agents.approvals import check_rules
from services.agents.attachments import check_documents
from services.agents.budget import check_budget
from services.agents.compaction import check_compaction
from services.agents.retrieval import GROUP, rag_request
from stack_client.errors import InvalidArgumentError, UnsupportedError

MAX_INFER_ITERS = 100
MAX_PARALLEL_TOOLS = 64
MOST_PRIORITY = 100
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check_agent(config: v1.AgentConfig) -> None:
    """Refuse what cannot be honoured.

    Raises:
        InvalidArgumentError: If a value is missing or out of range.
        UnsupportedError: If a field asks for a service that this stack does not have.
    """
    if not config.model:
        raise InvalidArgumentError("agent_config.model is empty", reason="MISSING_FIELD", field="agent_config.model")
    for index, group in enumerate(config.toolgroups):
        field = f"agent_config.toolgroups[{index}]"
        if not group.name:
            message = f"{field}.name is empty; name a tool group, or group/tool"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field=f"{field}.name")
        if group.name == GROUP:
            rag_request(group, field=field)
    if config.HasField("max_infer_iters") and not 1 <= config.max_infer_iters <= MAX_INFER_ITERS:
        field = "agent_config.max_infer_iters"
        raise InvalidArgumentError(f"{field} is {config.max_infer_iters}; allowed: 1 to {MAX_INFER_ITERS}", field=field)
    if config.HasField("max_parallel_tools") and not 1 <= config.max_parallel_tools <= MAX_PARALLEL_TOOLS:
        field = "agent_config.max_parallel_tools"
        message = f"{field} is {config.max_parallel_tools}; allowed: 1 to {MAX_PARALLEL_TOOLS}"
        raise InvalidArgumentError(message, field=field)
    _check_inference(config)
    _check_names(config)
    check_rules(config, field="agent_config.approvals")
    check_budget(config.budget, field="agent_config.budget")
    check_compaction(config.compaction, field="agent_config.compaction")
    _check_choice(config.tool_config, config, field="agent_config.tool_config.tool_choice")


def _check_inference(config: v1.AgentConfig) -> None:
    if config.HasField("max_tool_calls") and config.max_tool_calls < 1:
        field = "agent_config.max_tool_calls"
        raise InvalidArgumentError(f"{field} is 0; give at least 1, or leave it unset", field=field)
    if abs(config.priority) > MOST_PRIORITY:
        field = "agent_config.priority"
        message = f"{field} is {config.priority}; allowed: from -{MOST_PRIORITY} to {MOST_PRIORITY}"
        raise InvalidArgumentError(message, field=field)
    if config.HasField("logprobs") and config.output_shields:
        field = "agent_config.logprobs"
        raise UnsupportedError(f"{field}: they show an answer that output_shields may withhold", field=field)


def _check_names(config: v1.AgentConfig) -> None:
    named = [(f"client_tools[{index}]", tool.name) for index, tool in enumerate(config.client_tools)]
    named += [(f"agent_tools[{index}]", tool.name) for index, tool in enumerate(config.agent_tools)]
    names = [name for _, name in named]
    for index, (place, name) in enumerate(named):
        field = f"agent_config.{place}.name"
        if not name:
            raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
        if name in names[:index]:
            raise InvalidArgumentError(f"{field}: there are two tools called {name!r}", field=field)
        if not _NAME.fullmatch(name):
            message = f"{field} is {name!r}; use letters, digits, '_', '-' and '.', at most 64"
            raise InvalidArgumentError(message, field=field)


def check_turn(request: v1.CreateTurnRequest, config: v1.AgentConfig) -> None:
    """Refuse what cannot be honoured.

    Raises:
        InvalidArgumentError: If a value is missing or out of range.
        UnsupportedError: If a field asks for what is not built yet.
    """
    if not request.messages:
        raise InvalidArgumentError("messages is empty; ask something", reason="MISSING_FIELD", field="messages")
    for index, entry in enumerate(request.messages):
        if entry.WhichOneof("message") is None:
            field = f"messages[{index}]"
            raise InvalidArgumentError(f"{field} has no role: set user or tool", field=field)
    check_documents(request.documents)
    for index, group in enumerate(request.toolgroups):
        if group.name == GROUP:
            rag_request(group, field=f"toolgroups[{index}]")
    if request.HasField("tool_config"):
        _check_choice(request.tool_config, config, field="tool_config.tool_choice")


def _check_choice(tool_config: v1.ToolConfig, config: v1.AgentConfig, *, field: str) -> None:
    choice = tool_config.tool_choice
    if choice in {"", "auto", "none"}:
        return
    if any(group.name != GROUP for group in config.toolgroups):
        return  # which tools those have is known when the turn begins
    names = {tool.name for tool in config.client_tools} | {tool.name for tool in config.agent_tools}
    if choice == "required" and names:
        return
    if choice not in names:
        known = ", ".join(sorted(names)) or "none"
        raise InvalidArgumentError(f"{field} is {choice!r}; the agent's tools are: {known}", field=field)

"""What an agent and a turn may ask for."""

from llamastack import v1
from services.agents.retrieval import GROUP, rag_request
from stack_client.errors import InvalidArgumentError, UnsupportedError

MAX_INFER_ITERS = 100

_NO_TOOLS = (
    "the tools service is not part of this stack yet; give Python functions as client tools, or "
    f"{GROUP} to search memory before each answer"
)


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
        if group.name != GROUP:
            raise UnsupportedError(f"{field}: {group.name!r}: {_NO_TOOLS}", field=field)
        rag_request(group, field=field)
    if config.HasField("max_infer_iters") and not 1 <= config.max_infer_iters <= MAX_INFER_ITERS:
        field = "agent_config.max_infer_iters"
        raise InvalidArgumentError(f"{field} is {config.max_infer_iters}; allowed: 1 to {MAX_INFER_ITERS}", field=field)
    names = [tool.name for tool in config.client_tools]
    for index, name in enumerate(names):
        field = f"agent_config.client_tools[{index}].name"
        if not name:
            raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
        if name in names[:index]:
            raise InvalidArgumentError(f"{field}: there are two tools called {name!r}", field=field)
    _check_choice(config.tool_config, config, field="agent_config.tool_config.tool_choice")


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
    if request.documents:
        message = "documents: not built yet; put the text into a message"
        raise UnsupportedError(message, field="documents")
    if request.toolgroups:
        raise UnsupportedError(f"toolgroups: {_NO_TOOLS}", field="toolgroups")
    if request.HasField("tool_config"):
        _check_choice(request.tool_config, config, field="tool_config.tool_choice")


def _check_choice(tool_config: v1.ToolConfig, config: v1.AgentConfig, *, field: str) -> None:
    choice = tool_config.tool_choice
    if choice in {"", "auto", "none"}:
        return
    names = {tool.name for tool in config.client_tools}
    if choice == "required" and names:
        return
    if choice not in names:
        known = ", ".join(sorted(names)) or "none"
        raise InvalidArgumentError(f"{field} is {choice!r}; the agent's tools are: {known}", field=field)

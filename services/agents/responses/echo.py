"""A response as it is when it is created: the request repeated with its defaults."""

from llamastack import v1
from services.agents.turn_log import now

_TIERS = {v1.SERVICE_TIER_FLEX, v1.SERVICE_TIER_PRIORITY}


def created(request: v1.CreateResponseRequest, response_id: str, *, instructions: str) -> v1.ResponseObject:
    """The response before anything has happened."""
    background = request.background
    temperature = request.temperature
    if not request.HasField("temperature") and request.HasField("top_p"):
        temperature = 1.0  # see `stack_client.content.sampling`
    echo = v1.ResponseObject(
        id=response_id,
        created_at=now(),
        status=v1.RESPONSE_STATUS_QUEUED if background else v1.RESPONSE_STATUS_IN_PROGRESS,
        model=request.model,
        parallel_tool_calls=request.parallel_tool_calls if request.HasField("parallel_tool_calls") else True,
        temperature=temperature,
        top_p=request.top_p if request.HasField("top_p") else 1.0,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        truncation=request.truncation or v1.RESPONSE_TRUNCATION_DISABLED,
        top_logprobs=request.top_logprobs,
        metadata=request.metadata,
        store=not request.HasField("store") or request.store,
        background=background,
        service_tier=request.service_tier if request.service_tier in _TIERS else v1.SERVICE_TIER_DEFAULT,
    )
    if instructions:
        echo.instructions = instructions
    for name in (
        "previous_response_id", "conversation", "max_output_tokens", "max_infer_iters", "max_tool_calls",
        "prompt_cache_key", "safety_identifier", "user",
    ):  # fmt: skip
        if request.HasField(name):
            setattr(echo, name, getattr(request, name))
    if request.HasField("prompt"):
        echo.prompt.CopyFrom(request.prompt)
    if request.HasField("reasoning"):
        echo.reasoning.CopyFrom(request.reasoning)
    echo.text.CopyFrom(request.text)
    if not echo.text.format.WhichOneof("format"):
        echo.text.format.text.SetInParent()
    echo.tool_choice.CopyFrom(request.tool_choice)
    if not echo.tool_choice.WhichOneof("choice"):
        echo.tool_choice.mode = v1.RESPONSE_TOOL_CHOICE_MODE_AUTO
    for tool in request.tools:
        shown = echo.tools.add()
        shown.CopyFrom(tool)
        if tool.WhichOneof("tool") == "mcp":  # no addresses, no secrets
            shown.mcp.CopyFrom(v1.MCPTool(server_label=tool.mcp.server_label, allowed_tools=tool.mcp.allowed_tools))
    return echo

"""What a request may ask of any provider; providers check further what only they know."""

import math

from llamastack import v1
from services.inference.engine.request import Sampling
from stack_client.errors import InvalidArgumentError

MAX_STOP_STRINGS = 16
MAX_ANSWERS = 16
MOST_PRIORITY = 100
MAX_WINDOWS = 1024
MAX_ASKED_TOKENS = 64


def sampling_of(params: v1.SamplingParams, logprobs: v1.LogProbConfig | None) -> Sampling:
    """Check the sampling parameters and read them.

    Raises:
        InvalidArgumentError: If a value is out of range; `field` names it.
    """
    strategy = params.strategy
    temperature, top_p, top_k = 0.0, 1.0, 0
    match strategy.WhichOneof("strategy"):
        case "top_p":
            chosen = strategy.top_p
            temperature = chosen.temperature if chosen.HasField("temperature") else 1.0
            top_p = chosen.top_p if chosen.HasField("top_p") else 0.95
            where = "strategy.top_p"
        case "top_k":
            temperature = strategy.top_k.temperature if strategy.top_k.HasField("temperature") else 1.0
            top_p = strategy.top_k.top_p if strategy.top_k.HasField("top_p") else 1.0
            top_k = strategy.top_k.top_k
            _check(top_k >= 1, "strategy.top_k.top_k", top_k, "at least 1")
            where = "strategy.top_k"
        case _:
            where = "strategy.greedy"
    if where != "strategy.greedy":
        _check(0 < temperature <= 2, f"{where}.temperature", temperature, "above 0 and at most 2, or strategy greedy")
        _check(0 < top_p <= 1, f"{where}.top_p", top_p, "above 0 and at most 1")
    repetition = params.repetition_penalty if params.HasField("repetition_penalty") else 1.0
    _check(0.01 <= repetition <= 2, "repetition_penalty", repetition, "from 0.01 to 2")
    for name in ("frequency_penalty", "presence_penalty"):
        _check(-2 <= getattr(params, name) <= 2, name, getattr(params, name), "from -2 to 2")
    for token, bias in params.logit_bias.items():
        _check(-100 <= bias <= 100, f"logit_bias[{token}]", bias, "from -100 to 100")
    _check(params.max_tokens >= 0, "max_tokens", params.max_tokens, "0 (up to the context) or more")
    _check(len(params.stop) <= MAX_STOP_STRINGS, "stop", len(params.stop), f"at most {MAX_STOP_STRINGS} strings")
    _check(all(params.stop), "stop", "an empty string", "non-empty strings")
    top_logprobs = None
    asked_tokens: tuple[int, ...] = ()
    if logprobs is not None:
        asked_tokens = tuple(logprobs.token_ids)
        if len(asked_tokens) > MAX_ASKED_TOKENS:
            message = f"logprobs.token_ids names {len(asked_tokens)} tokens; allowed: at most {MAX_ASKED_TOKENS}"
            raise InvalidArgumentError(message, field="logprobs.token_ids")
        top_logprobs = logprobs.top_k
        if not 0 <= top_logprobs <= 20:
            raise InvalidArgumentError(
                f"logprobs.top_k is {top_logprobs}; allowed: from 0 to 20", field="logprobs.top_k"
            )
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        logit_bias=tuple(sorted(params.logit_bias.items())),
        seed=params.seed if params.HasField("seed") else None,
        top_logprobs=top_logprobs,
        asked_tokens=asked_tokens,
    )


def check_chat(request: v1.ChatCompletionRequest) -> None:
    """Refuse by name what no provider offers yet, and tool choices that make no sense.

    Raises:
        InvalidArgumentError: If a field has a value that is not allowed.
        UnsupportedError: If a field asks for something that is not built yet.
    """
    check_priority(request.priority)
    if request.HasField("n") and not 1 <= request.n <= MAX_ANSWERS:
        raise InvalidArgumentError(f"n is {request.n}; allowed: 1 to {MAX_ANSWERS}", field="n")
    choice = request.tool_config.tool_choice
    if choice in {"", "auto", "none"}:
        return
    if not request.tools:
        raise InvalidArgumentError(f"tool_choice {choice!r} needs tools", field="tool_config.tool_choice")
    if choice != "required" and choice not in {tool.tool_name for tool in request.tools}:
        raise InvalidArgumentError(
            f"tool_choice names {choice!r}, which is none of the tools given", field="tool_config.tool_choice"
        )


def allowed_tokens(prompt: int, wanted: int, *, context: int, model_id: str) -> int:
    """New tokens allowed: as many as wanted, or up to the context.

    Raises:
        InvalidArgumentError: If they do not fit.
    """
    if prompt + max(wanted, 1) > context:
        raise InvalidArgumentError(
            f"the prompt has {prompt} tokens and {max(wanted, 1)} more are asked for, but {model_id} reads {context}; "
            "shorten the messages or lower max_tokens",
            reason="CONTEXT_LENGTH_EXCEEDED",
            metadata={"prompt_tokens": str(prompt), "context_length": str(context)},
            field="messages",
        )
    return wanted or context - prompt


def allows_several_calls(config: v1.ToolConfig) -> bool:
    """Whether one answer may have several tool calls."""
    return not config.HasField("parallel_tool_calls") or config.parallel_tool_calls


def check_classify(request: v1.ClassifyRequest) -> None:
    """Refuse temperatures and windows that make no sense.

    Raises:
        InvalidArgumentError: If a field has a value that is not allowed; `field` names it.
    """
    if request.HasField("temperature") and not (request.temperature > 0 and math.isfinite(request.temperature)):
        message = f"temperature is {request.temperature:g}; allowed: above 0"
        raise InvalidArgumentError(message, field="temperature")
    if not request.HasField("windows"):
        return
    if request.text_truncation in {v1.TEXT_TRUNCATION_START, v1.TEXT_TRUNCATION_END}:
        message = "windows and text_truncation exclude each other: windows read the whole text"
        raise InvalidArgumentError(message, field="text_truncation")
    if request.windows.HasField("max_windows") and not 1 <= request.windows.max_windows <= MAX_WINDOWS:
        message = f"windows.max_windows is {request.windows.max_windows}; allowed: 1 to {MAX_WINDOWS}"
        raise InvalidArgumentError(message, field="windows.max_windows")


def check_rerank(request: v1.RerankRequest) -> None:
    """Refuse a request for no results.

    Raises:
        InvalidArgumentError: If it is one.
    """
    if request.HasField("max_num_results") and request.max_num_results < 1:
        message = f"max_num_results is {request.max_num_results}; allowed: at least 1, or leave it out for all"
        raise InvalidArgumentError(message, field="max_num_results")


def check_tokenize(request: v1.TokenizeRequest) -> None:
    """Refuse fields that do not go with the input.

    Raises:
        InvalidArgumentError: If there is no input, or one with a field of the other kind.
    """
    kind = request.WhichOneof("input")
    if kind is None:
        raise InvalidArgumentError("input is missing; set text or dialog", reason="MISSING_FIELD", field="input")
    if request.HasField("template_arguments") and kind != "dialog":
        field = "template_arguments"
        raise InvalidArgumentError(f"{field} are for a dialog; a text is not rendered", field=field)
    if request.parse_special and kind != "text":
        raise InvalidArgumentError(
            "parse_special is for a text; messages never hold special tokens", field="parse_special"
        )


def check_priority(priority: int) -> None:
    """Refuse a priority out of range.

    Raises:
        InvalidArgumentError: If it is.
    """
    if abs(priority) > MOST_PRIORITY:
        message = f"priority is {priority}; allowed: from -{MOST_PRIORITY} to {MOST_PRIORITY}"
        raise InvalidArgumentError(message, field="priority")


def _check(allowed: bool, field: str, value: object, range_: str) -> None:  # noqa: FBT001
    """Raise for a value out of range; NaN is out of every range by comparison."""
    if not allowed or (isinstance(value, float) and math.isnan(value)):
        name = f"sampling_params.{field}"
        raise InvalidArgumentError(f"{name} is {value}; allowed: {range_}", field=name)

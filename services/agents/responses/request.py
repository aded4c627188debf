"""What a response may ask for: refusals, each naming its field."""

from collections.abc import Iterable, Mapping

from llamastack import v1
from stack_client.errors import InvalidArgumentError, UnsupportedError

MAX_METADATA = 16
MAX_INFER_ITERS = 100
MAX_TOP_LOGPROBS = 20
LEAST_OUTPUT_TOKENS = 16


def check_request(request: v1.CreateResponseRequest) -> None:
    """Refuse what cannot be honoured.

    Raises:
        InvalidArgumentError: If a value is missing or out of range.
        UnsupportedError: If a field asks for what is not built.
    """
    if not request.model:
        raise InvalidArgumentError("model is empty", reason="MISSING_FIELD", field="model")
    if request.HasField("previous_response_id") and request.HasField("conversation"):
        message = "previous_response_id and conversation exclude each other; give one of them"
        raise InvalidArgumentError(message, field="previous_response_id")
    if not request.input and not (request.HasField("conversation") or request.HasField("prompt")):
        raise InvalidArgumentError("input is empty; ask something", reason="MISSING_FIELD", field="input")
    if request.background and request.HasField("store") and not request.store:
        raise InvalidArgumentError("background needs store: nobody could read the answer", field="background")
    _check_numbers(request)
    check_metadata(request.metadata)
    check_include(request.include)
    _refuse_unbuilt(request)


def _check_numbers(request: v1.CreateResponseRequest) -> None:
    bounds: dict[str, tuple[float, float]] = {
        "temperature": (0, 2),
        "top_p": (0, 1),
        "frequency_penalty": (-2, 2),
        "presence_penalty": (-2, 2),
        "max_infer_iters": (1, MAX_INFER_ITERS),
        "max_output_tokens": (LEAST_OUTPUT_TOKENS, 2**31 - 1),
        "max_tool_calls": (1, 2**31 - 1),
        "top_logprobs": (0, MAX_TOP_LOGPROBS),
    }
    for name, (least, most) in bounds.items():
        value = getattr(request, name)
        if request.HasField(name) and not least <= value <= most:  # type: ignore[arg-type]
            raise InvalidArgumentError(f"{name} is {value:g}; allowed: {least} to {most}", field=name)
    if len(request.prompt_cache_key) > 64:
        raise InvalidArgumentError("prompt_cache_key has more than 64 characters", field="prompt_cache_key")


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Refuse more than OpenAI's API takes.

    Raises:
        InvalidArgumentError: Naming the bound.
    """
    if len(metadata) > MAX_METADATA:
        raise InvalidArgumentError(f"metadata has {len(metadata)} entries; at most {MAX_METADATA}", field="metadata")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            raise InvalidArgumentError(f"metadata[{key[:64]!r}]: keys have 64 characters, values 512", field="metadata")


def check_include(include: "Iterable[v1.ResponseInclude.ValueType]") -> None:
    """Refuse what has no name.

    Raises:
        InvalidArgumentError: Naming the first.
    """
    for index, one in enumerate(include):
        if one not in v1.ResponseInclude.values() or one == v1.RESPONSE_INCLUDE_UNSPECIFIED:
            message = f"include[{index}]: {one} is nothing that could be included"
            raise InvalidArgumentError(message, field=f"include[{index}]")


def wants_logprobs(request: v1.CreateResponseRequest) -> bool:
    """Whether the text is to come with log probabilities."""
    return request.top_logprobs > 0 or v1.RESPONSE_INCLUDE_MESSAGE_OUTPUT_TEXT_LOGPROBS in request.include


def _refuse_unbuilt(request: v1.CreateResponseRequest) -> None:
    asked = {
        "skills": bool(request.skills),
        "context_management": bool(request.context_management),
        "memory": request.HasField("memory"),
    }
    for field, wanted in asked.items():
        if wanted:
            raise UnsupportedError(f"{field} is not built for responses; leave it out", field=field)
    if wants_logprobs(request) and (request.guardrails or request.default_guardrails):
        field = "top_logprobs" if request.top_logprobs else "include"
        message = f"{field}: log probabilities show an answer that guardrails may withhold; leave one of them out"
        raise UnsupportedError(message, field=field)

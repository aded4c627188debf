"""What the torch provider reads from requests: limits, token ids, grammars, variables of templates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from google.protobuf import json_format

from llamastack import v1
from services.inference import dialog
from services.inference.call_grammar import demanded_call, offered_calls
from services.inference.constraints import format_grammar
from services.inference.engine import commands
from services.inference.engine.request import Calls
from services.inference.reading import python_tag_of
from services.inference.validate import allows_several_calls
from services.llama.messages import ChatFormat, ToolDefinition, ToolPromptFormat
from services.llama.tokenizer import Tokenizer
from stack_client.errors import InvalidArgumentError

P = ParamSpec("P")
T = TypeVar("T")

BEGIN_OF_TEXT = "<|begin_of_text|>"  # Llama 3 was trained with it before every text; SmolLM2 has nothing like it


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """The text side of a model whose weights the engine holds."""

    tokenizer: Tokenizer
    chat_format: ChatFormat
    context: int
    loaded: commands.Loaded


def template_arguments(model: TextModel, request: v1.TokenizeRequest) -> dict[str, Any]:
    """The variables given for the checkpoint's template.

    Raises:
        InvalidArgumentError: If the template has no variable of that name.
    """
    if not request.HasField("template_arguments"):
        return {}
    given: dict[str, Any] = dialog.in_natural_order(json_format.MessageToDict(request.template_arguments))
    known = model.chat_format.template_variables
    if unknown := given.keys() - known:
        field = f"template_arguments.{min(unknown)}"
        has = f"it has: {', '.join(sorted(known))}" if known else "it has none, or the model has no template of its own"
        raise InvalidArgumentError(f"{field}: the model's chat template has no such variable; {has}", field=field)
    return given


def check_ids(ids: Sequence[int], size: int, *, field: str) -> None:
    """Refuse ids outside a vocabulary.

    Raises:
        InvalidArgumentError: If there is one; names its place.
    """
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < size:
            where = f"{field}[{index}]"
            raise InvalidArgumentError(f"{where} is {token_id}; the vocabulary has {size} tokens", field=where)


def grammars(
    model: TextModel, request: v1.ChatCompletionRequest, tools: Sequence[ToolDefinition]
) -> tuple[str, Calls | None]:
    """What the answer must match, "" for any text; and the calls that it may be instead."""
    config = request.tool_config
    python_tag = python_tag_of(model.tokenizer)
    if not _demands_call(config):
        grammar = format_grammar(request.response_format) if request.HasField("response_format") else ""
        several = allows_several_calls(config)
        return grammar, offered_calls(tools, python_tag=python_tag, several=several) if tools else None
    if request.HasField("response_format"):
        message = "response_format and a tool_choice that demands a call exclude each other"
        raise InvalidArgumentError(message, field="response_format")
    grammar = demanded_call(
        tools,
        choice=config.tool_choice,
        argument_key=model.chat_format.argument_key,
        tool_prompt_format=prompt_format(config) or model.chat_format.tool_prompt_formats[0],
        python_tag=python_tag,
        several=allows_several_calls(config),
    )
    return grammar, None


def _demands_call(config: v1.ToolConfig) -> bool:
    return config.tool_choice not in {"", "auto", "none"}


def prompt_format(config: v1.ToolConfig) -> ToolPromptFormat | None:
    """The format asked for; None is the family's own."""
    match config.tool_prompt_format:
        case v1.TOOL_PROMPT_FORMAT_JSON:
            return "json"
        case v1.TOOL_PROMPT_FORMAT_FUNCTION_TAG:
            return "function_tag"
        case v1.TOOL_PROMPT_FORMAT_PYTHON_LIST:
            return "python_list"
        case _:
            return None

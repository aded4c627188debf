"""From the contract's requests to OpenAI's JSON; what an endpoint's dialect cannot say is refused by name.

The dialects send every sampling setting, also those at their neutral value, because these servers have defaults of
their own (llama.cpp top_k 40 and min_p 0.05, vLLM and SGLang what the model's folder suggests), which would change what
our contract says. llama.cpp's penalties count the prompt's tokens too. The plain one sends what OpenAI has and refuses
the rest.
"""

import base64
import re
from collections.abc import Sequence

from llamastack import v1
from services.inference import dialog
from services.inference.config import Dialect
from services.inference.engine.request import Sampling
from services.inference.providers.openai.endpoint import Json
from services.inference.validate import allows_several_calls, sampling_of
from services.llama.messages import ToolDefinition
from stack_client.errors import InvalidArgumentError, UnsupportedError

# How the dialects switch top_k off.
_NO_TOP_K = {"vllm": -1, "sglang": -1, "llamacpp": 0}
_IMAGES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))


def chat_body(request: v1.ChatCompletionRequest, *, model: str, dialect: Dialect, context: int = 0) -> Json:
    """Body of `chat/completions`, streamed.

    Raises:
        InvalidArgumentError: If a field has a value that is not allowed.
        UnsupportedError: If the dialect cannot say what a field asks for.
    """
    config = request.tool_config
    _refuse(
        bool(config.tool_prompt_format), "tool_config.tool_prompt_format", "the endpoint's chat template decides it"
    )
    _refuse(
        config.system_message_behavior == v1.SYSTEM_MESSAGE_BEHAVIOR_REPLACE,
        "tool_config.system_message_behavior",
        "the endpoint's chat template decides it",
    )
    if not request.messages:
        raise InvalidArgumentError(
            "messages is empty; send at least one message", reason="MISSING_FIELD", field="messages"
        )
    logprobs = request.logprobs if request.HasField("logprobs") else None
    sampling = sampling_of(request.sampling_params, logprobs)
    body = {
        "model": model,
        "messages": [_message(message, f"messages[{index}]") for index, message in enumerate(request.messages)],
        **_sampling(request.sampling_params, sampling, dialect, context),
        **_tools(request, dialect),
        **_priority(request.priority, dialect),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.asked_tokens:
        body |= {"logprobs": True, "top_logprobs": len(sampling.asked_tokens) + 1, **_asked(sampling, dialect)}
    elif sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": _alternatives(sampling.top_logprobs, dialect)}
    if request.HasField("response_format"):
        body |= _format(request.response_format, dialect)
    return body


def completion_body(request: v1.CompletionRequest, *, model: str, dialect: Dialect, context: int = 0) -> Json:
    """Body of `completions`, streamed.

    Raises:
        InvalidArgumentError: If a field has a value that is not allowed.
        UnsupportedError: If the dialect cannot say what a field asks for.
    """
    if request.token_ids and request.content.items:
        raise InvalidArgumentError("content and token_ids exclude each other", field="token_ids")
    prompt = list(request.token_ids) or dialog.text_of(request.content, "content")
    if not prompt:
        raise InvalidArgumentError("content is empty; send text to continue", reason="MISSING_FIELD", field="content")
    sampling = sampling_of(request.sampling_params, request.logprobs if request.HasField("logprobs") else None)
    body = {
        "model": model,
        "prompt": prompt,
        **_sampling(request.sampling_params, sampling, dialect, context),
        **_priority(request.priority, dialect),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if "max_tokens" not in body:
        # These servers end a completion after 16 tokens unless told otherwise, and only llama.cpp has a word for "all".
        _refuse(dialect != "llamacpp", "sampling_params.max_tokens", "this endpoint needs it for completions")
        body["max_tokens"] = -1
    if sampling.asked_tokens:
        body |= {"logprobs": len(sampling.asked_tokens) + 1, **_asked(sampling, dialect)}
    elif sampling.top_logprobs is not None:
        body["logprobs"] = _alternatives(sampling.top_logprobs, dialect)
    if request.HasField("response_format"):
        _refuse(dialect == "openai", "response_format", "OpenAI's completions have none; use chat, or set its dialect")
        body |= _format(request.response_format, dialect)
    return body


def _sampling(params: v1.SamplingParams, sampling: Sampling, dialect: Dialect, context: int) -> Json:
    body: Json = {"temperature": sampling.temperature}
    if sampling.temperature:
        body["top_p"] = sampling.top_p
    if params.max_tokens:
        body["max_tokens"] = params.max_tokens
    if params.stop:
        body["stop"] = list(params.stop)
    for name in ("frequency_penalty", "presence_penalty"):
        if params.HasField(name):
            body[name] = getattr(params, name)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if dialect == "openai":
        _refuse(bool(sampling.top_k), "sampling_params.strategy.top_k", "OpenAI's API has no top_k; set its dialect")
        asked = sampling.repetition_penalty != 1.0
        _refuse(asked, "sampling_params.repetition_penalty", "OpenAI's API has none; set its dialect")
        return body
    body |= {"top_k": sampling.top_k or _NO_TOP_K[dialect], "min_p": 0.0}
    if dialect == "llamacpp":
        # By itself it looks back 64 tokens only; it has no word for all of them and keeps as many as it is told.
        window = {"repeat_last_n": context} if context else {}
        return body | {"repeat_penalty": sampling.repetition_penalty, **window}
    return body | {"repetition_penalty": sampling.repetition_penalty}


def _priority(priority: int, dialect: Dialect) -> Json:
    """Lower numbers go first in vLLM, which refuses any but 0 unless it was started to schedule by priority."""
    _refuse(bool(priority) and dialect != "vllm", "priority", f"an endpoint of dialect {dialect} has none")
    return {"priority": -priority} if priority else {}


def _alternatives(wanted: int, dialect: Dialect) -> int:
    """llama.cpp takes 0 for no log probabilities at all; what comes with 1 is dropped when the answer is read."""
    return max(1, wanted) if dialect == "llamacpp" else wanted


def _asked(sampling: Sampling, dialect: Dialect) -> Json:
    """VLLM reports named tokens in place of the most likely ones, and by their ids only when it is told to."""
    field = "logprobs.token_ids"
    _refuse(dialect != "vllm", field, "only endpoints of dialect vllm report named tokens")
    _refuse(bool(sampling.top_logprobs), field, "vLLM reports them in place of the most likely ones; set top_k to 0")
    return {"logprob_token_ids": list(sampling.asked_tokens), "return_tokens_as_token_ids": True}


def _tools(request: v1.ChatCompletionRequest, dialect: Dialect) -> Json:
    choice = request.tool_config.tool_choice
    tools = dialog.tool_definitions(request.tools)
    if not tools or choice == "none":
        return {}
    held = {} if allows_several_calls(request.tool_config) else {"parallel_tool_calls": False}
    if choice in {"", "auto", "required"}:
        return {"tools": _described(tools), "tool_choice": choice or "auto", **held}
    if dialect == "llamacpp":  # knows no names here: the one tool alone, demanded, is the same
        tools = [tool for tool in tools if tool.name == choice]
        return {"tools": _described(tools), "tool_choice": "required", **held}
    named = {"type": "function", "function": {"name": choice}}
    return {"tools": _described(tools), "tool_choice": named, **held}


def _described(tools: Sequence[ToolDefinition]) -> list[Json]:
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in tools
    ]


def _format(asked: v1.ResponseFormat, dialect: Dialect) -> Json:
    """The response format in the endpoint's words."""
    match asked.WhichOneof("format"):
        case "json_schema":
            schema = {"name": "answer", "schema": dialog.schema_of(asked.json_schema), "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case "regex" if dialect in {"vllm", "sglang"}:
            return {"structured_outputs": {"regex": asked.regex}} if dialect == "vllm" else {"regex": asked.regex}
        case "choice" if dialect != "openai":
            return _choice(_choices(asked), dialect)
        case None:
            message = "response_format is empty; set json_schema, json_object, regex, choice or grammar"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field="response_format")
        case kind:
            field = f"response_format.{kind}"
            raise UnsupportedError(f"{field}: an endpoint of dialect {dialect} cannot do this", field=field)


def _choice(choices: list[str], dialect: Dialect) -> Json:
    if dialect == "vllm":
        return {"structured_outputs": {"choice": choices}}
    if dialect == "sglang":
        return {"regex": "|".join(f"({re.escape(choice)})" for choice in choices)}
    return {"grammar": "root ::= " + " | ".join(_gbnf(choice) for choice in choices)}


def _choices(asked: v1.ResponseFormat) -> list[str]:
    choices = list(asked.choice.choices)
    if not choices or not all(choices):
        field = "response_format.choice.choices"
        raise InvalidArgumentError(f"{field}: give at least one, none empty", field=field)
    return choices


def _gbnf(text: str) -> str:
    """A text as a literal of llama.cpp's grammars, safe whatever it holds."""
    return '"' + "".join(f"\\U{ord(character):08X}" for character in text) + '"'


def _message(message: v1.Message, where: str) -> Json:
    match message.WhichOneof("message"):
        case "user":
            parts = _parts(message.user.content, f"{where}.user.content")
            if message.user.HasField("context"):
                parts += [_text("\n"), *_parts(message.user.context, f"{where}.user.context")]
            only_text = all(part["type"] == "text" for part in parts)
            return {"role": "user", "content": "".join(part["text"] for part in parts) if only_text else parts}
        case "system":
            return {"role": "system", "content": dialog.text_of(message.system.content, f"{where}.system.content")}
        case "tool":
            content = dialog.text_of(message.tool.content, f"{where}.tool.content")
            return {"role": "tool", "tool_call_id": message.tool.call_id, "content": content}
        case "assistant":
            said = message.assistant
            calls = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.tool_name, "arguments": dialog.arguments_json(call)},
                }
                for call in said.tool_calls
            ]
            text = dialog.text_of(said.content, f"{where}.assistant.content")
            return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
        case _:
            raise InvalidArgumentError(f"{where} has no role: set user, system, tool or assistant", field=where)


def _parts(content: v1.InterleavedContent, where: str) -> list[Json]:
    parts = []
    for index, item in enumerate(content.items):
        field = f"{where}.items[{index}]"
        match item.WhichOneof("item"):
            case "text":
                parts.append(_text(item.text))
            case "image":
                url = {"url": _image_url(item.image, f"{field}.image")}
                parts.append({"type": "image_url", "image_url": url})
            case None:
                raise InvalidArgumentError(f"{field} holds neither text nor image", field=field)
    return parts


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _image_url(image: v1.ImageContent, field: str) -> str:
    if image.WhichOneof("source") == "data":
        for magic, kind in _IMAGES:
            if image.data.startswith(magic):
                return f"data:{kind};base64,{base64.b64encode(image.data).decode()}"
        raise InvalidArgumentError(f"{field}: the data is no PNG, JPEG or WebP file", field=field)
    uri = image.url.uri
    if not uri.startswith(("http://", "https://", "data:")):
        raise InvalidArgumentError(f"{field}: {uri[:80]!r} is no http, https or data URL", field=field)
    return uri


def _refuse(asked: bool, field: str, why: str) -> None:  # noqa: FBT001
    if asked:
        raise UnsupportedError(f"{field}: {why}", field=field)

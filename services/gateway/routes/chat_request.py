"""Reading OpenAI's chat requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.jsonmap.adapters import content_item
from services.gateway.jsonmap.values import shown, wrong
from services.gateway.routes.fields import FieldReader
from services.gateway.routes.sampling import read_sampling
from stack_client.errors import InvalidArgumentError

TIERS = {"auto": 0, "default": 0, "flex": -10, "priority": 10}
"""Service tiers as priorities of the inference service."""
MOST_NOTES, LONGEST_NAME, LONGEST_NOTE = 16, 64, 512
_UNSEEN = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "metadata")
"""Names of end users and of caches, and notes: nothing of the answer hangs on them."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """What a client asked for."""

    message: v1.ChatCompletionRequest
    """As the service gets it."""
    stream: bool
    """Whether the answer comes in pieces."""
    include_usage: bool
    """Whether the last piece tells the usage."""
    functions: bool
    """Whether calls are written in the old form, `function_call`."""
    store: bool | None
    """Whether the client wants to fetch it again; None where it did not say."""
    metadata: Mapping[str, str]
    """Notes of the client, kept with a stored completion."""
    service_tier: str | None
    """As the client asked."""


def read_chat(edge: Edge, body: dict[str, Any]) -> ChatRequest:
    """The request of a body.

    Raises:
        InvalidArgumentError: Something in it is wrong; `field` names it.
    """
    fields = FieldReader(body)
    message = v1.ChatCompletionRequest(model_id=fields.text("model", required=True))
    metadata = read_metadata(fields.mapping("metadata"))
    store, stream = fields.flag("store"), bool(fields.flag("stream"))
    options = fields.mapping("stream_options")
    include_usage = _usage_wanted(options, stream=stream)
    tier = fields.choice("service_tier", tuple(TIERS))
    message.priority = TIERS.get(tier, 0)
    n = fields.whole("n", least=1, most=128)
    if n is not None:
        message.n = n
    read_sampling(fields, message.sampling_params, many=(n or 1) > 1)
    _read_logprobs(fields, message)
    functions = _read_tools(edge, fields, message)
    read_response_format(edge, fields, message)
    read_messages(edge, fields.items("messages", required=True), message.messages)
    message.input_shields.extend(fields.texts("input_shields", most=16))
    message.output_shields.extend(fields.texts("output_shields", most=16))
    _read_fixed(fields)
    fields.drop(*_UNSEEN)
    fields.finish()
    return ChatRequest(
        message=message,
        stream=stream,
        include_usage=include_usage,
        functions=functions,
        store=store,
        metadata=metadata,
        service_tier=tier or None,
    )


def read_metadata(given: Mapping[str, Any] | None) -> dict[str, str]:
    """Notes of the client: strings by name, within OpenAI's bounds.

    Raises:
        InvalidArgumentError: Something else, or too much of it.
    """
    if len(given or {}) > MOST_NOTES:
        raise wrong("metadata", f"{MOST_NOTES} entries at most", len(given or {}))
    for name, value in (given or {}).items():
        if not isinstance(value, str):
            raise wrong(f"metadata.{name}", "a string", value)
        if len(name) > LONGEST_NAME or len(value) > LONGEST_NOTE:
            bounds = f"a name of {LONGEST_NAME} and a text of {LONGEST_NOTE} characters at most"
            raise InvalidArgumentError(f"metadata.{name[:LONGEST_NAME]}: expected {bounds}", field="metadata")
    return dict(given or {})


def _read_fixed(fields: FieldReader) -> None:
    """Members that we take with the value only that means what is done anyway."""
    for name, allowed in (("reasoning_effort", ("none",)), ("verbosity", ("medium",))):
        value = fields.take(name)
        if value is not None and value not in allowed:
            message = f"{name}: the models of this stack cannot do that; leave it out"
            raise InvalidArgumentError(message, field=name, reason="UNSUPPORTED")
    modalities = fields.take("modalities")
    if modalities not in (None, [], ["text"]):
        raise InvalidArgumentError('modalities: only ["text"] is answered', field="modalities", reason="UNSUPPORTED")


def _usage_wanted(options: Mapping[str, Any] | None, *, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise InvalidArgumentError("stream_options: only allowed with stream", field="stream_options")
    reader = FieldReader(options, path="stream_options")
    wanted = reader.flag("include_usage")
    reader.flag("include_obfuscation")
    reader.finish()
    return bool(wanted)


def _read_logprobs(fields: FieldReader, message: v1.ChatCompletionRequest) -> None:
    wanted, top = fields.flag("logprobs"), fields.whole("top_logprobs", least=0, most=20)
    if top and not wanted:
        raise InvalidArgumentError("top_logprobs: only allowed with logprobs: true", field="top_logprobs")
    if wanted:
        message.logprobs.top_k = top or 0


def read_messages(edge: Edge, given: Sequence[Any], into: Any) -> None:  # noqa: ANN401 - a repeated field
    """OpenAI's messages as ours.

    Raises:
        InvalidArgumentError: One of them is wrong.
    """
    last_call = ""
    for index, one in enumerate(given):
        path = f"messages[{index}]"
        fields = FieldReader(one, path=path)
        role = fields.choice("role", ("system", "developer", "user", "assistant", "tool", "function"))
        if not role:
            raise InvalidArgumentError(f"{path}.role: missing", field=f"{path}.role", reason="MISSING_FIELD")
        content = fields.take("content")
        message = into.add()
        if role in {"system", "developer"}:
            _read_content(edge, message.system.content, content, path=path, images=False)
        elif role == "user":
            _read_content(edge, message.user.content, content, path=path, images=True)
        elif role == "assistant":
            last_call = _read_assistant(edge, fields, message.assistant, content, path=path, index=index) or last_call
        elif role == "tool":
            message.tool.call_id = fields.text("tool_call_id", required=True)
            _read_content(edge, message.tool.content, content, path=path, images=True)
        else:
            message.tool.call_id, message.tool.tool_name = last_call, fields.text("name", required=True)
            _read_content(edge, message.tool.content, content, path=path, images=False)
        fields.drop("name", "id")
        fields.finish()


def _read_content(edge: Edge, into: Any, content: Any, *, path: str, images: bool) -> None:  # noqa: ANN401
    place = f"{path}.content"
    if content is None:
        raise InvalidArgumentError(f"{place}: missing", field=place, reason="MISSING_FIELD")
    into.SetInParent()
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise wrong(place, "a text or a list of parts", content)
    for index, part in enumerate(parts):
        at = f"{place}[{index}]" if isinstance(content, list) else place
        if isinstance(part, str) and not isinstance(content, list):
            part = {"type": "text", "text": part}  # noqa: PLW2901
        if not isinstance(part, dict):
            raise wrong(at, "a part with a type", part)
        kind = part.get("type")
        if kind not in (("text", "image_url", "refusal") if images else ("text", "refusal")):
            known = "text, image_url" if images else "text"
            message = f"{at}.type: {shown(kind)} cannot be read here; give one of {known}"
            raise InvalidArgumentError(message, field=f"{at}.type")
        if kind == "refusal":
            part = {"type": "text", "text": part.get("refusal")}  # noqa: PLW2901
        item = {key: value for key, value in content_item(part, path=at).items() if value is not None}
        edge.codec.decode_into(into.items.add(), item, path=at)


def _read_assistant(
    edge: Edge,
    fields: FieldReader,
    into: Any,  # noqa: ANN401
    content: Any,  # noqa: ANN401
    *,
    path: str,
    index: int,
) -> str:
    """What a model said before; gives the id of its last call in the old form."""
    refusal = fields.text("refusal")
    calls, function = fields.items("tool_calls"), fields.mapping("function_call")
    fields.drop("annotations", "audio", "reasoning_content", "reasoning")
    into.stop_reason = v1.STOP_REASON_END_OF_TURN
    into.content.SetInParent()
    if content is not None:
        _read_content(edge, into.content, content, path=path, images=False)
    elif refusal:
        into.content.items.add(text=refusal)
    for at, call in enumerate(calls):
        reader = FieldReader(call, path=f"{path}.tool_calls[{at}]")
        reader.choice("type", ("function",))
        reader.drop("index")
        named = FieldReader(reader.take("function"), path=f"{path}.tool_calls[{at}].function")
        into.tool_calls.add(
            call_id=reader.text("id", required=True),
            tool_name=named.text("name", required=True),
            arguments_json=named.text("arguments") or "{}",
        )
        reader.finish()
        named.finish()
    if function is not None:
        named = FieldReader(function, path=f"{path}.function_call")
        call_id = f"call_{index}"
        name, arguments = named.text("name", required=True), named.text("arguments") or "{}"
        into.tool_calls.add(call_id=call_id, tool_name=name, arguments_json=arguments)
        named.finish()
        return call_id
    if content is None and not refusal and not calls:
        place = f"{path}.content"
        raise InvalidArgumentError(
            f"{place}: missing, and there are no tool_calls", field=place, reason="MISSING_FIELD"
        )
    return ""


def _read_tools(edge: Edge, fields: FieldReader, message: v1.ChatCompletionRequest) -> bool:
    """Reads tools and what may be called; says whether they came in the old form."""
    tools, functions = fields.items("tools"), fields.items("functions")
    choice, call = fields.take("tool_choice"), fields.take("function_call")
    parallel = fields.flag("parallel_tool_calls")
    for index, tool in enumerate(tools):
        reader = FieldReader(tool, path=f"tools[{index}]")
        if reader.choice("type", ("function",)) == "":
            raise InvalidArgumentError(f"tools[{index}].type: missing", field=f"tools[{index}].type")
        _read_function(edge, reader.take("function"), message, path=f"tools[{index}].function")
        reader.finish()
    for index, function in enumerate(functions):
        _read_function(edge, function, message, path=f"functions[{index}]")
    if call is not None:
        choice = {"type": "function", "function": call} if isinstance(call, dict) else call
    if choice is not None:
        if not message.tools:
            raise InvalidArgumentError("tool_choice: only allowed with tools", field="tool_choice")
        _read_choice(choice, message)
    if parallel is not None and message.tools:
        message.tool_config.parallel_tool_calls = parallel
    return bool(functions) and not tools


def _read_function(edge: Edge, given: Any, message: v1.ChatCompletionRequest, *, path: str) -> None:  # noqa: ANN401
    reader = FieldReader(given, path=path)
    tool = message.tools.add(tool_name=reader.text("name", required=True))
    description = reader.text("description")
    if description:
        tool.description = description
    parameters = reader.mapping("parameters")
    # Calls always obey the schema here, so `strict` asks for nothing more.
    reader.flag("strict")
    reader.finish()
    edge.codec.write_struct(
        tool.input_schema, parameters or {"type": "object", "properties": {}}, path=f"{path}.parameters"
    )


def _read_choice(choice: Any, message: v1.ChatCompletionRequest) -> None:  # noqa: ANN401
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            text = f"tool_choice: {shown(choice)} is none of auto, none, required"
            raise InvalidArgumentError(text, field="tool_choice")
        message.tool_config.tool_choice = choice
        return
    reader = FieldReader(choice, path="tool_choice")
    kind = reader.choice("type", ("function", "allowed_tools"))
    if kind == "allowed_tools":
        _allow_only(FieldReader(reader.take("allowed_tools"), path="tool_choice.allowed_tools"), message)
        reader.finish()
        return
    function = FieldReader(reader.take("function"), path="tool_choice.function")
    name = function.text("name", required=True)
    if name not in {tool.tool_name for tool in message.tools}:
        known = ", ".join(tool.tool_name for tool in message.tools)
        text = f'tool_choice.function.name: no tool "{name}" among those given: {known}'
        raise InvalidArgumentError(text, field="tool_choice.function.name")
    message.tool_config.tool_choice = name


def _allow_only(reader: FieldReader, message: v1.ChatCompletionRequest) -> None:
    """`allowed_tools`: only some of the tools may be called."""
    names = set()
    for index, tool in enumerate(reader.items("tools", required=True)):
        path = f"tool_choice.allowed_tools.tools[{index}]"
        one = FieldReader(tool, path=path)
        one.choice("type", ("function",))
        names.add(FieldReader(one.take("function"), path=f"{path}.function").text("name", required=True))
    unknown = sorted(names - {tool.tool_name for tool in message.tools})
    if unknown:
        raise InvalidArgumentError(
            f'tool_choice.allowed_tools: no tool "{unknown[0]}" among those given', field="tool_choice.allowed_tools"
        )
    message.tool_config.tool_choice = reader.choice("mode", ("auto", "required")) or "auto"
    kept = [tool for tool in message.tools if tool.tool_name in names]
    del message.tools[:]
    message.tools.extend(kept)


def read_response_format(edge: Edge, fields: FieldReader, message: Any) -> None:  # noqa: ANN401 - chat or completion
    """The form of the answer: OpenAI's `response_format`, or one of vLLM's `guided_*`.

    Raises:
        InvalidArgumentError: It is wrong, or there are several.
    """
    given = fields.mapping("response_format")
    guided = {name: fields.take(f"guided_{name}") for name in ("json", "regex", "choice", "grammar")}
    wanted = [name for name, value in guided.items() if value is not None]
    if len(wanted) + (given is not None) > 1:
        raise InvalidArgumentError("response_format: give one form of the answer", field="response_format")
    target = message.response_format
    if given is not None:
        reader = FieldReader(given, path="response_format")
        kind = reader.choice("type", ("text", "json_object", "json_schema"))
        if kind == "json_object":
            target.json_object.SetInParent()
        elif kind == "json_schema":
            _read_schema(edge, reader, target)
        elif not kind:
            raise InvalidArgumentError("response_format.type: missing", field="response_format.type")
        else:
            message.ClearField("response_format")
        reader.finish()
    elif not wanted:
        message.ClearField("response_format")
    else:
        _read_guided(edge, wanted[0], guided[wanted[0]], target)


def _read_schema(edge: Edge, reader: FieldReader, target: v1.ResponseFormat) -> None:
    path = "response_format.json_schema"
    inner = FieldReader(reader.take("json_schema"), path=path)
    inner.text("name", required=True)
    inner.drop("description", "strict")  # answers always obey the schema
    schema = inner.mapping("schema")
    inner.finish()
    edge.codec.write_struct(target.json_schema, schema or {}, path=f"{path}.schema")


def _read_guided(edge: Edge, kind: str, value: Any, target: v1.ResponseFormat) -> None:  # noqa: ANN401
    path = f"guided_{kind}"
    if kind == "json":
        if not isinstance(value, dict):
            raise wrong(path, "a JSON Schema", value)
        edge.codec.write_struct(target.json_schema, value, path=path)
    elif kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise wrong(path, "a list of strings", value)
        target.choice.choices.extend(value)
    elif not isinstance(value, str):
        raise wrong(path, "a string", value)
    elif kind == "regex":
        target.regex = value
    else:
        target.grammar.lark = value

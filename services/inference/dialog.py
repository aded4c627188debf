"""Reading the protos of a dialog: content as text, messages and tools in the chat formats' terms."""

import json
import re
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.llama.messages import ChatMessage, ToolCall, ToolDefinition
from stack_client.content import plain
from stack_client.errors import InvalidArgumentError, UnsupportedError

TOOL_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


def text_of(content: v1.InterleavedContent, field: str) -> str:
    """The content's text.

    Raises:
        UnsupportedError: If it holds an image.
        InvalidArgumentError: If an item is empty.
    """
    texts = []
    for index, item in enumerate(content.items):
        match item.WhichOneof("item"):
            case "text":
                texts.append(item.text)
            case "image":
                where = f"{field}.items[{index}].image"
                raise UnsupportedError(f"{where}: this model reads text only", field=where)
            case None:
                where = f"{field}.items[{index}]"
                raise InvalidArgumentError(f"{where} holds neither text nor image", field=where)
    return "".join(texts)


def chat_messages(messages: Sequence[v1.Message]) -> list[ChatMessage]:
    """The dialog in the chat formats' terms; a user message's context follows its text.

    Raises:
        InvalidArgumentError: If there is no message, or one without a role.
        UnsupportedError: If a message holds an image.
    """
    if not messages:
        raise InvalidArgumentError(
            "messages is empty; send at least one message", reason="MISSING_FIELD", field="messages"
        )
    return [_chat_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _chat_message(message: v1.Message, where: str) -> ChatMessage:
    match message.WhichOneof("message"):
        case "user":
            text = text_of(message.user.content, f"{where}.user.content")
            if message.user.HasField("context"):
                text = f"{text}\n{text_of(message.user.context, f'{where}.user.context')}"
            return ChatMessage(role="user", content=text)
        case "system":
            return ChatMessage(role="system", content=text_of(message.system.content, f"{where}.system.content"))
        case "tool":
            return ChatMessage(
                role="tool",
                content=text_of(message.tool.content, f"{where}.tool.content"),
                call_id=message.tool.call_id,
                tool_name=message.tool.tool_name,
            )
        case "assistant":
            said = message.assistant
            return ChatMessage(
                role="assistant",
                content=text_of(said.content, f"{where}.assistant.content"),
                tool_calls=tuple(
                    ToolCall(call_id=call.call_id, tool_name=call.tool_name, arguments_json=arguments_json(call))
                    for call in said.tool_calls
                ),
                end_of_message=said.stop_reason == v1.STOP_REASON_END_OF_MESSAGE,
            )
        case _:
            raise InvalidArgumentError(f"{where} has no role: set user, system, tool or assistant", field=where)


def arguments_json(call: v1.ToolCall) -> str:
    """The call's arguments as JSON text, exact where the caller gave the text."""
    return call.arguments_json or json.dumps(plain(json_format.MessageToDict(call.arguments)), ensure_ascii=False)


def schema_of(struct: Struct) -> dict[str, Any]:
    """A JSON Schema in a fixed order: properties as `required` lists them, then by name; other keys by name.

    A Struct forgets the order of its keys and would give them in another one in every process, which would change
    prompts and defeat the prefix cache.
    """
    ordered: dict[str, Any] = _in_order(plain(json_format.MessageToDict(struct)))
    return ordered


def _in_order(value: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, list):
        return [_in_order(item) for item in value]
    if not isinstance(value, dict):
        return value
    ordered = {key: _in_order(value[key]) for key in sorted(value)}
    properties, required = ordered.get("properties"), value.get("required")
    if isinstance(properties, dict):
        listed = [name for name in required if name in properties] if isinstance(required, list) else []
        ordered["properties"] = {name: properties[name] for name in dict.fromkeys([*listed, *properties])}
    return ordered


def in_natural_order(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """JSON with its keys in the order that a person expects, S2 before S10: a Struct has none of its own."""
    if isinstance(value, list):
        return [in_natural_order(item) for item in value]
    if not isinstance(value, dict):
        return plain(value)
    return {key: in_natural_order(value[key]) for key in sorted(value, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def tool_definitions(tools: Sequence[v1.ToolDefinition]) -> list[ToolDefinition]:
    """The tools in the chat formats' terms, with a JSON Schema each.

    Raises:
        InvalidArgumentError: If a tool has no name, or two share one.
    """
    result, names = [], set[str]()
    for index, tool in enumerate(tools):
        field = f"tools[{index}].tool_name"
        if not tool.tool_name:
            raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
        if not TOOL_NAME.fullmatch(tool.tool_name):
            message = (
                f"{field} is {tool.tool_name[:80]!r}; allowed: letters, digits, `_`, `-`, `.`, at most 64 characters"
            )
            raise InvalidArgumentError(message, field=field)
        if tool.tool_name in names:
            raise InvalidArgumentError(f"{field}: there are two tools called {tool.tool_name!r}", field=field)
        names.add(tool.tool_name)
        result.append(
            ToolDefinition(name=tool.tool_name, description=tool.description, parameters=parameter_schema(tool))
        )
    return result


def parameter_schema(tool: v1.ToolDefinition) -> dict[str, Any]:
    """JSON Schema of a tool's arguments, from its schema or its classic parameters."""
    if tool.HasField("input_schema"):
        return schema_of(tool.input_schema)
    properties: dict[str, Any] = {}
    for name, parameter in sorted(tool.parameters.items()):  # a map has no order of its own
        properties[name] = {"type": parameter.param_type or "string"}
        if parameter.description:
            properties[name]["description"] = parameter.description
        if parameter.HasField("default"):
            properties[name]["default"] = plain(json_format.MessageToDict(parameter.default))
    required = [
        name
        for name, parameter in sorted(tool.parameters.items())
        if (parameter.required if parameter.HasField("required") else True)
    ]
    return {"type": "object", "properties": properties, "required": required}


def tool_call(call: ToolCall) -> v1.ToolCall:
    """A call read from the model's text, as the proto."""
    arguments = Struct()
    json_format.Parse(call.arguments_json, arguments)
    return v1.ToolCall(
        call_id=call.call_id, tool_name=call.tool_name, arguments=arguments, arguments_json=call.arguments_json
    )

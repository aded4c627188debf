"""Shapes of Responses and Conversations: items, parts, tools, choices."""

from typing import TYPE_CHECKING, Any

from services.gateway.jsonmap.adapters import decode_fields, encode_fields
from services.gateway.jsonmap.shapes import Adapter, Union
from stack_client.errors import InvalidArgumentError

if TYPE_CHECKING:
    from services.gateway.jsonmap.codec import Codec
    from services.gateway.jsonmap.decoder import Reading

_WEB_SEARCH = (
    "web_search",
    "web_search_preview",
    "web_search_preview_2025_03_11",
    "web_search_2025_08_26",
)
_MODES = ("auto", "required", "none")

UNIONS = {
    "ResponseItem": {
        "item": Union(
            tags={
                name: name
                for name in (
                    "message", "function_call", "function_call_output", "web_search_call", "file_search_call",
                    "mcp_list_tools", "mcp_call", "mcp_approval_request", "mcp_approval_response", "reasoning",
                    "compaction", "item_reference",
                )
            },
            signs={"role": "message"},
        )
    },
    "ResponseContentPart": {
        "part": Union(
            tags={
                **{
                    name: name
                    for name in (
                        "input_text", "input_image", "input_file", "output_text", "refusal", "reasoning_text",
                        "summary_text",
                    )
                },
                "text": "input_text",
            }
        )
    },
    "ResponseAnnotation": {
        "annotation": Union(
            tags={name: name for name in ("file_citation", "url_citation", "container_file_citation", "file_path")}
        )
    },
    "WebSearchCallItem": {
        "action": Union(
            tags={name: name for name in ("search", "open_page", "find_in_page")}, under="action", optional=True
        )
    },
    "ResponseTextFormat": {
        "format": Union(tags={name: name for name in ("text", "json_schema", "json_object")}, default="text")
    },
}  # fmt: skip

ENUMS = {
    "ResponseInclude": {
        "WEB_SEARCH_CALL_ACTION_SOURCES": "web_search_call.action.sources",
        "CODE_INTERPRETER_CALL_OUTPUTS": "code_interpreter_call.outputs",
        "COMPUTER_CALL_OUTPUT_IMAGE_URL": "computer_call_output.output.image_url",
        "FILE_SEARCH_CALL_RESULTS": "file_search_call.results",
        "MESSAGE_INPUT_IMAGE_URL": "message.input_image.image_url",
        "MESSAGE_OUTPUT_TEXT_LOGPROBS": "message.output_text.logprobs",
        "REASONING_ENCRYPTED_CONTENT": "reasoning.encrypted_content",
    }
}

_PARTS = {"type": "array", "items": {"$message": "ResponseContentPart"}}
SCHEMAS = {
    "CreateResponseRequest.input": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"$message": "ResponseItem"}}, {"type": "null"}]
    },
    "CompactResponseRequest.input": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"$message": "ResponseItem"}}, {"type": "null"}]
    },
    "CreateResponseRequest.conversation": {
        "anyOf": [
            {"type": ["string", "null"]},
            {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
        ]
    },
    "CreateResponseRequest.guardrails": {
        "anyOf": [
            {"type": ["boolean", "null"]},
            {"type": "array", "items": {"anyOf": [{"type": "string"}, {"$message": "ResponseGuardrail"}]}},
        ]
    },
    "ResponseObject.conversation": {"anyOf": [{"type": ["string", "null"]}, {"type": "object"}]},
    "ResponseMessage.content": {"anyOf": [{"type": "string"}, _PARTS]},
    "FunctionCallOutputItem.output": {"anyOf": [{"type": "string"}, _PARTS]},
}
"""Unions without a tag that requests have."""


def decode_part(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """ResponseContentPart: a string is a text of the input."""
    if isinstance(value, str):
        value = {"type": "input_text", "text": value}
    codec.merge_fields(message, value, path=path, reading=reading)


def decode_message(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """ResponseMessage: its content is a string or parts; a string of the assistant is output."""
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        kind = "output_text" if value.get("role") == "assistant" else "input_text"
        value = {**value, "content": [{"type": kind, "text": value["content"]}]}
    codec.merge_fields(message, value, path=path, reading=reading)


def encode_call_output(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """FunctionCallOutputItem: a single text is a string."""
    written = codec.encode_fields(message)
    parts = message.output
    if len(parts) == 1 and parts[0].WhichOneof("part") == "input_text":
        written["output"] = parts[0].input_text.text
    elif not parts:
        written["output"] = ""
    return written


def decode_call_output(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """FunctionCallOutputItem: the output is a string or parts."""
    if isinstance(value, dict) and isinstance(value.get("output"), str):
        value = {**value, "output": [{"type": "input_text", "text": value["output"]}]}
    codec.merge_fields(message, value, path=path, reading=reading)


def encode_logprob(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """ResponseLogProb and ResponseTopLogProb: bytes are a list of numbers here."""
    return {**codec.encode_fields(message), "bytes": list(message.bytes)}


def decode_logprob(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """The same read back, from items that clients hand in again."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), list):
        try:
            message.bytes = bytes(value["bytes"])
        except (ValueError, TypeError):
            raise InvalidArgumentError(f"{path}.bytes: expected numbers from 0 to 255", field=f"{path}.bytes") from None
        value = {key: item for key, item in value.items() if key != "bytes"}
    codec.merge_fields(message, value, path=path, reading=reading)


_TOOLS = ("function", "file_search", "mcp")


def encode_tool(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """ResponseTool: one object with its type, which for web search is the name that the caller used."""
    which = message.WhichOneof("tool")
    if which is None:
        return None
    written = dict(codec.encode(getattr(message, which)))
    kind = which
    if which == "web_search":
        kind = written.pop("alias") or which
        written["search_context_size"] = written["search_context_size"] or "medium"
        location = written["user_location"]
        written["user_location"] = {"type": "approximate", **location} if location else None
    elif which == "function":
        written["strict"] = written["strict"] is not False
    return {"type": kind, **written}


def decode_tool(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """ResponseTool: by its type."""
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{path}: expected a tool with a type", field=path)
    given = dict(value)
    kind = given.pop("type", None)
    if kind in _WEB_SEARCH:
        location = given.get("user_location")
        if isinstance(location, dict):
            given["user_location"] = {key: item for key, item in location.items() if key != "type"}
        given["alias"] = kind
        message.web_search.SetInParent()
        codec.merge(message.web_search, given, path=path, reading=reading)
    elif kind in _TOOLS:
        member = getattr(message, kind)
        member.SetInParent()
        codec.merge(member, given, path=path, reading=reading)
    else:
        known = ", ".join([*_TOOLS, *_WEB_SEARCH])
        text = f"{path}.type: {kind!r} is no tool of this stack; there are: {known}"
        raise InvalidArgumentError(text, field=f"{path}.type")


def decode_mcp_tool(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """MCPTool: approval is a mode or lists of tools, allowed tools are a list or an object with one."""
    if isinstance(value, dict):
        value = dict(value)
        approval, allowed = value.pop("require_approval", None), value.get("allowed_tools")
        if isinstance(approval, str):
            if approval not in ("always", "never"):
                text = f"{path}.require_approval: {approval!r} is none of always, never"
                raise InvalidArgumentError(text, field=f"{path}.require_approval")
            value["approval_mode"] = approval
        elif approval is not None:
            value["approval_filter"] = _approval_filter(approval, path=f"{path}.require_approval")
        if isinstance(allowed, dict):
            value["allowed_tools"] = allowed.get("tool_names") or []
        value.pop("server_description", None)
    codec.merge_fields(message, value, path=path, reading=reading)


def _approval_filter(given: Any, *, path: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(given, dict):
        raise InvalidArgumentError(f"{path}: expected always, never, or lists of tools", field=path)
    found = {}
    for key, tools in given.items():
        if key not in {"always", "never"}:
            raise InvalidArgumentError(f"{path}.{key}: no such field here; there are: always, never", field=path)
        found[key] = tools.get("tool_names") or [] if isinstance(tools, dict) else tools
    return found


def encode_mcp_tool(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """MCPTool: without what is secret."""
    which = message.WhichOneof("require_approval")
    approval: Any = None
    if which == "approval_mode":
        mode = message.DESCRIPTOR.fields_by_name["approval_mode"].enum_type
        approval = codec.enum_name(mode, message.approval_mode)
    elif which == "approval_filter":
        approval = codec.encode(message.approval_filter)
    return {
        "server_label": message.server_label,
        "server_url": message.server_url or None,
        "require_approval": approval,
        "allowed_tools": list(message.allowed_tools) or None,
    }


def encode_choice(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """ResponseToolChoice: a mode, or an object with a type."""
    which = message.WhichOneof("choice")
    if which is None:
        return "auto"
    if which == "mode":
        return codec.enum_name(message.DESCRIPTOR.fields_by_name["mode"].enum_type, message.mode)
    return {"type": which, **codec.encode(getattr(message, which))}


def decode_choice(codec: "Codec", message: Any, value: Any, path: str, reading: "Reading") -> None:  # noqa: ANN401
    """ResponseToolChoice: the same read."""
    if isinstance(value, str):
        if value not in _MODES:
            raise InvalidArgumentError(f"{path}: {value!r} is none of {', '.join(_MODES)}", field=path)
        message.mode = codec.enum_number(message.DESCRIPTOR.fields_by_name["mode"].enum_type, value, path=path)
        return
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{path}: expected a mode or an object with a type", field=path)
    given = dict(value)
    kind = given.pop("type", None)
    kind = "web_search" if kind in _WEB_SEARCH else kind
    if kind not in ("function", "file_search", "web_search", "mcp", "custom", "allowed_tools"):
        raise InvalidArgumentError(f"{path}.type: {kind!r} cannot be chosen", field=f"{path}.type")
    member = getattr(message, kind)
    member.SetInParent()
    codec.merge(member, given, path=path, reading=reading)


def encode_item(codec: "Codec", message: Any) -> Any:  # noqa: ANN401
    """ResponseItem: clients that validate want a status in items that have one."""
    written = codec.encode_fields(message)
    if "status" in written and written["status"] is None:
        written["status"] = "completed"
    if written.get("type") == "file_search_call":
        written["results"] = written["results"] or None
    return written


ADAPTERS = {
    "llamastack.v1.ResponseItem": Adapter(encode=encode_item, decode=decode_fields),
    "llamastack.v1.ResponseContentPart": Adapter(encode=encode_fields, decode=decode_part),
    "llamastack.v1.ResponseMessage": Adapter(encode=encode_fields, decode=decode_message),
    "llamastack.v1.FunctionCallOutputItem": Adapter(encode=encode_call_output, decode=decode_call_output),
    "llamastack.v1.ResponseLogProb": Adapter(encode=encode_logprob, decode=decode_logprob),
    "llamastack.v1.ResponseTopLogProb": Adapter(encode=encode_logprob, decode=decode_logprob),
    "llamastack.v1.ResponseTool": Adapter(encode=encode_tool, decode=decode_tool),
    "llamastack.v1.MCPTool": Adapter(encode=encode_mcp_tool, decode=decode_mcp_tool),
    "llamastack.v1.ResponseToolChoice": Adapter(
        encode=encode_choice, decode=decode_choice, schema={"anyOf": [{"type": "string"}, {"type": "object"}]}
    ),
    "llamastack.v1.SummaryText": Adapter(
        encode=lambda _codec, message: {"type": "summary_text", "text": message.text}, decode=decode_fields
    ),
    "llamastack.v1.ReasoningText": Adapter(
        encode=lambda _codec, message: {"type": "reasoning_text", "text": message.text}, decode=decode_fields
    ),
}

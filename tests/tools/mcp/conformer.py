"""The tools that the official conformance suite calls, as a provider of the tools service."""

import base64
import wave
from collections.abc import Sequence
from io import BytesIO
from types import TracebackType
from typing import Any, Self

from llamastack import v1
from services.tools.provider import Access, Call, ProviderContext
from stack_client.content import content, struct
from tests.tools.mcp.servers import PIXEL

ADDRESS = {
    "$anchor": "addressDef",
    "type": "object",
    "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
}
SCHEMA_2020 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": ADDRESS},
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
CHOICES = [{"const": "value1", "title": "First"}, {"const": "value2", "title": "Second"}]
ENUMS = {
    "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
    "titledSingle": {"type": "string", "oneOf": CHOICES},
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["One", "Two"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
    "titledMulti": {"type": "array", "items": {"anyOf": CHOICES}},
}
QUESTIONS: dict[str, dict[str, Any]] = {
    "test_elicitation": NAME,
    "test_elicitation_sep1034_defaults": {"type": "object", "properties": DEFAULTS},
    "test_elicitation_sep1330_enums": {"type": "object", "properties": ENUMS},
    "test_input_required_result_elicitation": NAME,
    "test_input_required_result_request_state": NAME,
    "test_input_required_result_tampered_state": NAME,
    "test_input_required_result_multi_round": NAME,
    "test_streaming_elicitation": NAME,
    "test_missing_capability": NAME,
}
PLAIN = [
    "test_simple_text",
    "test_image_content",
    "test_audio_content",
    "test_embedded_resource",
    "test_multiple_content_types",
    "test_tool_with_progress",
    "test_tool_with_logging",
    "test_logging_tool",
    "test_error_handling",
    *QUESTIONS,
]


def sound() -> bytes:
    """A silent WAV file."""
    file = BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(1)
        out.setframerate(8000)
        out.writeframes(b"\x80" * 8)
    return file.getvalue()


class Conformer:
    """Does what the suite asks for."""

    def __init__(self, context: ProviderContext) -> None:
        self.context = context

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        pass

    async def removed(self, group: v1.ToolGroup, access: Access) -> None:
        pass

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:
        schema = struct({"type": "object", "properties": {}})
        tools = [v1.ToolDef(name=name, description=f"{name}.", input_schema=schema) for name in PLAIN]
        wide = v1.ToolDef(name="json_schema_2020_12_tool", description="Tool.", input_schema=struct(SCHEMA_2020))
        header = {"type": "string", "x-mcp-header": "Region"}
        routed = struct({"type": "object", "properties": {"region": header}, "required": ["region"]})
        return [*tools, wide, v1.ToolDef(name="test_headers", description="Tool.", input_schema=routed)]

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        name = call.tool.name
        if name in QUESTIONS:
            return self._ask(call)
        result = v1.ToolInvocationResult(content=content("This is a simple text response for testing."))
        image = v1.ContentItem(image=v1.ImageContent(data=PIXEL))
        note = v1.Document(content=v1.ContentOrUrl(content=content("This is an embedded resource content.")))
        note.mime_type = "text/plain"
        match name:
            case "test_image_content":
                result.content.CopyFrom(v1.InterleavedContent(items=[image]))
            case "test_audio_content":
                url = f"data:audio/wav;base64,{base64.b64encode(sound()).decode()}"
                result.attachments.add(content=v1.ContentOrUrl(url=v1.URL(uri=url)), mime_type="audio/wav")
                result.ClearField("content")
            case "test_embedded_resource":
                result.attachments.append(note)
                result.ClearField("content")
            case "test_multiple_content_types":
                result.content.items.append(image)
                result.attachments.append(note)
            case "test_tool_with_progress":
                for done in (0.0, 0.5, 1.0):
                    call.report.progress(done)
            case "test_tool_with_logging" | "test_logging_tool":
                for line in ("started", "processing", "completed"):
                    call.report.output("log", f"{line}\n" * 2000)
            case "test_error_handling":
                message = "This tool intentionally returns an error for testing"
                return v1.ToolInvocationResult(error_code=1, error_message=message)
        return result

    def _ask(self, call: Call) -> v1.ToolInvocationResult:
        answer = call.input_response
        rounds = 2 if call.tool.name.endswith("multi_round") else 1
        number = int(answer.state) if answer is not None else 0
        if number < rounds:
            asked = v1.ToolInputRequest(
                message="What is your name?", requested_schema=struct(QUESTIONS[call.tool.name]), state=str(number + 1)
            )
            return v1.ToolInvocationResult(input_required=asked)
        assert answer is not None
        return v1.ToolInvocationResult(content=content(f"state-ok: action={answer.action}, content={answer.content}"))

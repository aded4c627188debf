"""Tools and results of the mesh as MCP clients take them."""

import base64
from typing import Any

import mcp_types as types
from google.protobuf import json_format
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from llamastack import v1
from services.tools.mcp.content import STRUCTURED
from services.tools.mcp.listing import METHOD
from stack_client.content import plain

META = "llamastack.mesh/metadata"
"""`_meta` of a result: the facts for programs."""
ERROR_META = "llamastack.mesh/error-code"
"""`_meta` of a result that failed: the tool's code."""
_MAGIC = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"), (b"GIF8", "image/gif"))
_UNKNOWN = "application/octet-stream"


def tool_of(name: str, tool: v1.ToolDef, *, version: str) -> types.Tool:
    """A tool under the name by which the client is to call it."""
    effect = tool.effect or v1.TOOL_EFFECT_WRITE
    annotations = types.ToolAnnotations(
        read_only_hint=effect == v1.TOOL_EFFECT_READ,
        idempotent_hint=effect in {v1.TOOL_EFFECT_READ, v1.TOOL_EFFECT_IDEMPOTENT_WRITE},
    )
    schema = {"type": "object", "properties": {}, **_json(tool.input_schema)}
    return types.Tool(
        name=name,
        description=tool.description,
        input_schema=schema,
        output_schema=_output_schema(tool, version=version),
        annotations=annotations,
    )


def _output_schema(tool: v1.ToolDef, *, version: str) -> dict[str, Any] | None:
    """The schema of structured content; only of tools whose results have any, for clients hold us to it."""
    if not tool.HasField("output_schema") or METHOD not in tool.metadata:
        return None
    schema = _json(tool.output_schema)
    return schema if version in MODERN_PROTOCOL_VERSIONS or schema.get("type") == "object" else None


def result_of(result: v1.ToolInvocationResult, *, version: str) -> types.CallToolResult:
    """What a call gave."""
    blocks: list[types.ContentBlock] = []
    failed = bool(result.error_code or result.error_message)
    if failed:
        blocks.append(types.TextContent(text=result.error_message or f"the tool failed with {result.error_code}"))
    blocks += [_block(item) for item in result.content.items]
    blocks += [_attachment(number, document) for number, document in enumerate(result.attachments, start=1)]
    metadata = _json(result.metadata)
    structured = metadata.pop(STRUCTURED, None)
    if not isinstance(structured, dict) and version not in MODERN_PROTOCOL_VERSIONS:
        structured = None
    meta: dict[str, Any] = {META: metadata} if metadata else {}
    if failed:
        meta[ERROR_META] = result.error_code or 1
    given = {"structured_content": structured} if structured is not None else {}
    return types.CallToolResult(content=blocks, is_error=failed, _meta=meta or None, **given)


def failed(message: str) -> types.CallToolResult:
    """A call that did not run, in words for the model."""
    return types.CallToolResult(content=[types.TextContent(text=message)], is_error=True)


def _block(item: v1.ContentItem) -> types.ContentBlock:
    if item.HasField("text"):
        return types.TextContent(text=item.text)
    if item.image.HasField("data"):
        data = item.image.data
        kind = next((mime for magic, mime in _MAGIC if data.startswith(magic)), "image/png")
        return types.ImageContent(data=base64.b64encode(data).decode(), mime_type=kind)
    return types.ResourceLink(name="image", uri=item.image.url.uri)


def _attachment(number: int, document: v1.Document) -> types.ContentBlock:
    name = f"attachment-{number}"
    if not document.content.HasField("url"):
        text = "".join(item.text for item in document.content.content.items)
        inside = types.TextResourceContents(uri=f"attachment:{number}", text=text, mime_type=document.mime_type)
        return types.EmbeddedResource(resource=inside)
    uri = document.content.url.uri
    head, comma, data = uri.partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        mime_type = document.mime_type or head[5:-7] or _UNKNOWN
        if mime_type.startswith("audio/"):
            return types.AudioContent(data=data, mime_type=mime_type)
        blob = types.BlobResourceContents(uri=f"attachment:{number}", blob=data, mime_type=mime_type)
        return types.EmbeddedResource(resource=blob)
    return types.ResourceLink(name=name, uri=uri, mime_type=document.mime_type or None)


def _json(message: Any) -> dict[str, Any]:  # noqa: ANN401 (a Struct)
    found: dict[str, Any] = plain(json_format.MessageToDict(message))
    return found

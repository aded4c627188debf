"""What a server's answer holds, as content, attachments and facts."""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mcp_types as types

from llamastack import v1
from stack_client.content import struct

STRUCTURED = "structured_content"
"""Key of a result's metadata under which the server's structured content is."""
ERROR = "mcp_error_code"
"""Key of a result's metadata under which the JSON-RPC code of the server's error is."""
_IMAGES = {"image/png", "image/jpeg", "image/webp"}


class Parts:
    """Collects what goes into a result."""

    def __init__(self) -> None:
        self.items: list[v1.ContentItem] = []
        self.attachments: list[v1.Document] = []

    def text(self, text: str) -> None:
        """A text for the model."""
        self.items.append(v1.ContentItem(text=text))

    def file(self, data: str, mime_type: str, *, name: str) -> None:
        """A file in base64; images go to the model, others beside it, and the model is told."""
        try:
            raw = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            self.text(f"[{name}: the server's base64 is damaged]")
            return
        if mime_type.lower() in _IMAGES:
            self.items.append(v1.ContentItem(image=v1.ImageContent(data=raw)))
            return
        url = f"data:{mime_type or 'application/octet-stream'};base64,{base64.b64encode(raw).decode()}"
        self._attach(url, mime_type)
        self.text(f"[attached: {name}, {mime_type or 'unknown type'}, {len(raw)} bytes]")

    def link(self, link: types.ResourceLink) -> None:
        """A resource that can be read."""
        about = f": {link.description}" if link.description else ""
        self.text(f"[resource {link.title or link.name} at {link.uri}{about}]")
        if str(link.uri).startswith(("https://", "http://")):
            self._attach(str(link.uri), link.mime_type or "")

    def _attach(self, url: str, mime_type: str) -> None:
        self.attachments.append(
            v1.Document(content=v1.ContentOrUrl(url=v1.URL(uri=url)), mime_type=mime_type or "application/octet-stream")
        )

    def add(self, block: types.ContentBlock) -> None:
        """A block of the server's answer."""
        match block:
            case types.TextContent():
                self.text(block.text)
            case types.ImageContent():
                self.file(block.data, block.mime_type, name="image")
            case types.AudioContent():
                self.file(block.data, block.mime_type, name="audio")
            case types.ResourceLink():
                self.link(block)
            case types.EmbeddedResource():
                self.resource(block.resource)

    def resource(self, resource: types.TextResourceContents | types.BlobResourceContents) -> None:
        """The content of a resource."""
        if isinstance(resource, types.TextResourceContents):
            self.text(resource.text)
        else:
            self.file(resource.blob, resource.mime_type or "", name=str(resource.uri))

    def result(self, metadata: Mapping[str, Any] | None = None) -> v1.ToolInvocationResult:
        """A result that went well."""
        return v1.ToolInvocationResult(
            content=v1.InterleavedContent(items=self.items),
            attachments=self.attachments,
            metadata=struct(metadata) if metadata else None,
        )


def call_result(answer: types.CallToolResult) -> v1.ToolInvocationResult:
    """A tool's answer."""
    parts = Parts()
    for block in answer.content:
        parts.add(block)
    metadata = {}
    if answer.structured_content is not None:
        metadata[STRUCTURED] = answer.structured_content
        if not parts.items:
            parts.text(json.dumps(answer.structured_content, ensure_ascii=False))
    result = parts.result(metadata)
    if answer.is_error:
        words = "\n".join(item.text for item in parts.items if item.HasField("text"))
        result.error_code = 1
        result.error_message = words or "the tool failed and does not say why"
    return result


def resources_result(
    contents: Iterable[types.TextResourceContents | types.BlobResourceContents],
) -> v1.ToolInvocationResult:
    """What a resource holds."""
    parts = Parts()
    for one in contents:
        parts.resource(one)
    return parts.result()


def prompt_result(prompt: types.GetPromptResult) -> v1.ToolInvocationResult:
    """A prompt filled in, as a text with the roles in front."""
    parts = Parts()
    if prompt.description:
        parts.text(prompt.description)
    for message in prompt.messages:
        parts.text(f"{message.role}:")
        parts.add(message.content)
    return parts.result()


def listing_result(entries: Sequence[Mapping[str, Any]]) -> v1.ToolInvocationResult:
    """A list as JSON, one entry a line."""
    parts = Parts()
    parts.text("\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) or "none")
    return parts.result()


def failure(message: str, metadata: Mapping[str, Any] | None = None) -> v1.ToolInvocationResult:
    """A call that failed, in words for the model."""
    return v1.ToolInvocationResult(error_code=1, error_message=message, metadata=struct(metadata) if metadata else None)

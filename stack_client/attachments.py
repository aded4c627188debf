"""Files that belong to a question."""

import asyncio
import base64
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from llamastack import v1
from stack_client.content import content
from stack_client.errors import InvalidArgumentError

Attachment: TypeAlias = str | Path | v1.Document
"""A path, an address (`https://...`), or a document."""
MOST_BYTES = 16 << 20


async def documents(attachments: Sequence[Attachment]) -> list[v1.Document]:
    """What the agents service takes.

    Raises:
        InvalidArgumentError: If a file cannot be read or is too large.
    """
    given = [attachments] if isinstance(attachments, str | Path | v1.Document) else attachments
    return [await _document(one) for one in given]


async def _document(one: Attachment) -> v1.Document:
    if isinstance(one, v1.Document):
        return one
    kind = mimetypes.guess_type(str(one))[0] or ""
    if isinstance(one, str) and "://" in one:
        return v1.Document(content=v1.ContentOrUrl(url=v1.URL(uri=one)), mime_type=kind)
    path = Path(one)
    try:
        data = await asyncio.to_thread(path.read_bytes)
    except OSError as error:
        raise InvalidArgumentError(f"{path}: {error.strerror}", field="attachments") from error
    if len(data) > MOST_BYTES:
        message = f"{path} has {len(data)} bytes; at most {MOST_BYTES} can be attached: use memory=[...] for more"
        raise InvalidArgumentError(message, field="attachments")
    if kind.startswith("image/"):
        image = v1.ContentItem(image=v1.ImageContent(data=data))
        return v1.Document(content=v1.ContentOrUrl(content=v1.InterleavedContent(items=[image])), mime_type=kind)
    try:
        text = f"{path.name}\n\n{data.decode()}"
        return v1.Document(content=v1.ContentOrUrl(content=content(text)), mime_type=kind or "text/plain")
    except UnicodeDecodeError:
        address = f"data:{kind or 'application/octet-stream'};base64,{base64.b64encode(data).decode()}"
        return v1.Document(content=v1.ContentOrUrl(url=v1.URL(uri=address)), mime_type=kind)

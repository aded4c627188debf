"""What a call gave, in the form that Llama models know: a status, then stdout and stderr between tags."""

import base64
import json
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass

from llamastack import v1
from services.tools.interpreter import folder
from services.tools.interpreter.config import InterpreterConfig
from services.tools.interpreter.job import End, Outcome, Room
from services.tools.interpreter.output import STREAMS, Output

MOST_SAID = 256 << 10
"""Bytes of what the sandbox tells of a call."""
CODES: dict[End, int] = {"": 1, "time": 2, "fuel": 3, "memory": 4, "disk": 5, "output": 6, "died": 7}
"""`error_code` by how a call ended; "" with an exception."""
UNAVAILABLE = 8
_PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_TEXTS = ("text/", "application/json", "image/svg+xml", "application/xml")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the sandbox told of a call; anything may stand there, since the code can write it too."""

    complete: bool
    """It came to its end."""
    error: str = ""
    """The traceback."""
    note: str = ""
    """What could not be restored."""
    lost: str = ""
    """Which variables could not be kept."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a call wrote."""

    documents: tuple[v1.Document, ...] = ()
    names: tuple[str, ...] = ()
    """Of the documents, in their order."""
    others: tuple[str, ...] = ()
    """Names of files that were too many or too large, with the reason."""


def read_said(room: Room) -> Said:
    """What the sandbox left in the room."""
    data = folder.read(str(room.state), "result", most=MOST_SAID)
    if data is None:
        return Said(complete=False)
    values: dict[str, str] = {}
    for line in data.decode("ascii", "replace").splitlines():
        key, _, text = line.partition("=")
        try:
            values[key] = str(json.loads(text)).encode("utf-8", "replace").decode()
        except (ValueError, RecursionError):
            return Said(complete=False)
    return Said(
        complete="complete" in values,
        error=values.get("error", ""),
        note=values.get("note", ""),
        lost=values.get("lost", ""),
    )


def read_files(room: Room, before: Mapping[str, folder.Seen], config: InterpreterConfig) -> Files:
    """The files in the working folder that are new or changed, within the bounds."""
    after = folder.snapshot(str(room.work), most=config.disk_entries)
    documents: list[v1.Document] = []
    names: list[str] = []
    others: list[str] = []
    room_left = config.attachment_bytes
    for name in sorted(name for name, seen in after.items() if before.get(name) != seen and _shown(name)):
        shown = name.encode("utf-8", "replace").decode()
        if len(documents) >= config.attachments:
            others.append(f"{shown} (more than {config.attachments} files)")
            continue
        data = folder.read(str(room.work), name, most=room_left)
        if data is None:
            others.append(f"{shown} ({after[name].size} bytes: too large to attach)")
            continue
        room_left -= len(data)
        documents.append(_document(name, data))
        names.append(shown)
    return Files(documents=tuple(documents), names=tuple(names), others=tuple(others[:50]))


def tell(
    outcome: Outcome, said: Said, output: Output, files: Files, *, advice: str, lives_on: bool
) -> v1.ToolInvocationResult:
    """The result of a call.

    Args:
        outcome: How it ended.
        said: What the sandbox told.
        output: What it printed.
        files: What it wrote.
        advice: For a call that was ended, what to change; empty for others.
        lives_on: The session's process stays, with what cannot be kept on disk.
    """
    error = advice or said.error
    streams = {name: output.text(name).strip("\n") for name in STREAMS}
    if error:
        streams["stderr"] = "\n".join(part for part in (streams["stderr"], error.strip("\n")) if part)
    parts = ["error" if error else "completed"]
    for name, text in streams.items():
        if text:
            parts += [f"[{name}]", text, f"[/{name}]"]
    if files.names or files.others:
        parts.append("Files written: " + ", ".join((*files.names, *files.others)))
    parts += [said.note] if said.note else []
    parts += [f"Not kept for the next call: {said.lost}"] if said.lost and not lives_on else []
    result = v1.ToolInvocationResult(attachments=files.documents)
    result.content.items.add(text="\n".join(parts))
    facts = {"files": list(files.names), "not_kept": said.lost}
    result.metadata.update({key: value for key, value in facts.items() if value})
    if error:
        result.error_code = CODES[outcome.end if advice else ""]
        result.error_message = error if len(error) <= 4000 else f"{error[:1500]}\n...\n{error[-2500:]}"
    return result


def _shown(name: str) -> bool:
    """Caches and hidden files are of no interest."""
    return not any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))


def _document(name: str, data: bytes) -> v1.Document:
    kind = next((kind for start, kind in _PICTURES.items() if data.startswith(start)), None)
    if kind is not None:
        document = v1.Document(mime_type=kind)
        document.content.content.items.add().image.data = data
        return document
    kind = mimetypes.guess_type(name, strict=False)[0] or ""
    text = _text(data) if not kind or kind.startswith(_TEXTS) else None
    if text is not None:
        document = v1.Document(mime_type=kind or "text/plain")
        document.content.content.items.add(text=text)
        return document
    kind = kind if kind and not kind.startswith(("text/", "image/png", "image/jpeg")) else "application/octet-stream"
    document = v1.Document(mime_type=kind)
    document.content.url.uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return document


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None

"""What passes between the parent and the child that parses. Light: a child imports nothing of the mesh beyond this."""

import json
import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

LENGTH = struct.Struct("!Q")
"""Before each frame's JSON, and before the bytes that follow it."""
MAX_HEAD = 64 * 1024


class RefusedError(Exception):
    """A document that cannot be read.

    Args:
        message: What is wrong, and what to do.
        reason: `invalid`, `too_large` or `unsupported`.
    """

    def __init__(self, message: str, *, reason: str = "invalid") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason


_OURS = re.compile(
    "(?:" + "|".join(re.escape(str(root)) for root in {sys.prefix, sys.base_prefix, Path(__file__).parents[3]}) + r")"
    r"[^\s'\":,;)]*"
)
"""Paths of this installation."""


def cause(error: Exception) -> str:
    """What a reader says of its failure, without paths of this machine."""
    what = error.strerror or "" if isinstance(error, OSError) else str(error)
    what = _OURS.sub("a file", what)
    return f"{type(error).__name__}: {what}" if what else type(error).__name__


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one document may cost."""

    seconds: float = 60.0
    """Of the clock, and of the processor."""
    memory_bytes: int = 1 << 30
    """Address space of the child beyond the document itself."""
    characters: int = 20_000_000
    """Of its text."""
    pages: int = 5_000
    """Pages or slides."""
    inflated_bytes: int = 256 << 20
    """Of all parts of a zipped document together."""
    depth: int = 100
    """Of nesting in JSON."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A document to be parsed; its bytes follow."""

    name: str
    """File name; tells apart kinds of text."""
    mime_type: str = ""
    """As declared; tells apart kinds of text."""
    limits: Limits = field(default_factory=Limits)

    def pack(self) -> bytes:
        """As it is sent."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, data: bytes) -> "Task":
        """As it was packed."""
        values = json.loads(data)
        return cls(**{**values, "limits": Limits(**values["limits"])})


@dataclass(frozen=True, kw_only=True)
class Extract:
    """The text of a document; see `services.memory.text.Parsed`."""

    text: str
    mime_type: str
    structure: str = "prose"
    language: str = ""
    pages: tuple[int, ...] = ()
    title: str = ""


def write_frame(stream: BinaryIO, head: Mapping[str, Any] | bytes, body: bytes = b"") -> None:
    """Send JSON and bytes."""
    packed = head if isinstance(head, bytes) else json.dumps(head).encode()
    stream.write(LENGTH.pack(len(packed)) + packed + LENGTH.pack(len(body)))
    stream.write(body)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    """Receive JSON and bytes; None when the other end is gone."""
    parts = []
    for _ in range(2):
        length = stream.read(LENGTH.size)
        if len(length) < LENGTH.size:
            return None
        parts.append(stream.read(LENGTH.unpack(length)[0]))
    return parts[0], parts[1]

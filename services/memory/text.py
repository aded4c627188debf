"""What passes between parsing, cutting and storing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from services.memory.chunks import Vector

Structure = Literal["prose", "markdown", "code", "table"]


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """The text of a document."""

    text: str
    """Plain text or Markdown, with `\\n` as line end; what spans count in, in Unicode code points."""
    mime_type: str
    """Media type of the source, found by its content."""
    structure: Structure = "prose"
    """What it can be cut along."""
    language: str = ""
    """Programming language of code, for example `python`; empty = not known."""
    pages: Sequence[int] = ()
    """Where each page or slide begins in `text`, ascending from 0; empty = it has none."""
    title: str = ""
    """As the document itself says; empty = it does not."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a document: `text == parsed.text[start:stop]`."""

    text: str
    """What is cited."""
    start: int
    """First character in the document's text."""
    stop: int
    """One past the last."""
    tokens: int
    """Tokens of context and text, counted by the embedding model."""
    page: int | None = None
    """Page of its first character, from 1; None = the document has none."""
    context: str = ""
    """Written by a model to place the text in its document; searched together with it, never cited."""

    @property
    def searched(self) -> str:
        """What is embedded and searched by words."""
        return f"{self.context}\n{self.text}" if self.context else self.text


@dataclass(frozen=True, kw_only=True)
class DraftChunk:
    """A chunk to be stored."""

    piece: Piece
    """Its text."""
    metadata: dict[str, Any]
    """The user's facts about it."""
    chunk_id: str = ""
    """Identifier; empty = made of document, content and place."""
    embedding: Vector | None = None
    """Given by the caller; None = computed where the bank has a model."""


@dataclass(frozen=True, kw_only=True)
class DraftDocument:
    """A document to be stored, with its chunks."""

    document_id: str
    """Unique in its bank; one that is there is replaced."""
    parsed: Parsed
    """Its text."""
    chunks: Sequence[DraftChunk]
    """In their order."""
    recipe_hash: str
    """SHA-256 of everything that the chunks depend on; a stored document with the same one is left as it is."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """The user's facts."""
    source: str = ""
    """File name or URL."""
    file_id: str = ""
    """The uploaded file; empty = none."""
    source_hash: str = ""
    """SHA-256 of the bytes that it was made of; empty = not known."""
    expires_at: int | None = None
    """Microseconds since 1970; None means never."""


class TokenCounter(Protocol):
    """Where the tokens of a text lie, as the embedding model cuts it."""

    async def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        """First and one past the last character of each token, ascending, special tokens left out."""

    @property
    def window(self) -> int:
        """Tokens of a text that the model reads, special tokens left out."""

"""Drafts as rows of the tables, and rows as indexes see them."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.memory.bank import Bank
from services.memory.chunks import IndexedChunk
from services.memory.embedder import content_hash, to_blob
from services.memory.filters import facts_of
from services.memory.text import DraftChunk, DraftDocument, Parsed
from services.runtime.moments import now
from stack_client.errors import InvalidArgumentError

ID_DIGITS = 32


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A document as it is going to be stored."""

    draft: DraftDocument
    """What was asked for."""
    facts: Mapping[str, Any]
    """Its metadata as filters see it."""
    rows: Sequence[dict[str, Any]]
    """Its chunks, without document, number and revision; `embedding` may still be None."""

    def equals(self, stored: Any) -> bool:  # noqa: ANN401 (a row, as attributes or as a mapping)
        """Whether a stored document needs no change."""
        if stored is None:
            return False
        row = stored if isinstance(stored, Mapping) else stored._mapping  # noqa: SLF001 (SQLAlchemy's name for it)
        same = bool(self.draft.recipe_hash) and row["recipe_hash"] == self.draft.recipe_hash
        return same and row["expires_at"] == self.draft.expires_at

    def document(self, bank: Bank, *, revision: int) -> dict[str, Any]:
        """The document's columns, but for its number and when it was first stored."""
        draft = self.draft
        return {
            "bank": bank.number,
            "document_id": draft.document_id,
            "source": draft.source,
            "file_id": draft.file_id,
            "mime_type": draft.parsed.mime_type,
            "content": draft.parsed.text,
            "pages": list(draft.parsed.pages),
            "metadata": draft.metadata,
            "facts": self.facts,
            "content_hash": content_hash(draft.parsed.text),
            "source_hash": draft.source_hash,
            "recipe_hash": draft.recipe_hash,
            "revision": revision,
            "token_count": sum(row["token_count"] for row in self.rows),
            "chunk_count": len(self.rows),
            "updated_at": now(),
            "expires_at": draft.expires_at,
        }


@dataclass(frozen=True, kw_only=True)
class LooseChunk:
    """A chunk that came without its document."""

    document_id: str
    """The document that it belongs to."""
    source: str
    """Where the document came from; empty = not known."""
    chunk: DraftChunk
    """The chunk."""


def draft_of(document_id: str, loose: Sequence[LooseChunk], *, expires_at: int | None) -> DraftDocument:
    """A document without a text of its own, made of chunks."""
    return DraftDocument(
        document_id=document_id,
        parsed=Parsed(text="", mime_type="text/plain"),
        chunks=[one.chunk for one in loose],
        recipe_hash="",
        source=next((one.source for one in loose if one.source), ""),
        expires_at=expires_at,
    )


def plan(bank: Bank, draft: DraftDocument) -> Planned:
    """A draft as it is going to be stored.

    Raises:
        InvalidArgumentError: If metadata breaks the bank's declared fields.
    """
    facts = _facts(draft.metadata, bank=bank, document_id=draft.document_id, source=draft.source)
    seen: Counter[str] = Counter()
    rows = []
    for place, chunk in enumerate(draft.chunks):
        digest = content_hash(chunk.piece.searched)
        metadata = {**draft.metadata, **chunk.metadata}
        rows.append({
            "bank": bank.number,
            "chunk_id": chunk.chunk_id or chunk_id(draft.document_id, digest, seen[digest]),
            "place": place,
            **_of_piece(chunk),
            "content_hash": digest,
            "metadata": metadata,
            "facts": _facts(metadata, bank=bank, document_id=draft.document_id, source=draft.source),
            "embedding": None if chunk.embedding is None else to_blob(chunk.embedding),
            "embedding_stamp": bank.embedding_stamp,
            "created_at": now(),
            "expires_at": draft.expires_at,
        })  # fmt: skip
        seen[digest] += 1
    return Planned(draft=draft, facts=facts, rows=rows)


def chunk_columns(
    row: Mapping[Any, Any], *, metadata: dict[str, Any], bank: Bank, document: Mapping[Any, Any]
) -> dict[str, Any]:
    """A stored chunk's columns with other metadata, to be written as a new chunk."""
    facts = _facts(metadata, bank=bank, document_id=document["document_id"], source=document["source"])
    copied = {name: value for name, value in row.items() if name not in {"number", "revision"}}
    return {**copied, "metadata": metadata, "facts": facts}


def indexed(bank: Bank, row: Mapping[Any, Any]) -> IndexedChunk:
    """A chunk's row as indexes see it."""
    return IndexedChunk(
        number=row["number"],
        text=searched(row),
        embedding=None if row["embedding"] is None else np.frombuffer(row["embedding"], "<f4"),
        facts=row["facts"],
        fields={name: words(row["metadata"].get(name)) for name in bank.keyword_fields if name != "content"},
        expires_at=row["expires_at"],
    )


def searched(row: Mapping[Any, Any]) -> str:
    """What of a chunk is embedded and searched by words."""
    return f"{row['context']}\n{row['text']}" if row["context"] else str(row["text"])


def chunk_id(document_id: str, digest: str, occurrence: int) -> str:
    """Identifier of a chunk: of its document and content, so that moving it keeps it."""
    return hashlib.sha256(json.dumps([document_id, digest, occurrence]).encode()).hexdigest()[:ID_DIGITS]


def words(value: Any) -> str:  # noqa: ANN401 (JSON)
    """A metadata value as text to be searched."""
    if isinstance(value, list):
        return "\n".join(words(one) for one in value)
    return "" if value is None or isinstance(value, dict) else str(value)


def _facts(metadata: Mapping[str, Any], *, bank: Bank, document_id: str, source: str) -> dict[str, Any]:
    given = {"document_id": document_id, **({"source": source} if source else {}), **metadata}
    if "\\u0000" in json.dumps(given):
        raise InvalidArgumentError("metadata holds a NUL character; leave it out", field="metadata")
    return facts_of(given, fields=bank.fields, field="metadata")


def _of_piece(chunk: DraftChunk) -> dict[str, Any]:
    piece = chunk.piece
    placed = piece.stop > piece.start
    return {
        "text": piece.text,
        "context": piece.context,
        "start": piece.start if placed else None,
        "stop": piece.stop if placed else None,
        "page": piece.page,
        "token_count": piece.tokens,
    }

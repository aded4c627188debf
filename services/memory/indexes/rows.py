"""Rows of the table of chunks as indexes take them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa

from services.memory.bank import Bank
from services.memory.chunks import IndexedChunk
from services.memory.tables import chunks

COLUMNS = [
    chunks.c[name] for name in ("number", "text", "context", "embedding_stamp", "facts", "metadata", "expires_at")
]
"""What `indexed` needs beside the embedding."""


def indexed(bank: Bank, row: Mapping[Any, Any]) -> IndexedChunk:
    """A chunk's row as indexes see it; an embedding of another space than the bank's is none."""
    blob = row["embedding"] if row["embedding_stamp"] == bank.embedding_stamp else None
    metadata = row["metadata"]
    return IndexedChunk(
        number=row["number"],
        text=f"{row['context']}\n{row['text']}" if row["context"] else row["text"],
        embedding=None if blob is None else np.frombuffer(blob, "<f4"),
        facts=row["facts"],
        fields={name: searched(metadata.get(name)) for name in bank.keyword_fields if name != "content"},
        expires_at=row["expires_at"],
    )


def searched(value: Any) -> str:  # noqa: ANN401 (JSON)
    """The words of a metadata value: a text, a number as it is written, or all of a list."""
    match value:
        case str():
            return value
        case bool():
            return ""
        case int() | float():
            return f"{value:.15g}"
        case list():
            return "\n".join(searched(item) for item in value)
    return ""


def of_bank(bank: Bank, *, embeddings: bool = True) -> sa.Select[Any]:
    """All chunks of a bank, as `indexed` needs them."""
    embedding = chunks.c.embedding if embeddings else sa.null().label("embedding")
    return sa.select(*COLUMNS, embedding).where(chunks.c.bank == bank.number)

"""Hits as callers see them."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.memory.bank import Bank
from services.memory.retrieve import Hit
from services.runtime.moments import stamp
from stack_client.content import content, struct


def bank_chunk(bank: Bank, row: Mapping[Any, Any]) -> v1.MemoryBankChunk:
    """A chunk of a bank; `row` has its document's facts, see `Retriever.load`."""
    return v1.MemoryBankChunk(
        content=content(row["text"]),
        token_count=row["token_count"],
        document_id=row["document_id"],
        chunk_id=row["chunk_id"],
        bank_id=bank.identifier,
        metadata=metadata_of(row),
        span=span_of(row),
        source=row["source"],
        page=row["page"],
    )


def chunk(hit: Hit) -> v1.Chunk:
    """A chunk as vector IO shows it."""
    row, bank = hit.chunk, hit.bank
    return v1.Chunk(
        content=content(row["text"]),
        metadata=struct({"document_id": row["document_id"], **row["metadata"]}),  # clients look for it here
        chunk_id=row["chunk_id"],
        chunk_metadata=chunk_metadata(bank, row),
        embedding_model=bank.embedding_model or None,
        embedding_dimension=bank.embedding_dimension or None,
    )


def chunk_metadata(bank: Bank, row: Mapping[Any, Any]) -> v1.ChunkMetadata:
    """What the service keeps about a chunk."""
    return v1.ChunkMetadata(
        chunk_id=row["chunk_id"],
        document_id=row["document_id"],
        source=row["source"] or None,
        created_timestamp=stamp(row["created_at"]),
        updated_timestamp=stamp(row["created_at"]),
        chunk_tokenizer=bank.embedding_model or None,
        chunk_embedding_model=bank.embedding_model or None,
        chunk_embedding_dimension=bank.embedding_dimension or None,
        content_token_count=row["token_count"],
        span=span_of(row),
        page=row["page"],
    )


def span_of(row: Mapping[Any, Any]) -> v1.TextSpan | None:
    """Its place in the document's text, or None."""
    return None if row["start"] is None else v1.TextSpan(start=row["start"], end=row["stop"])


def metadata_of(row: Mapping[Any, Any]) -> Struct | None:
    """The user's facts; None where there are none."""
    return struct(row["metadata"]) if row["metadata"] else None

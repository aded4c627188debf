"""Configuration of the memory service, section `memory` of the stack's file."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Store, indexes and bounds of the memory service."""

    database: str = ""
    """URL of the store, `sqlite:////file` or `postgresql://user@host/name`; empty means a SQLite file in the data
    folder."""
    embedding_model: str = ""
    """Model of banks that name none; empty means the first embedding model of the inference service."""
    vector_index: str = "auto"
    """Index of vector banks that name none: `scan`, `qdrant-edge`, `qdrant` or `pgvector`. `auto` takes pgvector where
    the database has it, else scans up to `scan_chunks` and qdrant-edge beyond."""
    keyword_index: str = "auto"
    """Index of words: `fts5`, `tsvector` or `tantivy`. `auto` takes the database's own up to `tantivy_chunks` and
    tantivy beyond."""
    scan_chunks: int = 150_000
    """Chunks up to which `auto` scans."""
    tantivy_chunks: int = 200_000
    """Chunks from which `auto` takes tantivy."""
    qdrant_url: str = ""
    """Address of a Qdrant server, for `qdrant`; a folder means its local engine."""
    chat_model: str = ""
    """Model that rewrites questions and whose tokens contexts are counted in, where a call names none; empty means the
    first chat model of the inference service."""
    embed_batch: int = 64
    """Texts of one Embed call."""
    cached_embeddings: int = 200_000
    """Embeddings kept by content, beside those of the chunks; 0 keeps none."""

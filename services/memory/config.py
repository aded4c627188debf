"""Configuration of the memory service, section `memory` of the stack's file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Store, indexes and bounds of the memory service."""

    database: str = ""
    """URL of the store, `sqlite:////file` or `postgresql://user@host/name`; empty means that of the environment
    variable `STACK_MEMORY_DATABASE`, which may hold a password, else a SQLite file in the data folder."""
    database_password_file: Path | None = None
    """File that holds the password of the database; unset means the one named by `STACK_MEMORY_PASSWORD_FILE`, else
    what the URL says."""
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
    """Model that rewrites questions, writes lines of context and whose tokens are counted, where a call names none;
    empty means the first chat model of the inference service."""
    embed_batch: int = 64
    """Texts of one Embed call."""
    cached_embeddings: int = 200_000
    """Embeddings kept by content, beside those of the chunks; 0 keeps none."""
    parser: Literal["builtin", "docling"] = "builtin"
    """Reads PDF and Office files: `builtin`, or `docling`, whose package is installed separately."""
    parse_children: int = 2
    """Documents read at once, each in a process of its own."""
    parse_seconds: float = 60.0
    """Longest time to read one document."""
    parse_memory_bytes: int = 1 << 30
    """Memory that reading one document may take."""
    fetch_allow: tuple[str, ...] = ()
    """Hosts and networks that URLs of documents may lead to although they are not public, such as `docs.internal` or
    `10.1.0.0/16`."""
    fetch_folders: tuple[str, ...] = ()
    """Folders whose files `file:` URLs of documents may name."""
    fetch_max_bytes: int = 64 << 20
    """Size of a fetched document."""
    fetch_seconds: float = 30.0
    """Longest time to fetch a document."""
    max_file_bytes: int = 512 << 20
    """Size of an uploaded file, below 4 GiB."""
    jobs_at_once: int = 2
    """Ingestion jobs that this process works on at once; 0 leaves them to other processes of the same database."""
    documents_at_once: int = 4
    """Documents of one ingestion job handled at once."""
    lease_seconds: float = 30.0
    """After how long without a sign of life a job goes to another worker."""

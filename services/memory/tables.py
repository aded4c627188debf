"""The tables of the memory service: the truth. Every index is a cache of them.

Times are microseconds since 1970. Every row belongs to a bank, and a bank to a tenant; what belongs to no bank names
its tenant itself. Numbers are made by the database, never given out twice, and never shown to callers.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Moment = sa.BigInteger
Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
# Identifiers are compared and ordered by code point, as SQLite does by itself.
Name = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def _number() -> sa.Column[int]:
    return sa.Column("number", Number, primary_key=True, autoincrement=True)


def _of_bank(*, primary_key: bool = False) -> sa.Column[int]:
    return sa.Column("bank", Number, sa.ForeignKey("bank.number"), primary_key=primary_key, nullable=False)


banks = sa.Table(
    "bank",
    metadata,
    _number(),
    sa.Column("tenant", Name, nullable=False),
    sa.Column("identifier", Name, nullable=False),
    sa.Column("kind", Name, nullable=False),  # vector, keyvalue, keyword, graph
    sa.Column("params", sa.LargeBinary, nullable=False),  # a BankParams message, defaults filled in
    sa.Column("provider_id", Name, nullable=False),  # the index it asked for, or "auto"
    sa.Column("provider_resource_id", Name, nullable=False),
    sa.Column("display_name", sa.String, nullable=True),  # of a vector database
    sa.Column("embedding_model", Name, nullable=False, server_default=""),
    sa.Column("embedding_dimension", sa.Integer, nullable=False, server_default="0"),
    # Which of a chunk's embeddings counts: a new one is computed beside the old until all are there.
    sa.Column("embedding_stamp", Name, nullable=False, server_default=""),
    # One more with every change of what is in it, in the order of commits: writers hold the row until they commit.
    sa.Column("revision", Number, nullable=False, server_default="0"),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("store", sa.LargeBinary, nullable=True),  # a VectorStore message; null where it was not made as one
    sa.Column("expires_at", Moment, nullable=True),
    sa.UniqueConstraint("tenant", "identifier"),
    sqlite_autoincrement=True,
)

documents = sa.Table(
    "document",
    metadata,
    _number(),
    _of_bank(),
    sa.Column("document_id", Name, nullable=False),
    sa.Column("source", sa.String, nullable=False, server_default=""),  # file name or URL
    sa.Column("file_id", Name, nullable=False, server_default=""),
    sa.Column("mime_type", sa.String, nullable=False, server_default=""),
    sa.Column("content", sa.Text, nullable=False),  # what spans count in
    sa.Column("pages", Json, nullable=False),  # where each page begins in it; [] = it has none
    sa.Column("metadata", Json, nullable=False),  # the user's, as given
    sa.Column("facts", Json, nullable=False),  # the same as filters see it
    sa.Column("content_hash", Name, nullable=False),
    sa.Column("source_hash", Name, nullable=False, server_default=""),  # of the bytes it was made of
    # Of everything the chunks depend on: content, metadata, how it was cut. Equal means nothing to do.
    sa.Column("recipe_hash", Name, nullable=False),
    sa.Column("revision", Number, nullable=False),  # of its last change; also its etag
    sa.Column("token_count", sa.Integer, nullable=False),
    sa.Column("chunk_count", sa.Integer, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("expires_at", Moment, nullable=True, index=True),
    # Not by bank first: PostgreSQL takes any index on the bank for a new one, of which its statistics know nothing.
    sa.UniqueConstraint("document_id", "bank"),
    sa.Index(None, "file_id"),
    sa.Index(None, "bank", "number"),
    sqlite_autoincrement=True,
)

# A chunk is never changed: what changes gets a new number.
chunks = sa.Table(
    "chunk",
    metadata,
    _number(),
    _of_bank(),
    sa.Column("document", Number, sa.ForeignKey("document.number"), nullable=False, index=True),
    sa.Column("chunk_id", Name, nullable=False),
    sa.Column("place", sa.Integer, nullable=False),  # in its document, from 0
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("context", sa.Text, nullable=False, server_default=""),  # written by a model; searched, not cited
    sa.Column("start", sa.Integer, nullable=True),  # characters of the document's content; null = not known
    sa.Column("stop", sa.Integer, nullable=True),
    sa.Column("page", sa.Integer, nullable=True),  # from 1
    sa.Column("token_count", sa.Integer, nullable=False),
    sa.Column("content_hash", Name, nullable=False),  # of context and text: the key of its embedding
    sa.Column("metadata", Json, nullable=False),  # as given with the chunk or its document
    sa.Column("facts", Json, nullable=False),  # what filters see
    sa.Column("embedding", sa.LargeBinary, nullable=True),  # float32, little endian; null in keyword banks
    sa.Column("embedding_stamp", Name, nullable=False, server_default=""),
    sa.Column("revision", Number, nullable=False),  # the bank's, when it was written
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("expires_at", Moment, nullable=True),
    sa.UniqueConstraint("chunk_id", "bank"),
    sa.Index(None, "bank", "revision"),
    sqlite_autoincrement=True,
)

# Chunks that are gone, for the caches that still hold them.
removals = sa.Table(
    "removal",
    metadata,
    _of_bank(primary_key=True),
    sa.Column("revision", Number, primary_key=True),
    sa.Column("chunk", Number, primary_key=True),
)

embeddings = sa.Table(
    "embedding",
    metadata,
    sa.Column("stamp", Name, primary_key=True),  # model and dimension
    sa.Column("content_hash", Name, primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("used_at", Moment, nullable=False, index=True),
)

requests = sa.Table(
    "request",
    metadata,
    sa.Column("tenant", Name, primary_key=True),
    sa.Column("method", Name, primary_key=True),
    sa.Column("request_id", Name, primary_key=True),
    sa.Column("created_at", Moment, nullable=False, index=True),
    sa.Column("bank", Number, nullable=True, index=True),  # what it changed; a bank that goes takes its answers along
    sa.Column("body", sa.LargeBinary, nullable=False),  # its hash
    sa.Column("answer", sa.LargeBinary, nullable=False),
)

# Embeddings of another model, computed beside those that count until all are there.
stagings = sa.Table(
    "staging",
    metadata,
    sa.Column("chunk", Number, primary_key=True, autoincrement=False),
    sa.Column("stamp", Name, primary_key=True),
    _of_bank(),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Index(None, "bank", "stamp"),
)

# Values of key-value banks. Keys are bytes: both databases order them alike.
entries = sa.Table(
    "entry",
    metadata,
    _of_bank(primary_key=True),
    sa.Column("key", sa.LargeBinary, primary_key=True),  # UTF-8
    sa.Column("version", Number, nullable=False),
    sa.Column("revision", Number, nullable=False),  # the bank's, when it was written
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("expires_at", Moment, nullable=True, index=True),
    sa.Column("metadata", sa.LargeBinary, nullable=True),  # a Struct message; null = none
    sa.Column("json", sa.LargeBinary, nullable=True),  # a Value message; null = bytes
    sa.Column("data", sa.LargeBinary, nullable=True),
)

# What happened to them, for those who watch; the oldest changes are forgotten.
entry_changes = sa.Table(
    "entry_change",
    metadata,
    _of_bank(primary_key=True),
    sa.Column("revision", Number, primary_key=True),
    sa.Column("key", sa.LargeBinary, primary_key=True),
    sa.Column("kind", Name, nullable=False),  # put, deleted, expired
    sa.Column("size", sa.Integer, nullable=False),  # bytes of the value
    sa.Column("version", Number, nullable=False),  # the columns from here on are the entry's; 0 and null when it went
    sa.Column("updated_at", Moment, nullable=True),
    sa.Column("expires_at", Moment, nullable=True),
    sa.Column("metadata", sa.LargeBinary, nullable=True),
    sa.Column("json", sa.LargeBinary, nullable=True),
    sa.Column("data", sa.LargeBinary, nullable=True),
)

# Up to which revision the changes of a bank were forgotten; no row = none were.
entry_logs = sa.Table(
    "entry_log",
    metadata,
    _of_bank(primary_key=True),
    sa.Column("forgotten", Number, nullable=False),
)

# Nodes of graph banks, as they are now.
entities = sa.Table(
    "entity",
    metadata,
    _of_bank(primary_key=True),
    sa.Column("entity_id", Name, primary_key=True),
    sa.Column("type", Name, nullable=False),
    sa.Column("created_at", Moment, nullable=False),  # first stored
    sa.Column("recorded_at", Moment, nullable=False),  # last changed
    sa.Column("body", sa.LargeBinary, nullable=False),  # a GraphEntity message as given
)

# Words of their names and aliases, folded.
entity_words = sa.Table(
    "entity_word",
    metadata,
    _of_bank(primary_key=True),
    sa.Column("word", Name, primary_key=True),
    sa.Column("entity_id", Name, primary_key=True),
    sa.Index(None, "entity_id", "bank"),  # see `edges`
)

# Statements with two times: when they hold, and when that was stored. A row is what was known of an edge from
# `recorded_at` to `superseded_at`; what is known now has `graph_plan.FOREVER` there. Moments that are not given are
# `graph_plan.BEGINNING` and `graph_plan.FOREVER`: comparisons need no nulls.
edges = sa.Table(
    "edge",
    metadata,
    _number(),
    _of_bank(),
    sa.Column("edge_id", Name, nullable=False),
    sa.Column("source", Name, nullable=False),
    sa.Column("relation", Name, nullable=False),
    sa.Column("target", Name, nullable=False),
    sa.Column("valid_from", Moment, nullable=False),
    sa.Column("valid_to", Moment, nullable=False),  # exclusive
    sa.Column("recorded_at", Moment, nullable=False),
    sa.Column("superseded_at", Moment, nullable=False),  # exclusive
    sa.Column("body", sa.LargeBinary, nullable=False),  # a GraphEdge message as given
    # Not the bank first: for a new bank, which is not in its statistics yet, PostgreSQL takes all such indexes as
    # equally good, and reads the whole bank.
    sa.Index(None, "source", "bank", "relation", "target"),
    sa.Index(None, "target", "bank"),
    sa.Index(None, "edge_id", "bank"),
    sqlite_autoincrement=True,
)

# A file is visible from its row on; pieces without one belong to an upload that goes on, or broke.
files = sa.Table(
    "file",
    metadata,
    _number(),
    sa.Column("tenant", Name, nullable=False),
    sa.Column("file_id", Name, nullable=False, unique=True),
    sa.Column("upload", Name, nullable=False, unique=True),  # of its parts
    sa.Column("filename", sa.String, nullable=False),
    sa.Column("purpose", sa.Integer, nullable=False),  # FilePurpose
    sa.Column("status", sa.Integer, nullable=False),  # FileStatus
    sa.Column("status_details", sa.String, nullable=True),
    sa.Column("mime_type", sa.String, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", Name, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("expires_at", Moment, nullable=True, index=True),
    sa.Index(None, "tenant", "number"),
    sqlite_autoincrement=True,
)

file_parts = sa.Table(
    "file_part",
    metadata,
    sa.Column("upload", Name, primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),  # from 0; each but the last has 1 MiB
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
)

# Work in the background. It outlives its bank: `bank_id` says what it was.
jobs = sa.Table(
    "job",
    metadata,
    _number(),
    sa.Column("tenant", Name, nullable=False),
    sa.Column("job_id", Name, nullable=False),
    sa.Column("bank", Number, nullable=False, index=True),
    sa.Column("bank_id", Name, nullable=False),
    sa.Column("status", sa.Integer, nullable=False, index=True),  # JobStatus
    sa.Column("request", sa.LargeBinary, nullable=False),  # CreateIngestionJobRequest without its source's members
    sa.Column("digest", Name, nullable=False),  # of the whole request: the same job again is the same
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("done", sa.Integer, nullable=False, server_default="0"),
    sa.Column("counts", Json, nullable=False),  # documents by outcome, chunks, bytes
    sa.Column("message", sa.String, nullable=False, server_default=""),
    sa.Column("error", sa.LargeBinary, nullable=True),  # an Error message
    sa.Column("expires_at", Moment, nullable=True),  # of its documents
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("started_at", Moment, nullable=True),
    sa.Column("completed_at", Moment, nullable=True),
    sa.Column("last_sequence", sa.Integer, nullable=False, server_default="0"),
    # Who works on it, until when; a worker whose fence is no longer the row's has lost it.
    sa.Column("worker", Name, nullable=False, server_default=""),
    sa.Column("leased_until", Moment, nullable=False, server_default="0"),
    sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
    sa.UniqueConstraint("tenant", "job_id"),
    sqlite_autoincrement=True,
)

job_items = sa.Table(
    "job_item",
    metadata,
    sa.Column("job", Number, sa.ForeignKey("job.number"), primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("document_id", Name, nullable=False),
    sa.Column("file_id", Name, nullable=False, server_default="", index=True),
    sa.Column("source", sa.String, nullable=False, server_default=""),  # in citations, where not the file's name
    sa.Column("document", sa.LargeBinary, nullable=True),  # a RAGDocument; null once it is done
    sa.Column("done", sa.Boolean, nullable=False, server_default=sa.false()),
)

job_events = sa.Table(
    "job_event",
    metadata,
    sa.Column("job", Number, sa.ForeignKey("job.number"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),  # from 1 without gaps
    sa.Column("event", sa.LargeBinary, nullable=False),  # a WatchIngestionJobResponse
    sa.Column("created_at", Moment, nullable=False),
)

# Indexes that live in this database, each in tables `index_...` of its own. No foreign key: they go after their bank.
bank_indexes = sa.Table(
    "bank_index",
    metadata,
    sa.Column("bank", Number, primary_key=True, autoincrement=False),
    sa.Column("name", Name, primary_key=True),
    sa.Column("mark", Name, nullable=False),  # of what its content depends on; another one: it is made again
    sa.Column("totals", Json, nullable=False),  # what it counts
)

# Files of vector stores. The document of a file has its identifier.
store_files = sa.Table(
    "store_file",
    metadata,
    _number(),
    _of_bank(),
    sa.Column("file_id", Name, nullable=False),
    sa.Column("job", Number, nullable=False),  # that loads it
    sa.Column("status", sa.Integer, nullable=False),  # VectorStoreFileStatus
    sa.Column("detached", sa.Boolean, nullable=False, server_default=sa.false()),  # goes when its job has handled it
    sa.Column("attributes", Json, nullable=False),
    sa.Column("given", Json, nullable=False),  # the attributes that its job writes
    sa.Column("strategy", sa.LargeBinary, nullable=False),  # a ChunkingStrategy message
    sa.Column("error_code", Name, nullable=False, server_default=""),
    sa.Column("error_message", sa.String, nullable=False, server_default=""),
    sa.Column("usage_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("created_at", Moment, nullable=False),
    sa.UniqueConstraint("bank", "file_id"),
    sqlite_autoincrement=True,
)

# Jobs that load them, and how far their events were taken over.
store_jobs = sa.Table(
    "store_job",
    metadata,
    sa.Column("job", Number, primary_key=True, autoincrement=False),
    _of_bank(),
    sa.Column("job_id", Name, nullable=False),
    sa.Column("batch", Number, nullable=True, index=True),  # null = none
    sa.Column("seen", sa.Integer, nullable=False, server_default="0"),  # sequence
    sa.Column("ended", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index(None, "bank", "ended"),
)

file_batches = sa.Table(
    "file_batch",
    metadata,
    _number(),
    _of_bank(),
    sa.Column("batch_id", Name, nullable=False, unique=True),
    sa.Column("status", sa.Integer, nullable=False),  # VectorStoreFileStatus
    sa.Column("cancelling", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("last_sequence", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("ended_at", Moment, nullable=True),
    sa.Index(None, "bank", "number"),
    sqlite_autoincrement=True,
)

batch_files = sa.Table(
    "batch_file",
    metadata,
    sa.Column("batch", Number, sa.ForeignKey("file_batch.number"), primary_key=True),
    sa.Column("file_id", Name, primary_key=True),
    sa.Column("status", sa.Integer, nullable=False),  # VectorStoreFileStatus
    sa.Index(None, "file_id", "batch"),
)

batch_events = sa.Table(
    "batch_event",
    metadata,
    sa.Column("batch", Number, sa.ForeignKey("file_batch.number"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),  # from 1 without gaps
    sa.Column("event", sa.LargeBinary, nullable=False),  # a WatchVectorStoreFileBatchResponse
)

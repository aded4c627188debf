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
    # Of everything the chunks depend on: content, metadata, how it was cut. Equal means nothing to do.
    sa.Column("recipe_hash", Name, nullable=False),
    sa.Column("revision", Number, nullable=False),  # of its last change; also its etag
    sa.Column("token_count", sa.Integer, nullable=False),
    sa.Column("chunk_count", sa.Integer, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("expires_at", Moment, nullable=True, index=True),
    sa.UniqueConstraint("bank", "document_id"),
    sa.Index(None, "bank", "file_id"),
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
    sa.UniqueConstraint("bank", "chunk_id"),
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
    sa.Column("body", sa.LargeBinary, nullable=False),  # its hash
    sa.Column("answer", sa.LargeBinary, nullable=False),
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

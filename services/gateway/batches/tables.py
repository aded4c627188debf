"""The tables of the batches. Times are microseconds since 1970; every row belongs to a tenant.

Names begin with `batch`, for the database is shared with the rest of the gateway, and may be with other services.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# Identifiers are compared and ordered by code point, as SQLite does by itself.
Name = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


batches = sa.Table(
    "batch",
    metadata,
    sa.Column("number", Number, primary_key=True, autoincrement=True),
    sa.Column("tenant", Name, nullable=False),
    sa.Column("batch_id", Name, nullable=False, unique=True),
    sa.Column("idempotency_key", Name, nullable=True),
    sa.Column("digest", Name, nullable=False),  # of what was asked for
    sa.Column("endpoint", Name, nullable=False),
    sa.Column("input_file_id", Name, nullable=False),
    sa.Column("completion_window", Name, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("ending", sa.Integer, nullable=True),  # the status it gets when its files are written
    sa.Column("model", Name, nullable=True),
    sa.Column("errors", sa.LargeBinary, nullable=True),  # a BatchErrors
    _count("total"),
    _count("completed"),
    _count("failed"),
    _count("prompt_tokens"),
    _count("completion_tokens"),
    _count("total_tokens"),
    _count("cached_tokens"),
    sa.Column("output_file_id", Name, nullable=True),
    sa.Column("error_file_id", Name, nullable=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("in_progress_at", sa.BigInteger, nullable=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("finalizing_at", sa.BigInteger, nullable=True),
    sa.Column("cancelling_at", sa.BigInteger, nullable=True),
    sa.Column("ended_at", sa.BigInteger, nullable=True, index=True),
    _count("last_sequence"),
    sa.Column("owner", Name, nullable=False, server_default=""),  # the process that works on it
    sa.Column("leased_until", sa.Double, nullable=False, server_default="0"),  # seconds of the database's clock
    _count("fence"),
    sa.UniqueConstraint("tenant", "idempotency_key", name="uq_batch_idempotency_key"),
    sa.Index("ix_batch_tenant", "tenant", "number"),
    sa.Index("ix_batch_status", "status"),
    sqlite_autoincrement=True,
)

# Gone when the batch has ended: the files hold them then.
lines = sa.Table(
    "batch_line",
    metadata,
    sa.Column("batch", Number, primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),  # in the file, from 0
    sa.Column("custom_id", Name, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=True),  # JSON; none once it is done
    sa.Column("status_code", sa.Integer, nullable=True),  # none until it is done
    sa.Column("answer", sa.LargeBinary, nullable=True),  # JSON
)

events = sa.Table(
    "batch_event",
    metadata,
    sa.Column("batch", Number, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("event", sa.LargeBinary, nullable=False),  # a WatchBatchResponse
)

requests = sa.Table(
    "batch_request",
    metadata,
    sa.Column("tenant", Name, primary_key=True),
    sa.Column("request_id", Name, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),  # its digest
    sa.Column("answer", sa.LargeBinary, nullable=False),  # a CreateBatchResponse
    sa.Column("created_at", sa.BigInteger, nullable=False, index=True),
)

"""The first tables, as they were: a later change of `tables.py` is a migration of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Create them."""
    _create_batch()
    op.create_table(
        "batch_line",
        sa.Column("batch", NUMBER, nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("custom_id", NAME, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("batch", "place"),
    )
    op.create_table(
        "batch_event",
        sa.Column("batch", NUMBER, nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("batch", "sequence"),
    )
    op.create_table(
        "batch_request",
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("request_id", NAME, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "request_id"),
    )
    op.create_index("ix_batch_request_created_at", "batch_request", ["created_at"])


def _create_batch() -> None:
    op.create_table(
        "batch",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("batch_id", NAME, nullable=False),
        sa.Column("idempotency_key", NAME, nullable=True),
        sa.Column("digest", NAME, nullable=False),
        sa.Column("endpoint", NAME, nullable=False),
        sa.Column("input_file_id", NAME, nullable=False),
        sa.Column("completion_window", NAME, nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("ending", sa.Integer(), nullable=True),
        sa.Column("model", NAME, nullable=True),
        sa.Column("errors", sa.LargeBinary(), nullable=True),
        *[_count(name) for name in ("total", "completed", "failed")],
        *[_count(f"{name}_tokens") for name in ("prompt", "completion", "total", "cached")],
        sa.Column("output_file_id", NAME, nullable=True),
        sa.Column("error_file_id", NAME, nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("in_progress_at", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("finalizing_at", sa.BigInteger(), nullable=True),
        sa.Column("cancelling_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        _count("last_sequence"),
        sa.Column("owner", NAME, server_default="", nullable=False),
        sa.Column("leased_until", sa.Double(), server_default="0", nullable=False),
        _count("fence"),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("batch_id"),
        sa.UniqueConstraint("tenant", "idempotency_key", name="uq_batch_idempotency_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_batch_tenant", "batch", ["tenant", "number"])
    op.create_index("ix_batch_status", "batch", ["status"])
    op.create_index("ix_batch_ended_at", "batch", ["ended_at"])


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)


def downgrade() -> None:
    """Drop them."""
    for table in ("batch_request", "batch_event", "batch_line", "batch"):
        op.drop_table(table)

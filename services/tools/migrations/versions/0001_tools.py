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
    op.create_table(
        "tool_group",
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("identifier", NAME, nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.Column("tools", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "identifier"),
    )
    op.create_table(
        "tool_invocation",
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("key", NAME, nullable=False),
        sa.Column("tool_name", NAME, nullable=False),
        sa.Column("digest", NAME, nullable=False),
        sa.Column("effect", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("owner", NAME, nullable=False),
        sa.Column("asked", sa.Boolean(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.Column("output_id", NAME, nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("tenant", "key"),
    )
    op.create_index("ix_tool_invocation_completed_at", "tool_invocation", ["completed_at"])
    op.create_table(
        "tool_process",
        sa.Column("owner", NAME, nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
    )
    op.create_table(
        "tool_output",
        sa.Column("output_id", NAME, nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("output_id"),
    )
    op.create_index("ix_tool_output_created_at", "tool_output", ["created_at"])
    op.create_table(
        "tool_audit",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("hash", NAME, nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tool_audit_at", "tool_audit", ["at"])
    op.create_table(
        "tool_setting",
        sa.Column("name", NAME, nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("tool_setting", "tool_audit", "tool_output", "tool_process", "tool_invocation", "tool_group"):
        op.drop_table(table)

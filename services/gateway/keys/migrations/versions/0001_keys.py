"""The first table, as it was: a later change of `tables.py` is a migration of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Create it."""
    op.create_table(
        "gateway_key",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("key_id", NAME, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.Column("request_id", NAME, nullable=True),
        sa.Column("request", sa.LargeBinary(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("key_id"),
        sa.UniqueConstraint("request_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_gateway_key_tenant", "gateway_key", ["tenant"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("gateway_key")

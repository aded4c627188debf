"""The first tables, as they were: a later change of `tables.py` is a migration of its own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
FACTS = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Create them."""
    _spans()
    _metrics()


def _spans() -> None:
    op.create_table(
        "telemetry_span",
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("trace_id", NAME, nullable=False),
        sa.Column("span_id", NAME, nullable=False),
        sa.Column("parent_id", NAME, nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("start_ns", sa.BigInteger(), nullable=False),
        sa.Column("end_ns", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("attributes", FACTS, nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "trace_id", "span_id"),
    )
    op.create_index("ix_telemetry_span_expires_ns", "telemetry_span", ["expires_ns"])
    op.create_index("ix_telemetry_span_trace_id", "telemetry_span", ["trace_id"])
    op.create_index("ix_telemetry_span_span_id", "telemetry_span", ["span_id"])
    op.create_index("ix_telemetry_span_start", "telemetry_span", ["start_ns", "trace_id", "span_id"])
    op.create_table(
        "telemetry_trace",
        sa.Column("viewer", NAME, nullable=False),
        sa.Column("trace_id", NAME, nullable=False),
        sa.Column("root_span_id", NAME, nullable=False),
        sa.Column("start_ns", sa.BigInteger(), nullable=False),
        sa.Column("end_ns", sa.BigInteger(), nullable=True),
        sa.Column("made_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("viewer", "trace_id"),
    )
    op.create_index("ix_telemetry_trace_start", "telemetry_trace", ["viewer", "start_ns"])
    op.create_index("ix_telemetry_trace_id", "telemetry_trace", ["trace_id"])
    op.create_table(
        "telemetry_event",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("trace_id", NAME, nullable=False),
        sa.Column("span_id", NAME, nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("severity", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("attributes", FACTS, nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_telemetry_event_expires_ns", "telemetry_event", ["expires_ns"])
    op.create_index("ix_telemetry_event_span", "telemetry_event", ["trace_id", "span_id"])


def _metrics() -> None:
    op.create_table(
        "telemetry_series",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("metric", NAME, nullable=False),
        sa.Column("unit", NAME, nullable=False),
        sa.Column("labels", NAME, nullable=False),
        sa.UniqueConstraint("metric", "tenant", "unit", "labels", name="uq_telemetry_series"),
    )
    op.create_table(
        "telemetry_point",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("series", NUMBER, sa.ForeignKey("telemetry_series.number"), nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Float(53), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_telemetry_point_expires_ns", "telemetry_point", ["expires_ns"])
    op.create_index("ix_telemetry_point_series", "telemetry_point", ["series", "at_ns"])

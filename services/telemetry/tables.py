"""The tables of the telemetry service. Times are nanoseconds since 1970; every row belongs to a tenant.

Names begin with `telemetry_`, for the database may be shared with other services.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

metadata = sa.MetaData()

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# Identifiers are compared and ordered by code point, as SQLite does by itself.
Name = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Facts = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

spans = sa.Table(
    "telemetry_span",
    metadata,
    sa.Column("tenant", Name, primary_key=True),
    sa.Column("trace_id", Name, primary_key=True),
    sa.Column("span_id", Name, primary_key=True),
    sa.Column("parent_id", Name, nullable=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("start_ns", sa.BigInteger, nullable=False),
    sa.Column("end_ns", sa.BigInteger, nullable=True),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("attributes", Facts, nullable=False),
    sa.Column("expires_ns", sa.BigInteger, nullable=False, index=True),
    sa.Index("ix_telemetry_span_trace_id", "trace_id"),
    sa.Index("ix_telemetry_span_span_id", "span_id"),
    sa.Index("ix_telemetry_span_start", "start_ns", "trace_id", "span_id"),
)

# What a trace's spans say together, as one tenant sees them; the empty tenant sees all spans.
traces = sa.Table(
    "telemetry_trace",
    metadata,
    sa.Column("viewer", Name, primary_key=True),
    sa.Column("trace_id", Name, primary_key=True),
    sa.Column("root_span_id", Name, nullable=False),
    sa.Column("start_ns", sa.BigInteger, nullable=False),
    sa.Column("end_ns", sa.BigInteger, nullable=True),
    sa.Column("made_ns", sa.BigInteger, nullable=False),  # when we first heard of it
    sa.Index("ix_telemetry_trace_start", "viewer", "start_ns"),
    sa.Index("ix_telemetry_trace_id", "trace_id"),
)

events = sa.Table(
    "telemetry_event",
    metadata,
    sa.Column("number", Number, primary_key=True, autoincrement=True),
    sa.Column("tenant", Name, nullable=False),
    sa.Column("trace_id", Name, nullable=False),
    sa.Column("span_id", Name, nullable=False),
    sa.Column("at_ns", sa.BigInteger, nullable=False),
    sa.Column("severity", sa.Integer, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("attributes", Facts, nullable=False),
    sa.Column("expires_ns", sa.BigInteger, nullable=False, index=True),
    sa.Index("ix_telemetry_event_span", "trace_id", "span_id"),
)

# A metric with one set of labels.
series = sa.Table(
    "telemetry_series",
    metadata,
    sa.Column("number", Number, primary_key=True, autoincrement=True),
    sa.Column("tenant", Name, nullable=False),
    sa.Column("metric", Name, nullable=False),
    sa.Column("unit", Name, nullable=False),
    sa.Column("labels", Name, nullable=False),  # JSON of texts, sorted by name
    sa.UniqueConstraint("metric", "tenant", "unit", "labels", name="uq_telemetry_series"),
)

points = sa.Table(
    "telemetry_point",
    metadata,
    sa.Column("number", Number, primary_key=True, autoincrement=True),
    sa.Column("series", Number, sa.ForeignKey("telemetry_series.number"), nullable=False),
    sa.Column("at_ns", sa.BigInteger, nullable=False),
    sa.Column("value", sa.Float(53), nullable=False),
    sa.Column("expires_ns", sa.BigInteger, nullable=False, index=True),
    sa.Index("ix_telemetry_point_series", "series", "at_ns"),
)

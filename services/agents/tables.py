"""The tables of the agents' database. What a row says beyond its keys is one protobuf message."""

import sqlalchemy as sa

metadata = sa.MetaData()
# `number` orders rows by their creation and is what page tokens name; a number is never given out twice.
agents = sa.Table(
    "agent",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("agent_id", sa.String, unique=True),
    sa.Column("message", sa.LargeBinary),
    sqlite_autoincrement=True,
)
sessions = sa.Table(
    "session",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("session_id", sa.String, unique=True),
    sa.Column("agent_id", sa.String, index=True),
    sa.Column("message", sa.LargeBinary),
    sqlite_autoincrement=True,
)
# `message` is written where a step or the turn ends, not with every piece of text; `last_sequence` is in `event`.
turns = sa.Table(
    "turn",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("turn_id", sa.String, unique=True),
    sa.Column("session_id", sa.String, index=True),
    sa.Column("status", sa.Integer, index=True),
    sa.Column("message", sa.LargeBinary),
    sa.Column("request", sa.LargeBinary),
    sqlite_autoincrement=True,
)
steps = sa.Table(
    "step",
    metadata,
    sa.Column("turn_id", sa.String, primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("step_id", sa.String, index=True),
    sa.Column("message", sa.LargeBinary),
)
events = sa.Table(
    "event",
    metadata,
    sa.Column("turn_id", sa.String, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("message", sa.LargeBinary),
)
requests = sa.Table(
    "request",
    metadata,
    sa.Column("method", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("created", sa.Float, index=True),  # seconds since 1970
    sa.Column("body", sa.LargeBinary),
    sa.Column("answer", sa.LargeBinary),
)

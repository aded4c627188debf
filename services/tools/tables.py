"""The tables of the tools service. Times are microseconds since 1970; every row belongs to a tenant.

Names begin with `tool_`, for the database may be shared with other services.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# Identifiers are compared and ordered by code point, as SQLite does by itself.
Name = sa.String().with_variant(sa.String(collation="C"), "postgresql")

groups = sa.Table(
    "tool_group",
    metadata,
    sa.Column("tenant", Name, primary_key=True),
    sa.Column("identifier", Name, primary_key=True),
    sa.Column("message", sa.LargeBinary, nullable=False),  # a ToolGroup as registered, without defaults
    sa.Column("tools", sa.LargeBinary, nullable=False),  # a ListRuntimeToolsResponse: the tools when last listed
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

invocations = sa.Table(
    "tool_invocation",
    metadata,
    sa.Column("tenant", Name, primary_key=True),
    sa.Column("key", Name, primary_key=True),
    sa.Column("tool_name", Name, nullable=False),
    sa.Column("digest", Name, nullable=False),  # of tool and arguments
    sa.Column("effect", sa.Integer, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("owner", Name, nullable=False),  # the process that runs it
    sa.Column("asked", sa.Boolean, nullable=False),  # ended with input_required: not final
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("result", sa.LargeBinary, nullable=True),  # a ToolInvocationResult
    sa.Column("output_id", Name, nullable=True),  # of `outputs`, when the whole output is kept there
    sa.Column("started_at", sa.BigInteger, nullable=False),
    sa.Column("completed_at", sa.BigInteger, nullable=True, index=True),
)

# Processes that run calls; one that was not seen for the lease is dead.
processes = sa.Table(
    "tool_process",
    metadata,
    sa.Column("owner", Name, primary_key=True),
    sa.Column("seen_at", sa.BigInteger, nullable=False),
)

outputs = sa.Table(
    "tool_output",
    metadata,
    sa.Column("output_id", Name, primary_key=True),
    sa.Column("tenant", Name, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),  # UTF-8
    sa.Column("created_at", sa.BigInteger, nullable=False, index=True),
)

audit = sa.Table(
    "tool_audit",
    metadata,
    sa.Column("number", Number, primary_key=True, autoincrement=True),
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
    sa.Column("tenant", Name, nullable=False),
    sa.Column("record", sa.Text, nullable=False),  # JSON, with the hash of the record before
    sa.Column("hash", Name, nullable=False),
    sqlite_autoincrement=True,
)

settings = sa.Table(
    "tool_setting",
    metadata,
    sa.Column("name", Name, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)

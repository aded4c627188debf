"""The tables of the agents' database. What a row says beyond its keys is one protobuf message."""

import sqlalchemy as sa

metadata = sa.MetaData()
ADDED = {"added": True}
"""Columns that the first version did not have; they are added to its tables."""
# `number` orders rows by their creation and is what page tokens name; a number is never given out twice.
agents = sa.Table(
    "agent",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("agent_id", sa.String, unique=True),
    sa.Column("tenant", sa.String, nullable=False, server_default="", index=True, info=ADDED),
    sa.Column("message", sa.LargeBinary),  # its newest version
    sqlite_autoincrement=True,
)
versions = sa.Table(
    "agent_version",
    metadata,
    sa.Column("agent_id", sa.String, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("message", sa.LargeBinary),
)
sessions = sa.Table(
    "session",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("session_id", sa.String, unique=True),
    sa.Column("agent_id", sa.String, index=True),
    sa.Column("tenant", sa.String, nullable=False, server_default="", info=ADDED),
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
    sa.Column("tenant", sa.String, nullable=False, server_default="", info=ADDED),
    sa.Column("status", sa.Integer, index=True),
    # The process that runs it, until when nobody else may, and a number that every change of hands raises: a write that
    # names an older one changes nothing. Times are the database's, in seconds since 1970.
    sa.Column("owner", sa.String, nullable=False, server_default="", info=ADDED),
    sa.Column("lease_until", sa.Float, nullable=False, server_default="0", info=ADDED),
    sa.Column("fence", sa.Integer, nullable=False, server_default="0", info=ADDED),
    sa.Column("cancel_asked", sa.Boolean, nullable=False, server_default=sa.false(), info=ADDED),
    # Of the agent that was asked; its configuration is that version's.
    sa.Column("version", sa.Integer, nullable=False, server_default="0", info=ADDED),
    # When an approval that it waits for expires; unset: never.
    sa.Column("wake_at", sa.Float, info=ADDED),
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
# What a turn goes by once it has begun: the version of each agent that speaks in it, and that agent's tools.
pins = sa.Table(
    "pin",
    metadata,
    sa.Column("turn_id", sa.String, primary_key=True),
    sa.Column("agent_id", sa.String, primary_key=True),
    sa.Column("agent", sa.LargeBinary),
    sa.Column("tools", sa.LargeBinary),
)
events = sa.Table(
    "event",
    metadata,
    sa.Column("turn_id", sa.String, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("message", sa.LargeBinary),
)
requests = sa.Table(
    "answered",
    metadata,
    sa.Column("tenant", sa.String, primary_key=True, server_default=""),
    sa.Column("method", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("created", sa.Float, index=True),  # seconds since 1970
    sa.Column("body", sa.LargeBinary),
    sa.Column("answer", sa.LargeBinary),
)
# What stands before a turn's own messages, and how many tokens its answers may have; of turns of responses only.
histories = sa.Table(
    "turn_history",
    metadata,
    sa.Column("turn_id", sa.String, primary_key=True),
    sa.Column("message", sa.LargeBinary),
    sa.Column("max_output_tokens", sa.Integer),
)
# A response is a turn of a session that nobody else sees. `message` is the response as it was created until it is
# settled, and as it ended from then on; `facts` is what its events are made with, as JSON.
responses = sa.Table(
    "response",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("response_id", sa.String, unique=True),
    sa.Column("tenant", sa.String, nullable=False, index=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("stored", sa.Boolean, nullable=False),
    sa.Column("settled", sa.Boolean, nullable=False, index=True),
    sa.Column("conversation_id", sa.String, nullable=False),
    sa.Column("turn_id", sa.String, nullable=False),
    sa.Column("session_id", sa.String, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("message", sa.LargeBinary),
    sqlite_autoincrement=True,
)
# `dialog` is what an item says to the model where the item does not tell, such as the text of a search.
response_items = sa.Table(
    "response_item",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("response_id", sa.String, index=True),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("made", sa.Boolean, nullable=False),  # output; else input
    sa.Column("item_id", sa.String, index=True),
    sa.Column("message", sa.LargeBinary),
    sa.Column("dialog", sa.LargeBinary),
    sqlite_autoincrement=True,
)
# `writer` is the response that will append to it; empty: none.
conversations = sa.Table(
    "conversation",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("conversation_id", sa.String, unique=True),
    sa.Column("tenant", sa.String, nullable=False, index=True),
    sa.Column("writer", sa.String, nullable=False, server_default=""),
    sa.Column("message", sa.LargeBinary),
    sqlite_autoincrement=True,
)
conversation_items = sa.Table(
    "conversation_item",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("conversation_id", sa.String, index=True),
    sa.Column("item_id", sa.String, index=True),
    sa.Column("message", sa.LargeBinary),
    sa.Column("dialog", sa.LargeBinary),
    sqlite_autoincrement=True,
)
# Chat completions that clients fetch again; `message` has their texts, the table below it their notes as well.
chat_completions = sa.Table(
    "chat_completion",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("completion_id", sa.String, nullable=False),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("message", sa.LargeBinary),
    sa.UniqueConstraint("tenant", "completion_id"),
    sqlite_autoincrement=True,
)
chat_notes = sa.Table(
    "chat_completion_note",
    metadata,
    sa.Column("completion", sa.Integer, primary_key=True),  # its number
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)
prompts = sa.Table(
    "prompt",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("prompt_id", sa.String, unique=True),
    sa.Column("tenant", sa.String, nullable=False, index=True),
    sa.Column("latest", sa.Integer, nullable=False),
    sa.Column("chosen", sa.Integer, nullable=False),  # the default version
    sqlite_autoincrement=True,
)
prompt_versions = sa.Table(
    "prompt_version",
    metadata,
    sa.Column("prompt_id", sa.String, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("message", sa.LargeBinary),
)

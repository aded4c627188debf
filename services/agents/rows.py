"""Parts of a transaction: reading and writing the rows of agents, sessions, turns and steps."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from llamastack import v1
from services.agents.tables import agents, events, sessions, steps, turns
from stack_client.errors import FailedPreconditionError, NotFoundError

ENDED = (v1.TURN_STATUS_COMPLETED, v1.TURN_STATUS_FAILED, v1.TURN_STATUS_CANCELLED)


def add_agent(connection: sa.Connection, agent: v1.Agent) -> None:
    """Store a new agent."""
    connection.execute(sa.insert(agents), {"agent_id": agent.agent_id, "message": agent.SerializeToString()})


def get_agent(connection: sa.Connection, agent_id: str) -> v1.Agent:
    """One agent; raises NotFoundError."""
    query = sa.select(agents.c.message).where(agents.c.agent_id == agent_id)
    return v1.Agent.FromString(one(connection, query, what="agent", key=agent_id))


def add_session(connection: sa.Connection, session: v1.Session) -> None:
    """Store a new session; raises NotFoundError for its agent."""
    get_agent(connection, session.agent_id)
    row = {"session_id": session.session_id, "agent_id": session.agent_id, "message": session.SerializeToString()}
    connection.execute(sa.insert(sessions), row)


def get_session(connection: sa.Connection, session_id: str, agent_id: str = "") -> v1.Session:
    """One session without its turns, of an agent where one is given; raises NotFoundError."""
    query = sa.select(sessions.c.message).where(sessions.c.session_id == session_id)
    session = v1.Session.FromString(one(connection, query, what="session", key=session_id))
    if agent_id not in {"", session.agent_id}:
        raise NotFoundError(f"agent {agent_id!r} has no session {session_id!r}")
    return session


def add_turn(connection: sa.Connection, turn: v1.Turn, request: v1.CreateTurnRequest) -> None:
    """Store a new turn with its steps, unless another one of the session has not ended.

    Raises:
        NotFoundError: If there is no such session.
        FailedPreconditionError: If there is such a turn.
    """
    get_session(connection, turn.session_id)
    query = sa.select(turns.c.turn_id).where(turns.c.session_id == turn.session_id, turns.c.status.not_in(ENDED))
    running = connection.execute(query).scalar()
    if running is not None:
        message = f"turn {running} of session {turn.session_id} has not ended; wait for it, resume or cancel it"
        raise FailedPreconditionError(message, reason="TURN_IN_PROGRESS", metadata={"turn_id": running})
    row = {"turn_id": turn.turn_id, "session_id": turn.session_id, "status": turn.status}
    messages = {"message": without_steps(turn).SerializeToString(), "request": request.SerializeToString()}
    connection.execute(sa.insert(turns), {**row, **messages})
    for place, step in enumerate(turn.steps):
        put_step(connection, turn.turn_id, place, step)


def get_turn(connection: sa.Connection, turn_id: str) -> v1.Turn:
    """One turn with its steps; raises NotFoundError."""
    found = get_turns(connection, turns.c.turn_id == turn_id)
    if not found:
        raise not_found("turn", turn_id)
    return found[0][1]


def get_turns(
    connection: sa.Connection, where: "sa.ColumnElement[bool]", *, count: int | None = None
) -> list[tuple[int, v1.Turn]]:
    """Turns with their numbers and steps, oldest first."""
    query = sa.select(turns.c.number, turns.c.message).where(where).order_by(turns.c.number).limit(count)
    found = [(row.number, v1.Turn.FromString(row.message)) for row in connection.execute(query)]
    by_id = {turn.turn_id: turn for _, turn in found}
    of_turns = sa.select(steps.c.message).where(steps.c.turn_id.in_(by_id)).order_by(steps.c.turn_id, steps.c.place)
    for message in connection.execute(of_turns).scalars():
        step = v1.Step.FromString(message)
        by_id[step.turn_id].steps.append(step)
    for turn_id, sequence in last_sequences(connection, list(by_id)).items():
        by_id[turn_id].last_sequence = sequence
    return found


def get_turn_request(connection: sa.Connection, turn_id: str) -> v1.CreateTurnRequest:
    """The request that created a turn; raises NotFoundError."""
    query = sa.select(turns.c.request).where(turns.c.turn_id == turn_id)
    return v1.CreateTurnRequest.FromString(one(connection, query, what="turn", key=turn_id))


def put_step(connection: sa.Connection, turn_id: str, place: int, step: v1.Step) -> None:
    """Add a step, or replace the one in its place."""
    connection.execute(sa.delete(steps).where(steps.c.turn_id == turn_id, steps.c.place == place))
    row = {"turn_id": turn_id, "place": place, "step_id": step.step_id, "message": step.SerializeToString()}
    connection.execute(sa.insert(steps), row)


def without_steps(turn: v1.Turn) -> v1.Turn:
    """A copy of a turn as its row holds it."""
    bare = v1.Turn()
    bare.CopyFrom(turn)
    bare.ClearField("steps")
    return bare


def delete_sessions(connection: sa.Connection, whose: "sa.ColumnElement[bool]") -> Sequence[str]:
    """Delete sessions with all that is in them; returns their turns."""
    of_sessions = turns.c.session_id.in_(sa.select(sessions.c.session_id).where(whose))
    gone = connection.execute(sa.select(turns.c.turn_id).where(of_sessions)).scalars().all()
    for table in (events, steps):
        connection.execute(sa.delete(table).where(table.c.turn_id.in_(sa.select(turns.c.turn_id).where(of_sessions))))
    connection.execute(sa.delete(turns).where(of_sessions))
    connection.execute(sa.delete(sessions).where(whose))
    return gone


def last_sequences(connection: sa.Connection, turn_ids: Sequence[str]) -> dict[str, int]:
    """The last sequence of each turn that has events."""
    last = sa.func.max(events.c.sequence).label("last")
    query = sa.select(events.c.turn_id, last).where(events.c.turn_id.in_(turn_ids)).group_by(events.c.turn_id)
    return {row.turn_id: row.last for row in connection.execute(query)}


def newest(
    connection: sa.Connection, table: sa.Table, where: "sa.ColumnElement[bool]", *, before: int, count: int
) -> "Sequence[sa.Row[Any, Any]]":
    """Rows of agents or sessions, newest first, older than `before` (0: all)."""
    query = sa.select(table.c.number, table.c.message).where(where).order_by(table.c.number.desc()).limit(count)
    return connection.execute(query.where(table.c.number < before) if before else query).all()


def one(connection: sa.Connection, query: "sa.Select[Any]", *, what: str, key: str) -> bytes:
    """The one message that a query finds; raises NotFoundError."""
    found: bytes | None = connection.execute(query).scalar()
    if found is None:
        raise not_found(what, key)
    return found


def not_found(what: str, key: str) -> NotFoundError:
    """The error for a missing row."""
    return NotFoundError(f"there is no {what} {key!r}", metadata={what: key})

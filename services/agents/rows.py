"""Parts of a transaction: reading and writing the rows of agents, sessions, turns and steps."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from llamastack import v1
from services.agents.leases import NOW
from services.agents.swift import Swift
from services.agents.tables import agents, events, histories, pins, sessions, steps, turns, versions
from stack_client.errors import ConflictError, FailedPreconditionError, NotFoundError

# The statements of every new turn.
_LOCK_SESSION = {
    "sqlite": "SELECT 1 FROM session WHERE session_id = :session_id AND tenant = :tenant",
    "postgresql": "SELECT 1 FROM session WHERE session_id = :session_id AND tenant = :tenant FOR UPDATE",
}
_ADD_TURN = {
    dialect: f"""
    INSERT INTO turn (
        turn_id, session_id, tenant, status, owner, lease_until, fence, cancel_asked, version, message, request
    ) VALUES (
        :turn_id, :session_id, :tenant, :status, :owner, {now} + :seconds, :fence, FALSE, :version, :message, :request
    )
    """  # noqa: S608 (our own words)
    for dialect, now in NOW.items()
}
ENDED = (v1.TURN_STATUS_COMPLETED, v1.TURN_STATUS_FAILED, v1.TURN_STATUS_CANCELLED)
_NOT_ENDED = f"""
    SELECT turn_id FROM turn WHERE session_id = :session_id AND status NOT IN {ENDED} LIMIT 1
"""  # noqa: S608 (our own numbers)


def add_agent(connection: sa.Connection, agent: v1.Agent, *, tenant: str = "") -> None:
    """Store a new agent."""
    message = agent.SerializeToString()
    connection.execute(sa.insert(agents), {"agent_id": agent.agent_id, "tenant": tenant, "message": message})
    connection.execute(sa.insert(versions), {"agent_id": agent.agent_id, "version": agent.version, "message": message})


def update_agent(
    connection: sa.Connection, agent_id: str, config: v1.AgentConfig, *, expected: int, tenant: str
) -> v1.Agent:
    """Give an agent its next version, unless it is the same.

    Raises:
        NotFoundError: If there is no such agent.
        ConflictError: If the newest version is not the expected one.
    """
    query = sa.select(agents.c.number).where(agents.c.agent_id == agent_id).with_for_update()
    connection.execute(query).all()
    agent = get_agent(connection, agent_id, tenant=tenant)
    if expected not in {0, agent.version}:
        message = f"agent {agent_id} is at version {agent.version}, not {expected}; read it again before changing it"
        raise ConflictError(message, field="expected_version", metadata={"version": str(agent.version)})
    if agent.agent_config == config:
        return agent
    agent.agent_config.CopyFrom(config)
    agent.version += 1
    stored = agent.SerializeToString()
    connection.execute(sa.update(agents).where(agents.c.agent_id == agent_id).values(message=stored))
    connection.execute(sa.insert(versions), {"agent_id": agent_id, "version": agent.version, "message": stored})
    return agent


def get_agent(connection: sa.Connection, agent_id: str, *, tenant: str | None = "", version: int = 0) -> v1.Agent:
    """One agent, of a tenant unless that is None, its newest version unless one is named; raises NotFoundError."""
    query = sa.select(agents.c.message).where(agents.c.agent_id == agent_id, _of(agents, tenant))
    agent = v1.Agent.FromString(one(connection, query, what="agent", key=agent_id))
    agent.version = agent.version or 1  # written before agents had versions
    if version in {0, agent.version}:
        return agent
    older = sa.select(versions.c.message).where(versions.c.agent_id == agent_id, versions.c.version == version)
    message: bytes | None = connection.execute(older).scalar()
    if message is None:
        raise NotFoundError(f"agent {agent_id!r} has no version {version}; its newest is {agent.version}")
    return v1.Agent.FromString(message)


def add_session(connection: sa.Connection, session: v1.Session, *, tenant: str = "") -> None:
    """Store a new session; raises NotFoundError for its agent."""
    get_agent(connection, session.agent_id, tenant=tenant)
    row = {"session_id": session.session_id, "agent_id": session.agent_id, "message": session.SerializeToString()}
    connection.execute(sa.insert(sessions), {**row, "tenant": tenant})


def get_session(
    connection: sa.Connection, session_id: str, agent_id: str = "", *, tenant: str | None = "", lock: bool = False
) -> v1.Session:
    """One session without its turns, of an agent where one is given; raises NotFoundError.

    Args:
        connection: In a transaction.
        session_id: The session.
        agent_id: Its agent; checked when not empty.
        tenant: Whose it must be; None: anybody's.
        lock: Whether others that lock it wait for the end of the transaction.
    """
    query = sa.select(sessions.c.message).where(sessions.c.session_id == session_id, _of(sessions, tenant))
    found = one(connection, query.with_for_update() if lock else query, what="session", key=session_id)
    session = v1.Session.FromString(found)
    if agent_id not in {"", session.agent_id}:
        raise NotFoundError(f"agent {agent_id!r} has no session {session_id!r}")
    return session


def _of(table: sa.Table, tenant: str | None = "") -> "sa.ColumnElement[bool]":
    return sa.true() if tenant is None else table.c.tenant == tenant


def add_turn(
    connection: sa.Connection,
    turn: v1.Turn,
    request: v1.CreateTurnRequest,
    *,
    tenant: str = "",
    owner: str = "",
    lease_seconds: float = 0.0,
) -> None:
    """Store a new turn with its steps, unless another one of the session has not ended.

    Args:
        connection: In a transaction.
        turn: The turn.
        request: What created it.
        tenant: Whose it is.
        owner: The process that runs it, under fence 1; empty: nobody does.
        lease_seconds: For how long nobody else may.

    Raises:
        NotFoundError: If there is no such session.
        FailedPreconditionError: If there is such a turn.
    """
    swift = Swift.over(connection)
    key = {"session_id": turn.session_id, "tenant": tenant}
    if swift.run(_LOCK_SESSION[connection.dialect.name], key).fetchone() is None:
        raise not_found("session", turn.session_id)
    running = swift.run(_NOT_ENDED, key).fetchone()
    if running is not None:
        message = f"turn {running[0]} of session {turn.session_id} has not ended; wait for it, resume or cancel it"
        raise FailedPreconditionError(message, reason="TURN_IN_PROGRESS", metadata={"turn_id": running[0]})
    row = {"turn_id": turn.turn_id, "status": turn.status, "version": turn.agent_version, "owner": owner, **key}
    messages = {"message": without_steps(turn).SerializeToString(), "request": request.SerializeToString()}
    lease = {"fence": 1 if owner else 0, "seconds": lease_seconds}
    swift.run(_ADD_TURN[connection.dialect.name], {**row, **messages, **lease})
    for place, step in enumerate(turn.steps):
        put_step(connection, turn.turn_id, place, step)


def get_turn(connection: sa.Connection, turn_id: str, *, tenant: str | None = "") -> v1.Turn:
    """One turn with its steps, of a tenant unless that is None; raises NotFoundError."""
    found = get_turns(connection, (turns.c.turn_id == turn_id) & _of(turns, tenant))
    if not found:
        raise not_found("turn", turn_id)
    return found[0][1]


def find_turn(connection: sa.Connection, turn_id: str) -> v1.Turn | None:
    """One turn with its steps, if there is one."""
    found = get_turns(connection, turns.c.turn_id == turn_id)
    return found[0][1] if found else None


def tenant_of(connection: sa.Connection, turn_id: str) -> str:
    """Whose a turn is; empty also where there is no such turn."""
    tenant: str | None = connection.execute(sa.select(turns.c.tenant).where(turns.c.turn_id == turn_id)).scalar()
    return tenant or ""


def depth(connection: sa.Connection, turn: v1.Turn) -> int:
    """How many agents have called each other down to a turn."""
    deep, parent = 1, turn.parent_turn_id
    while parent:
        row: bytes | None = connection.execute(sa.select(turns.c.message).where(turns.c.turn_id == parent)).scalar()
        deep, parent = deep + 1, v1.Turn.FromString(row).parent_turn_id if row else ""
    return deep


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
    for table in (events, steps, pins, histories):
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

"""The durable log: agents, sessions, turns, their steps and their events, in SQL.

What a row says beyond its keys is one protobuf message. Sequences are dense per turn and given out here, inside the
transaction that stores the event; an event is shown to nobody before it is committed.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from llamastack import v1
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

MessageT = TypeVar("MessageT", bound=Message)

ENDED = (v1.TURN_STATUS_COMPLETED, v1.TURN_STATUS_FAILED, v1.TURN_STATUS_CANCELLED)

metadata = sa.MetaData()
# `number` orders rows by their creation and is what page tokens name.
agents = sa.Table(
    "agent",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("agent_id", sa.String, unique=True),
    sa.Column("message", sa.LargeBinary),
)
sessions = sa.Table(
    "session",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("session_id", sa.String, unique=True),
    sa.Column("agent_id", sa.String, index=True),
    sa.Column("message", sa.LargeBinary),
)
turns = sa.Table(
    "turn",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("turn_id", sa.String, unique=True),
    sa.Column("session_id", sa.String, index=True),
    sa.Column("status", sa.Integer, index=True),
    sa.Column("message", sa.LargeBinary),
    sa.Column("request", sa.LargeBinary),
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
    sa.Column("body", sa.LargeBinary),
    sa.Column("answer", sa.LargeBinary),
)


class AgentStore:
    """The log. Use `async with`.

    Args:
        url: SQLAlchemy URL; a SQLite file is created with its folder.
    """

    def __init__(self, url: str) -> None:
        self._engine: AsyncEngine = create_async_engine(url)
        self._url = url
        self._writing = asyncio.Lock()  # SQLite has one writer; waiting here is cheaper than its busy loop

    async def __aenter__(self) -> Self:
        """Open the database and create its tables."""
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
            if self._engine.url.database:
                Path(self._engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        async with self._engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the database."""
        await self._engine.dispose()

    async def once(
        self, request: Message, answer: type[MessageT], work: Callable[[AsyncConnection], Awaitable[MessageT]]
    ) -> MessageT:
        """Do `work` in one transaction, at most once per request id of this kind of request.

        Raises:
            InvalidArgumentError: If the id was used before with another body.
        """
        request_id = getattr(request, "request_id", "")
        method = request.DESCRIPTOR.name
        body = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        async with self._writing, self._engine.begin() as connection:
            if request_id:
                found = (
                    await connection.execute(
                        sa.select(requests.c.body, requests.c.answer).where(
                            requests.c.method == method, requests.c.request_id == request_id
                        )
                    )
                ).first()
                if found is not None:
                    if found.body != body:
                        message = f"request_id {request_id!r} was used before with another body; choose a new one"
                        raise InvalidArgumentError(message, reason="REQUEST_ID_REUSED", field="request_id")
                    return answer.FromString(found.answer)
            result = await work(connection)
            if request_id:
                row = {"method": method, "request_id": request_id, "body": body, "answer": result.SerializeToString()}
                await connection.execute(sa.insert(requests).values(row))
            return result

    async def add_agent(self, connection: AsyncConnection, agent: v1.Agent) -> None:
        """Store a new agent."""
        await connection.execute(sa.insert(agents).values(agent_id=agent.agent_id, message=agent.SerializeToString()))

    async def agent(self, agent_id: str) -> v1.Agent:
        """One agent.

        Raises:
            NotFoundError: If there is none.
        """
        query = sa.select(agents.c.message).where(agents.c.agent_id == agent_id)
        return v1.Agent.FromString(await self._one(query, what="agent", key=agent_id))

    async def list_agents(self, *, before: int, count: int) -> list[tuple[int, v1.Agent]]:
        """Agents with their numbers, newest first, older than `before` (0: all)."""
        rows = await self._listed(agents, sa.true(), before=before, count=count)
        return [(row.number, v1.Agent.FromString(row.message)) for row in rows]

    async def delete_agent(self, agent_id: str) -> None:
        """Delete an agent with its sessions.

        Raises:
            NotFoundError: If there is none.
        """
        await self.agent(agent_id)
        for session_id in await self.session_ids(agent_id):
            await self.delete_session(session_id)
        async with self._writing, self._engine.begin() as connection:
            await connection.execute(sa.delete(agents).where(agents.c.agent_id == agent_id))

    async def add_session(self, connection: AsyncConnection, session: v1.Session) -> None:
        """Store a new session."""
        await connection.execute(
            sa.insert(sessions).values(
                session_id=session.session_id, agent_id=session.agent_id, message=session.SerializeToString()
            )
        )

    async def session(self, session_id: str) -> v1.Session:
        """One session, without its turns.

        Raises:
            NotFoundError: If there is none.
        """
        query = sa.select(sessions.c.message).where(sessions.c.session_id == session_id)
        return v1.Session.FromString(await self._one(query, what="session", key=session_id))

    async def session_ids(self, agent_id: str) -> Sequence[str]:
        """The sessions of an agent."""
        async with self._engine.connect() as connection:
            query = sa.select(sessions.c.session_id).where(sessions.c.agent_id == agent_id)
            return (await connection.execute(query)).scalars().all()

    async def list_sessions(self, agent_id: str, *, before: int, count: int) -> list[tuple[int, v1.Session]]:
        """Sessions of an agent with their numbers, newest first, older than `before` (0: all)."""
        rows = await self._listed(sessions, sessions.c.agent_id == agent_id, before=before, count=count)
        return [(row.number, v1.Session.FromString(row.message)) for row in rows]

    async def delete_session(self, session_id: str) -> None:
        """Delete a session with its turns, steps and events.

        Raises:
            NotFoundError: If there is none.
        """
        await self.session(session_id)
        of_session = sa.select(turns.c.turn_id).where(turns.c.session_id == session_id)
        async with self._writing, self._engine.begin() as connection:
            for table in (events, steps):
                await connection.execute(sa.delete(table).where(table.c.turn_id.in_(of_session)))
            await connection.execute(sa.delete(turns).where(turns.c.session_id == session_id))
            await connection.execute(sa.delete(sessions).where(sessions.c.session_id == session_id))

    async def add_turn(
        self,
        connection: AsyncConnection,
        turn: v1.Turn,
        request: v1.CreateTurnRequest,
        *,
        copied: Sequence[v1.Step] = (),
    ) -> None:
        """Store a new turn, unless another one of the session has not ended.

        Raises:
            FailedPreconditionError: If there is such a turn.
        """
        query = sa.select(turns.c.turn_id).where(turns.c.session_id == turn.session_id, turns.c.status.not_in(ENDED))
        running = (await connection.execute(query)).scalar()
        if running is not None:
            message = f"turn {running} of session {turn.session_id} has not ended; wait for it, resume or cancel it"
            raise FailedPreconditionError(message, reason="TURN_IN_PROGRESS", metadata={"turn_id": running})
        await connection.execute(
            sa.insert(turns).values(
                turn_id=turn.turn_id,
                session_id=turn.session_id,
                status=turn.status,
                message=turn.SerializeToString(),
                request=request.SerializeToString(),
            )
        )
        for place, step in enumerate(copied):
            await connection.execute(_step_row(turn.turn_id, place, step))

    async def turn(self, turn_id: str) -> v1.Turn:
        """One turn with its steps.

        Raises:
            NotFoundError: If there is none.
        """
        query = sa.select(turns.c.message).where(turns.c.turn_id == turn_id)
        turn = v1.Turn.FromString(await self._one(query, what="turn", key=turn_id))
        turn.steps.extend(await self._steps([turn_id]))
        return turn

    async def turn_request(self, turn_id: str) -> v1.CreateTurnRequest:
        """The request that created a turn.

        Raises:
            NotFoundError: If there is none.
        """
        query = sa.select(turns.c.request).where(turns.c.turn_id == turn_id)
        return v1.CreateTurnRequest.FromString(await self._one(query, what="turn", key=turn_id))

    async def list_turns(self, session_id: str, *, after: int = 0, count: int = -1) -> list[tuple[int, v1.Turn]]:
        """Turns of a session with their numbers and steps, oldest first, newer than `after`."""
        query = (
            sa.select(turns.c.number, turns.c.message)
            .where(turns.c.session_id == session_id, turns.c.number > after)
            .order_by(turns.c.number)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query.limit(count) if count >= 0 else query)).all()
        result = [(row.number, v1.Turn.FromString(row.message)) for row in rows]
        by_id = {turn.turn_id: turn for _, turn in result}
        for step in await self._steps(list(by_id)):
            by_id[step.turn_id].steps.append(step)
        return result

    async def unfinished(self) -> Sequence[str]:
        """Turns that were queued or running when the last process ended, oldest first."""
        query = (
            sa.select(turns.c.turn_id)
            .where(turns.c.status.in_((v1.TURN_STATUS_QUEUED, v1.TURN_STATUS_RUNNING)))
            .order_by(turns.c.number)
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(query)).scalars().all()

    async def append(
        self, turn: v1.Turn, new_events: Sequence[v1.WatchTurnResponse], *, changed: Sequence[tuple[int, v1.Step]] = ()
    ) -> None:
        """Store a turn's next events with the turn and the steps that they changed, in one transaction.

        Args:
            turn: The turn; its `steps` are not stored from here.
            new_events: With their sequences set, following the last stored one.
            changed: (place, step) of new or changed steps.
        """
        bare = v1.Turn()
        bare.CopyFrom(turn)
        bare.ClearField("steps")
        async with self._writing, self._engine.begin() as connection:
            updated = await connection.execute(
                sa.update(turns)
                .where(turns.c.turn_id == turn.turn_id)
                .values(status=turn.status, message=bare.SerializeToString())
            )
            if not updated.rowcount:
                raise NotFoundError(f"turn {turn.turn_id!r} was deleted")
            if new_events:
                await connection.execute(
                    sa.insert(events),
                    [
                        {"turn_id": turn.turn_id, "sequence": event.sequence, "message": event.SerializeToString()}
                        for event in new_events
                    ],
                )
            for place, step in changed:
                await connection.execute(
                    sa.delete(steps).where(steps.c.turn_id == turn.turn_id, steps.c.place == place)
                )
                await connection.execute(_step_row(turn.turn_id, place, step))

    async def events_after(self, turn_id: str, sequence: int) -> list[v1.WatchTurnResponse]:
        """A turn's events from a sequence on."""
        query = (
            sa.select(events.c.message)
            .where(events.c.turn_id == turn_id, events.c.sequence > sequence)
            .order_by(events.c.sequence)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).scalars().all()
        return [v1.WatchTurnResponse.FromString(row) for row in rows]

    async def step(self, turn_id: str, step_id: str) -> v1.Step:
        """One step.

        Raises:
            NotFoundError: If there is none.
        """
        query = sa.select(steps.c.message).where(steps.c.turn_id == turn_id, steps.c.step_id == step_id)
        return v1.Step.FromString(await self._one(query, what="step", key=step_id))

    async def _steps(self, turn_ids: Sequence[str]) -> list[v1.Step]:
        query = sa.select(steps.c.message).where(steps.c.turn_id.in_(turn_ids)).order_by(steps.c.turn_id, steps.c.place)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).scalars().all()
        return [v1.Step.FromString(row) for row in rows]

    async def _one(self, query: "sa.Select[tuple[Any]]", *, what: str, key: str) -> bytes:
        async with self._engine.connect() as connection:
            found: bytes | None = (await connection.execute(query)).scalar()
        if found is None:
            raise NotFoundError(f"there is no {what} {key!r}", metadata={what: key})
        return found

    async def _listed(
        self, table: sa.Table, where: "sa.ColumnElement[bool]", *, before: int, count: int
    ) -> "Sequence[sa.Row[Any, Any]]":
        query = sa.select(table.c.number, table.c.message).where(where).order_by(table.c.number.desc()).limit(count)
        if before:
            query = query.where(table.c.number < before)
        async with self._engine.connect() as connection:
            return (await connection.execute(query)).all()


def _step_row(turn_id: str, place: int, step: v1.Step) -> sa.Insert:
    return sa.insert(steps).values(turn_id=turn_id, place=place, step_id=step.step_id, message=step.SerializeToString())


def _configure_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 (a DBAPI connection)
    """Write-ahead log: readers and the writer do not wait for each other; a killed process loses no commit."""
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")

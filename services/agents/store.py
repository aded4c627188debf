"""The durable log: agents, sessions, turns, their steps and their events, in SQL.

Sequences are dense per turn; an event is shown to nobody before it is committed. The functions of `rows` are parts of a
transaction; `AgentStore.write` and `AgentStore.once` run one as a whole.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message

from llamastack import v1
from services.agents.database import Database
from services.agents.rows import (
    ENDED,
    delete_sessions,
    get_agent,
    get_session,
    get_turn,
    get_turns,
    last_sequences,
    newest,
    not_found,
    one,
    put_step,
)
from services.agents.tables import agents, events, metadata, requests, sessions, steps, turns
from stack_client.errors import InvalidArgumentError, NotFoundError

MessageT = TypeVar("MessageT", bound=Message)

KEEP_REQUESTS_SECONDS = 24 * 3600.0
"""How long a repeat of a request is recognised."""
PRUNE_SECONDS = 600.0
"""Time between two clearings of older requests."""


class TurnDeletedError(NotFoundError):
    """The turn was deleted while it ran."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What is stored for a watcher."""

    events: list[v1.WatchTurnResponse]
    """Those that he has not seen."""
    status: int
    """Where the turn stands."""
    last_sequence: int
    """Of the turn."""


class AgentStore(Database):
    """The log. Use `async with`.

    Args:
        url: SQLAlchemy URL of a synchronous driver; a SQLite file is created with its folder.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, metadata)
        self._pruned = 0.0

    async def once(
        self, request: Message, answer: type[MessageT], work: Callable[[sa.Connection], MessageT]
    ) -> MessageT:
        """Do `work` in one transaction, at most once per request id of this kind of request.

        Raises:
            InvalidArgumentError: If the id was used before with another body.
        """
        request_id = getattr(request, "request_id", "")
        if not request_id:
            return await self.write(work)
        key = (requests.c.method == request.DESCRIPTOR.name) & (requests.c.request_id == request_id)
        body = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()

        def at_most_once(connection: sa.Connection) -> MessageT:
            self._prune(connection)
            found = connection.execute(sa.select(requests.c.body, requests.c.answer).where(key)).first()
            if found is not None:
                if found.body != body:
                    message = f"request_id {request_id!r} was used before with another body; choose a new one"
                    raise InvalidArgumentError(message, reason="REQUEST_ID_REUSED", field="request_id")
                return answer.FromString(found.answer)
            result = work(connection)
            row = {"method": request.DESCRIPTOR.name, "request_id": request_id, "created": time.time(), "body": body}
            connection.execute(sa.insert(requests), {**row, "answer": result.SerializeToString()})
            return result

        return await self.write(at_most_once)

    def _prune(self, connection: sa.Connection) -> None:
        now = time.time()
        if now - self._pruned > PRUNE_SECONDS:
            self._pruned = now
            connection.execute(sa.delete(requests).where(requests.c.created < now - KEEP_REQUESTS_SECONDS))

    async def agent(self, agent_id: str) -> v1.Agent:
        """One agent.

        Raises:
            NotFoundError: If there is none.
        """
        return await self.read(lambda connection: get_agent(connection, agent_id))

    async def list_agents(self, *, before: int, count: int) -> list[tuple[int, v1.Agent]]:
        """Agents with their numbers, newest first, older than `before` (0: all)."""
        rows = await self.read(lambda connection: newest(connection, agents, sa.true(), before=before, count=count))
        return [(row.number, v1.Agent.FromString(row.message)) for row in rows]

    async def delete_agent(self, agent_id: str) -> Sequence[str]:
        """Delete an agent with its sessions; returns the turns that went with them.

        Raises:
            NotFoundError: If there is none.
        """

        def delete(connection: sa.Connection) -> Sequence[str]:
            get_agent(connection, agent_id)
            gone = delete_sessions(connection, sessions.c.agent_id == agent_id)
            connection.execute(sa.delete(agents).where(agents.c.agent_id == agent_id))
            return gone

        return await self.write(delete)

    async def session(self, session_id: str, agent_id: str = "") -> v1.Session:
        """One session, without its turns.

        Raises:
            NotFoundError: If there is none, or none of this agent.
        """
        return await self.read(lambda connection: get_session(connection, session_id, agent_id))

    async def session_with_turns(self, session_id: str, agent_id: str = "") -> v1.Session:
        """One session.

        Raises:
            NotFoundError: If there is none, or none of this agent.
        """

        def find(connection: sa.Connection) -> v1.Session:
            session = get_session(connection, session_id, agent_id)
            session.turns.extend(turn for _, turn in get_turns(connection, turns.c.session_id == session_id))
            return session

        return await self.read(find)

    async def list_sessions(self, agent_id: str, *, before: int, count: int) -> list[tuple[int, v1.Session]]:
        """Sessions of an agent with their numbers, newest first, older than `before` (0: all).

        Raises:
            NotFoundError: If there is no such agent.
        """

        def find(connection: sa.Connection) -> "Sequence[sa.Row[Any, Any]]":
            get_agent(connection, agent_id)
            return newest(connection, sessions, sessions.c.agent_id == agent_id, before=before, count=count)

        return [(row.number, v1.Session.FromString(row.message)) for row in await self.read(find)]

    async def delete_session(self, session_id: str, agent_id: str = "") -> Sequence[str]:
        """Delete a session with its turns, steps and events; returns the turns.

        Raises:
            NotFoundError: If there is none, or none of this agent.
        """

        def delete(connection: sa.Connection) -> Sequence[str]:
            get_session(connection, session_id, agent_id)
            return delete_sessions(connection, sessions.c.session_id == session_id)

        return await self.write(delete)

    async def turn(self, turn_id: str) -> v1.Turn:
        """One turn with its steps.

        Raises:
            NotFoundError: If there is none.
        """
        return await self.read(lambda connection: get_turn(connection, turn_id))

    async def list_turns(self, session_id: str, *, after: int, count: int) -> list[tuple[int, v1.Turn]]:
        """Turns of a session with their numbers and steps, oldest first, newer than `after`.

        Raises:
            NotFoundError: If there is no such session.
        """
        where = (turns.c.session_id == session_id) & (turns.c.number > after)

        def find(connection: sa.Connection) -> list[tuple[int, v1.Turn]]:
            get_session(connection, session_id)
            return get_turns(connection, where, count=count)

        return await self.read(find)

    async def turn_context(self, turn: v1.Turn) -> tuple[v1.CreateTurnRequest, v1.AgentConfig, list[v1.Turn]]:
        """What a turn needs to run: the request that created it, the agent, and the session's turns before it.

        Raises:
            NotFoundError: If there is no such turn.
        """
        query = sa.select(turns.c.number, turns.c.request).where(turns.c.turn_id == turn.turn_id)

        def find(connection: sa.Connection) -> tuple[v1.CreateTurnRequest, v1.AgentConfig, list[v1.Turn]]:
            row = connection.execute(query).first()
            if row is None:
                raise TurnDeletedError(f"turn {turn.turn_id!r} was deleted")
            request = v1.CreateTurnRequest.FromString(row.request)
            config = get_agent(connection, request.agent_id).agent_config
            before = (turns.c.session_id == turn.session_id) & (turns.c.number < row.number)
            return request, config, [earlier for _, earlier in get_turns(connection, before)]

        return await self.read(find)

    async def unfinished(self) -> Sequence[str]:
        """Turns that were queued or running when the last process ended, oldest first."""
        waiting = turns.c.status.in_((v1.TURN_STATUS_QUEUED, v1.TURN_STATUS_RUNNING))
        query = sa.select(turns.c.turn_id).where(waiting).order_by(turns.c.number)
        return await self.read(lambda connection: connection.execute(query).scalars().all())

    async def not_ended(self, *, session_id: str = "", agent_id: str = "") -> Sequence[str]:
        """Turns of a session or of an agent that have not ended."""
        of_agent = sa.select(sessions.c.session_id).where(sessions.c.agent_id == agent_id)
        whose = turns.c.session_id.in_(of_agent) if agent_id else turns.c.session_id == session_id
        query = sa.select(turns.c.turn_id).where(whose, turns.c.status.not_in(ENDED))
        return await self.read(lambda connection: connection.execute(query).scalars().all())

    async def append(
        self,
        turn: v1.Turn | None,
        new_events: Sequence[v1.WatchTurnResponse],
        *,
        turn_id: str,
        changed: Sequence[tuple[int, v1.Step]] = (),
    ) -> None:
        """Store a turn's next events with the steps that they changed, in one transaction.

        Args:
            turn: The turn without its steps, where it changed too.
            new_events: With their sequences set, following the last stored one.
            turn_id: The turn.
            changed: (place, step) of new or changed steps.

        Raises:
            TurnDeletedError: If there is no such turn any more.
        """

        def store(connection: sa.Connection) -> None:
            of_turn = turns.c.turn_id == turn_id
            if turn is None:
                found = connection.execute(sa.select(turns.c.number).where(of_turn)).first() is not None
            else:
                values = {"status": turn.status, "message": turn.SerializeToString()}
                found = bool(connection.execute(sa.update(turns).where(of_turn).values(values)).rowcount)
            if not found:
                raise TurnDeletedError(f"turn {turn_id!r} was deleted")
            if new_events:
                rows = [
                    {"turn_id": turn_id, "sequence": event.sequence, "message": event.SerializeToString()}
                    for event in new_events
                ]
                connection.execute(sa.insert(events), rows)
            for place, step in changed:
                put_step(connection, turn_id, place, step)

        await self.write(store)

    async def events_after(self, turn_id: str, sequence: int) -> Watched:
        """A turn's events from a sequence on, and where the turn stands.

        Raises:
            NotFoundError: If there is no such turn.
        """
        query = (
            sa.select(events.c.message)
            .where(events.c.turn_id == turn_id, events.c.sequence > sequence)
            .order_by(events.c.sequence)
        )

        def find(connection: sa.Connection) -> Watched:
            status = connection.execute(sa.select(turns.c.status).where(turns.c.turn_id == turn_id)).scalar()
            if status is None:
                raise not_found("turn", turn_id)
            found = [v1.WatchTurnResponse.FromString(row) for row in connection.execute(query).scalars()]
            last = found[-1].sequence if found else last_sequences(connection, [turn_id]).get(turn_id, 0)
            return Watched(events=found, status=status, last_sequence=last)

        return await self.read(find)

    async def step(self, turn_id: str, step_id: str) -> v1.Step:
        """One step.

        Raises:
            NotFoundError: If there is none.
        """
        query = sa.select(steps.c.message).where(steps.c.turn_id == turn_id, steps.c.step_id == step_id)

        def find(connection: sa.Connection) -> v1.Step:
            get_turn(connection, turn_id)
            return v1.Step.FromString(one(connection, query, what="step", key=step_id))

        return await self.read(find)

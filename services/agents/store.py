"""The durable log: agents, sessions, turns, their steps and their events, in SQL.

Sequences are dense per turn; an event is shown to nobody before it is committed. The functions of `rows` are parts of a
transaction; `AgentStore.write` and `AgentStore.once` run one as a whole.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from google.protobuf.message import Message

from llamastack import v1
from services.agents import leases
from services.agents.database import Database, StoreConflictError
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
from services.agents.tables import agents, events, metadata, pins, requests, sessions, steps, turns, versions
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

MessageT = TypeVar("MessageT", bound=Message)

KEEP_REQUESTS_SECONDS = 24 * 3600.0
"""How long a repeat of a request is recognised."""
PRUNE_SECONDS = 600.0
"""Time between two clearings of older requests."""


class TurnDeletedError(NotFoundError):
    """The turn was deleted while it ran."""


class TurnFencedError(FailedPreconditionError):
    """Another process runs the turn by now."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What is stored for a watcher."""

    events: list[v1.WatchTurnResponse]
    """Those that he has not seen."""
    status: int
    """Where the turn stands."""
    last_sequence: int
    """Of the turn."""


@dataclass(frozen=True, kw_only=True)
class TurnContext:
    """What a turn needs to run."""

    request: v1.CreateTurnRequest
    """What created it."""
    earlier: list[v1.Turn]
    """The session's turns before it."""


class AgentStore(Database):
    """The log. Use `async with`.

    Args:
        url: SQLAlchemy URL of a synchronous driver; a SQLite file is created with its folder.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, metadata)
        self._pruned = 0.0
        self.owner = leases.new_owner()
        """Name of this process in leases."""

    async def once(
        self, request: Message, answer: type[MessageT], work: Callable[[sa.Connection], MessageT], *, tenant: str = ""
    ) -> MessageT:
        """Do `work` in one transaction, at most once per tenant and request id of this kind of request.

        Raises:
            InvalidArgumentError: If the id was used before with another body.
        """
        request_id = getattr(request, "request_id", "")
        if not request_id:
            return await self.write(work)
        names = {"tenant": tenant, "method": request.DESCRIPTOR.name, "request_id": request_id}
        key = sa.and_(*(requests.c[name] == value for name, value in names.items()))
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
            row = {**names, "created": time.time(), "body": body, "answer": result.SerializeToString()}
            connection.execute(sa.insert(requests), row)
            return result

        try:
            return await self.write(at_most_once)
        except StoreConflictError:  # another process answered the same request in between
            return await self.write(at_most_once)

    def _prune(self, connection: sa.Connection) -> None:
        now = time.time()
        if now - self._pruned > PRUNE_SECONDS:
            self._pruned = now
            connection.execute(sa.delete(requests).where(requests.c.created < now - KEEP_REQUESTS_SECONDS))

    async def agent(self, agent_id: str, *, tenant: str | None = "", version: int = 0) -> v1.Agent:
        """One agent, its newest version unless one is named.

        Raises:
            NotFoundError: If there is none.
        """
        return await self.read(lambda connection: get_agent(connection, agent_id, tenant=tenant, version=version))

    async def list_agents(self, *, tenant: str = "", before: int, count: int) -> list[tuple[int, v1.Agent]]:
        """Agents with their numbers, newest first, older than `before` (0: all)."""
        whose = agents.c.tenant == tenant
        rows = await self.read(lambda connection: newest(connection, agents, whose, before=before, count=count))
        return [(row.number, v1.Agent.FromString(row.message)) for row in rows]

    async def delete_agent(self, agent_id: str, *, tenant: str = "") -> Sequence[str]:
        """Delete an agent with its sessions; returns the turns that went with them.

        Raises:
            NotFoundError: If there is none.
        """

        def delete(connection: sa.Connection) -> Sequence[str]:
            get_agent(connection, agent_id, tenant=tenant)
            gone = delete_sessions(connection, sessions.c.agent_id == agent_id)
            connection.execute(sa.delete(versions).where(versions.c.agent_id == agent_id))
            connection.execute(sa.delete(agents).where(agents.c.agent_id == agent_id))
            return gone

        return await self.write(delete)

    async def session(self, session_id: str, agent_id: str = "", *, tenant: str = "") -> v1.Session:
        """One session, without its turns.

        Raises:
            NotFoundError: If there is none, or none of this agent.
        """
        return await self.read(lambda connection: get_session(connection, session_id, agent_id, tenant=tenant))

    async def session_with_turns(self, session_id: str, agent_id: str = "", *, tenant: str = "") -> v1.Session:
        """One session.

        Raises:
            NotFoundError: If there is none, or none of this agent.
        """

        def find(connection: sa.Connection) -> v1.Session:
            session = get_session(connection, session_id, agent_id, tenant=tenant)
            session.turns.extend(turn for _, turn in get_turns(connection, turns.c.session_id == session_id))
            return session

        return await self.read(find)

    async def list_sessions(
        self, agent_id: str, *, tenant: str = "", before: int, count: int
    ) -> list[tuple[int, v1.Session]]:
        """Sessions of an agent with their numbers, newest first, older than `before` (0: all).

        Raises:
            NotFoundError: If there is no such agent.
        """

        def find(connection: sa.Connection) -> "Sequence[sa.Row[Any, Any]]":
            get_agent(connection, agent_id, tenant=tenant)
            return newest(connection, sessions, sessions.c.agent_id == agent_id, before=before, count=count)

        return [(row.number, v1.Session.FromString(row.message)) for row in await self.read(find)]

    async def delete_session(self, session_id: str, agent_id: str = "", *, tenant: str = "") -> Sequence[str]:
        """Delete a session with its turns, steps and events; returns the turns.

        Raises:
            NotFoundError: If there is none, or none of this agent.
        """

        def delete(connection: sa.Connection) -> Sequence[str]:
            get_session(connection, session_id, agent_id, tenant=tenant)
            return delete_sessions(connection, sessions.c.session_id == session_id)

        return await self.write(delete)

    async def turn(self, turn_id: str, *, tenant: str | None = None) -> v1.Turn:
        """One turn with its steps, of a tenant unless that is None.

        Raises:
            NotFoundError: If there is none.
        """
        return await self.read(lambda connection: get_turn(connection, turn_id, tenant=tenant))

    async def list_turns(
        self, session_id: str, *, tenant: str = "", after: int, count: int
    ) -> list[tuple[int, v1.Turn]]:
        """Turns of a session with their numbers and steps, oldest first, newer than `after`.

        Raises:
            NotFoundError: If there is no such session.
        """
        where = (turns.c.session_id == session_id) & (turns.c.number > after)

        def find(connection: sa.Connection) -> list[tuple[int, v1.Turn]]:
            get_session(connection, session_id, tenant=tenant)
            return get_turns(connection, where, count=count)

        return await self.read(find)

    async def turn_status(self, turn_id: str, *, tenant: str = "") -> "v1.TurnStatus.ValueType":
        """Where a turn stands.

        Raises:
            NotFoundError: If the tenant has none of that id.
        """
        query = sa.select(turns.c.status).where(turns.c.turn_id == turn_id, turns.c.tenant == tenant)
        status = await self.read(lambda connection: connection.execute(query).scalar())
        if status is None:
            raise not_found("turn", turn_id)
        return cast("v1.TurnStatus.ValueType", status)

    async def turn_and_fence(self, turn_id: str) -> tuple[v1.Turn, int]:
        """One turn with its steps, and the fence that it was read under.

        Raises:
            NotFoundError: If there is none.
        """
        query = sa.select(turns.c.fence).where(turns.c.turn_id == turn_id)

        def find(connection: sa.Connection) -> tuple[v1.Turn, int]:
            fence = connection.execute(query).scalar()  # before the turn: what changes in between shows as a lost claim
            return get_turn(connection, turn_id, tenant=None), fence or 0

        return await self.read(find)

    async def turn_context(self, turn: v1.Turn) -> TurnContext:
        """What a turn needs to run.

        Raises:
            TurnDeletedError: If there is no such turn.
        """
        query = sa.select(turns.c.number, turns.c.request).where(turns.c.turn_id == turn.turn_id)

        def find(connection: sa.Connection) -> TurnContext:
            row = connection.execute(query).first()
            if row is None:
                raise TurnDeletedError(f"turn {turn.turn_id!r} was deleted")
            request = v1.CreateTurnRequest.FromString(row.request)
            before = (turns.c.session_id == turn.session_id) & (turns.c.number < row.number)
            return TurnContext(request=request, earlier=[earlier for _, earlier in get_turns(connection, before)])

        return await self.read(find)

    async def pinned(self, turn_id: str, agent_id: str) -> tuple[v1.Agent, v1.ListRuntimeToolsResponse] | None:
        """The agent as a turn goes by it, with its tools; None before it was pinned."""
        query = sa.select(pins.c.agent, pins.c.tools).where(pins.c.turn_id == turn_id, pins.c.agent_id == agent_id)
        row = await self.read(lambda connection: connection.execute(query).first())
        return row and (v1.Agent.FromString(row.agent), v1.ListRuntimeToolsResponse.FromString(row.tools))

    async def pin(self, turn_id: str, agent: v1.Agent, tools: v1.ListRuntimeToolsResponse) -> None:
        """Keep what a turn goes by from now on."""
        key = {"turn_id": turn_id, "agent_id": agent.agent_id}

        def keep(connection: sa.Connection) -> None:
            connection.execute(sa.delete(pins).filter_by(**key))
            row = {**key, "agent": agent.SerializeToString(), "tools": tools.SerializeToString()}
            connection.execute(sa.insert(pins), row)

        await self.write(keep)

    async def claim(self, turn_id: str, *, seconds: float, seen: int) -> int | None:
        """Take a turn over that nobody took since its fence was `seen`; returns the new fence, or None."""
        return await self.write(
            lambda connection: leases.claim(connection, turn_id, owner=self.owner, seconds=seconds, seen=seen)
        )

    async def claim_orphans(self, *, seconds: float, limit: int) -> list[leases.Held]:
        """Take over turns that nobody runs."""
        return await self.write(
            lambda connection: leases.claim_orphans(connection, owner=self.owner, seconds=seconds, limit=limit)
        )

    async def renew(self, *, seconds: float) -> list[leases.Held]:
        """Renew the leases of this process; returns what is still its own."""
        return await self.write(lambda connection: leases.renew(connection, owner=self.owner, seconds=seconds))

    async def release_all(self) -> None:
        """Give up the leases of this process."""
        await self.write(lambda connection: leases.release_all(connection, owner=self.owner))

    async def ask_cancel(self, turn_id: str) -> None:
        """Note that a turn is to be cancelled, for the process that runs it."""
        statement = sa.update(turns).where(turns.c.turn_id == turn_id).values(cancel_asked=True)
        await self.write(lambda connection: connection.execute(statement))

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
        fence: int,
        changed: Sequence[tuple[int, v1.Step]] = (),
        through_power_loss: bool = False,
    ) -> None:
        """Store a turn's next events with the steps that they changed, in one transaction.

        A turn that has ended or waits is nobody's any more.

        Args:
            turn: The turn without its steps, where it changed too.
            new_events: With their sequences set, following the last stored one.
            turn_id: The turn.
            fence: As it was when this process took the turn.
            changed: (place, step) of new or changed steps.
            through_power_loss: As `write` means it.

        Raises:
            TurnDeletedError: If there is no such turn any more.
            TurnFencedError: If another process took it over; nothing is stored.
        """

        def store(connection: sa.Connection) -> None:
            of_turn = (turns.c.turn_id == turn_id) & (turns.c.fence == fence)
            if turn is None:
                query = sa.select(turns.c.number).where(of_turn).with_for_update()
                found = connection.execute(query).first() is not None
            else:
                found = bool(connection.execute(sa.update(turns).where(of_turn).values(_columns(turn))).rowcount)
            if not found:
                _raise_lost(connection, turn_id)
            if new_events:
                rows = [
                    {"turn_id": turn_id, "sequence": event.sequence, "message": event.SerializeToString()}
                    for event in new_events
                ]
                connection.execute(sa.insert(events), rows)
            for place, step in changed:
                put_step(connection, turn_id, place, step)

        await self.write(store, through_power_loss=through_power_loss)

    async def events_after(self, turn_id: str, sequence: int, *, tenant: str | None = None) -> Watched:
        """A turn's events from a sequence on, and where the turn stands; of a tenant unless that is None.

        Raises:
            NotFoundError: If there is no such turn.
        """
        query = (
            sa.select(events.c.message)
            .where(events.c.turn_id == turn_id, events.c.sequence > sequence)
            .order_by(events.c.sequence)
        )

        def find(connection: sa.Connection) -> Watched:
            row = connection.execute(
                sa.select(turns.c.status, turns.c.tenant).where(turns.c.turn_id == turn_id)
            ).first()
            if row is None or tenant not in {None, row.tenant}:
                raise not_found("turn", turn_id)
            status = row.status
            found = [v1.WatchTurnResponse.FromString(row) for row in connection.execute(query).scalars()]
            last = found[-1].sequence if found else last_sequences(connection, [turn_id]).get(turn_id, 0)
            return Watched(events=found, status=status, last_sequence=last)

        return await self.read(find)

    async def step(self, turn_id: str, step_id: str, *, tenant: str = "") -> v1.Step:
        """One step.

        Raises:
            NotFoundError: If there is none.
        """
        query = sa.select(steps.c.message).where(steps.c.turn_id == turn_id, steps.c.step_id == step_id)

        def find(connection: sa.Connection) -> v1.Step:
            get_turn(connection, turn_id, tenant=tenant)
            return v1.Step.FromString(one(connection, query, what="step", key=step_id))

        return await self.read(find)


def _columns(turn: v1.Turn) -> dict[str, Any]:
    """The columns of a turn that changed."""
    values: dict[str, Any] = {"status": turn.status, "message": turn.SerializeToString()}
    if turn.status not in leases.ACTIVE:
        expiries = [call.expires_at.ToSeconds() for call in turn.pending if call.HasField("expires_at")]
        values |= {"owner": "", "lease_until": 0.0, "wake_at": min(expiries, default=None)}
    return values


def _raise_lost(connection: sa.Connection, turn_id: str) -> None:
    if connection.execute(sa.select(turns.c.number).where(turns.c.turn_id == turn_id)).first() is None:
        raise TurnDeletedError(f"turn {turn_id!r} was deleted")
    raise TurnFencedError(f"turn {turn_id!r} is run by another process by now")

"""Turns in the durable log: their steps, their events, who runs them, and what they go by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa

from llamastack import v1
from services.agents import leases
from services.agents.database import Database
from services.agents.rows import ENDED, get_session, get_turn, get_turns, last_sequences, not_found, one
from services.agents.swift import Swift
from services.agents.tables import events, metadata, sessions, steps, turns
from stack_client.errors import FailedPreconditionError, NotFoundError

# The statements of every turn. One that has ended, or waits, is nobody's any more.
_SAVE_TURN = """
    UPDATE turn SET status = :status, message = :message, wake_at = :wake_at,
        owner = CASE WHEN :active THEN owner ELSE '' END,
        lease_until = CASE WHEN :active THEN lease_until ELSE 0 END
    WHERE turn_id = :turn_id AND fence = :fence
"""
_FOUND = "SELECT 1 FROM turn WHERE turn_id = :turn_id"
_HELD = {
    "sqlite": "SELECT 1 FROM turn WHERE turn_id = :turn_id AND fence = :fence",
    "postgresql": "SELECT 1 FROM turn WHERE turn_id = :turn_id AND fence = :fence FOR UPDATE",
}
_ADD_EVENT = "INSERT INTO event (turn_id, sequence, message) VALUES (:turn_id, :sequence, :message)"
_PUT_STEP = """
    INSERT INTO step (turn_id, place, step_id, message) VALUES (:turn_id, :place, :step_id, :message)
    ON CONFLICT (turn_id, place) DO UPDATE SET step_id = excluded.step_id, message = excluded.message
"""
_PUT_PIN = """
    INSERT INTO pin (turn_id, agent_id, agent, tools) VALUES (:turn_id, :agent_id, :agent, :tools)
    ON CONFLICT (turn_id, agent_id) DO UPDATE SET agent = excluded.agent, tools = excluded.tools
"""
_PINS = "SELECT agent, tools FROM pin WHERE turn_id = :turn_id"
_CONTEXT = """
    SELECT turn.number, turn.request, agent_version.message, turn_history.message, turn_history.max_output_tokens
    FROM turn JOIN session ON session.session_id = turn.session_id
    LEFT JOIN turn_history ON turn_history.turn_id = turn.turn_id
    LEFT JOIN agent_version ON agent_version.agent_id = session.agent_id AND agent_version.version = turn.version
    WHERE turn.turn_id = :turn_id
"""
_HAS_EARLIER = "SELECT 1 FROM turn WHERE session_id = :session_id AND number < :number LIMIT 1"


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
class ChangedStep:
    """A step as it is to be stored."""

    place: int
    """Among the steps of its turn, from 0."""
    step_id: str
    """The step."""
    message: bytes
    """All of it."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What a turn goes by once an agent has begun to speak in it."""

    agent: v1.Agent
    """The agent, with what the turn replaced of its configuration."""
    tools: v1.ListRuntimeToolsResponse
    """The tools of its groups as they were then."""


@dataclass(frozen=True, kw_only=True)
class TurnContext:
    """What a turn needs to run."""

    number: int
    """Orders the turns of a session."""
    begun: bool
    """Whether the session has turns before this one."""
    request: v1.CreateTurnRequest
    """What created it."""
    agent: v1.Agent | None
    """The agent that was asked, in the version of the turn; None where that is not kept."""
    pinned: Mapping[str, Pin]
    """What was pinned before, by agent."""
    history: Sequence[v1.Message] = ()
    """What stands before the session's turns; only turns of responses have some."""
    max_output_tokens: int | None = None
    """Of all answers of the turn; None: no bound."""


class TurnStore(Database):
    """The turns of the log. Use `async with`.

    Args:
        url: SQLAlchemy URL; a SQLite file is created with its folder.
    """

    def __init__(self, url: str | sa.URL) -> None:
        super().__init__(url, metadata)
        self.owner = leases.new_owner()
        """Name of this process in leases."""

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

        def find(swift: Swift) -> TurnContext:
            row = swift.run(_CONTEXT, {"turn_id": turn.turn_id}).fetchone()
            if row is None:
                raise TurnDeletedError(f"turn {turn.turn_id!r} was deleted")
            number, request, message, history, max_output_tokens = row
            key = {"session_id": turn.session_id, "number": number}
            begun = swift.run(_HAS_EARLIER, key).fetchone() is not None
            pins = [
                Pin(agent=v1.Agent.FromString(agent), tools=v1.ListRuntimeToolsResponse.FromString(tools))
                for agent, tools in swift.run(_PINS, {"turn_id": turn.turn_id}).fetchall()
            ]
            return TurnContext(
                number=number,
                begun=begun,
                request=v1.CreateTurnRequest.FromString(request),
                agent=None if message is None else v1.Agent.FromString(message),
                pinned={pin.agent.agent_id: pin for pin in pins},
                history=v1.Dialog.FromString(history).messages if history else (),
                max_output_tokens=max_output_tokens,
            )

        return await self.read_swiftly(find)

    async def earlier(self, session_id: str, number: int) -> list[v1.Turn]:
        """The turns of a session before one, oldest first."""
        before = (turns.c.session_id == session_id) & (turns.c.number < number)
        return [turn for _, turn in await self.read(lambda connection: get_turns(connection, before))]

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
        changed: Sequence[ChangedStep] = (),
        pinned: Sequence[Pin] = (),
        through_power_loss: bool = False,
    ) -> None:
        """Store a turn's next events with the steps that they changed, in one transaction.

        A turn that has ended or waits is nobody's any more.

        Args:
            turn: The turn without its steps, where it changed too.
            new_events: With their sequences set, following the last stored one.
            turn_id: The turn.
            fence: As it was when this process took the turn.
            changed: New or changed steps.
            pinned: What the turn goes by from now on.
            through_power_loss: As `write` means it.

        Raises:
            TurnDeletedError: If there is no such turn any more.
            TurnFencedError: If another process took it over; nothing is stored.
        """

        def store(swift: Swift) -> None:
            key = {"turn_id": turn_id, "fence": fence}
            if turn is None:
                found = swift.run(_HELD[self.dialect], key).fetchone() is not None
            else:
                found = bool(swift.run(_SAVE_TURN, {**key, **_columns(turn)}).rowcount)
            if not found:
                _raise_lost(swift, turn_id)
            if new_events:
                rows = [
                    {"turn_id": turn_id, "sequence": event.sequence, "message": event.SerializeToString()}
                    for event in new_events
                ]
                swift.run_many(_ADD_EVENT, rows)
            for step in changed:
                row = {"turn_id": turn_id, "place": step.place, "step_id": step.step_id, "message": step.message}
                swift.run(_PUT_STEP, row)
            for pin in pinned:
                row = {"turn_id": turn_id, "agent_id": pin.agent.agent_id}
                tools = pin.tools.SerializeToString()
                swift.run(_PUT_PIN, {**row, "agent": pin.agent.SerializeToString(), "tools": tools})

        await self.write_swiftly(store, through_power_loss=through_power_loss)

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
    active = turn.status in leases.ACTIVE
    expiries = [call.expires_at.ToMilliseconds() / 1000 for call in turn.pending if call.HasField("expires_at")]
    return {
        "status": turn.status,
        "message": turn.SerializeToString(),
        "active": active,
        "wake_at": None if active else min(expiries, default=None),
    }


def _raise_lost(swift: Swift, turn_id: str) -> None:
    if swift.run(_FOUND, {"turn_id": turn_id}).fetchone() is None:
        raise TurnDeletedError(f"turn {turn_id!r} was deleted")
    raise TurnFencedError(f"turn {turn_id!r} is run by another process by now")

"""Who runs a turn: a lease in its row, and a fence that every change of hands raises.

A process that lost its lease, because it hung or was cut off, still believes that it runs the turn. All it writes names
the fence that it was given, so after the change of hands it changes nothing any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from llamastack import v1
from services.agents.tables import turns
from services.runtime.owners import NOW, database_now, has_ended, new_owner

__all__ = ["ACTIVE", "NOW", "Held", "claim", "claim_orphans", "new_owner", "release_all", "renew"]

ACTIVE = (v1.TURN_STATUS_QUEUED, v1.TURN_STATUS_RUNNING)
_WAITING = (v1.TURN_STATUS_AWAITING_INPUT, v1.TURN_STATUS_NEEDS_ATTENTION)


@dataclass(frozen=True, kw_only=True)
class Held:
    """A turn that a process runs."""

    turn_id: str
    """The turn."""
    tenant: str
    """Whose it is."""
    fence: int
    """What writes of the process must name."""
    cancel_asked: bool
    """Whether somebody else was asked to cancel it."""


def claim(connection: sa.Connection, turn_id: str, *, owner: str, seconds: float, seen: int) -> int | None:
    """Take a turn over that nobody took since its fence was `seen`; returns the new fence, or None."""
    statement = (
        sa.update(turns)
        .where(turns.c.turn_id == turn_id, turns.c.fence == seen)
        .values(owner=owner, lease_until=database_now(connection) + seconds, fence=seen + 1, wake_at=None)
    )
    return seen + 1 if connection.execute(statement).rowcount else None


def claim_orphans(connection: sa.Connection, *, owner: str, seconds: float, limit: int) -> list[Held]:
    """Take over turns whose process is gone, and those that wait for an approval that has expired."""
    now = database_now(connection)
    c = turns.c
    lost = c.status.in_(ACTIVE) & (c.lease_until < now)
    due = c.status.in_(_WAITING) & (c.wake_at < now)
    query = sa.select(c.turn_id, c.tenant, c.fence).where(lost | due).order_by(c.number).limit(limit)
    rows = [*connection.execute(query.with_for_update(skip_locked=True))]
    rows += _of_ended_processes(connection, owner, limit - len(rows), known={row.turn_id for row in rows})
    held = []
    for row in rows:
        fence = claim(connection, row.turn_id, owner=owner, seconds=seconds, seen=row.fence)
        if fence is not None:
            held.append(Held(turn_id=row.turn_id, tenant=row.tenant, fence=fence, cancel_asked=False))
    return held


def _of_ended_processes(connection: sa.Connection, owner: str, limit: int, *, known: set[str]) -> Sequence[Any]:
    """Turns of processes of this machine that are seen to be gone, without waiting for their leases to end."""
    if limit <= 0:
        return []
    c = turns.c
    query = sa.select(c.owner).where(c.status.in_(ACTIVE), c.owner.not_in(("", owner))).distinct()
    gone = [other for other in connection.execute(query).scalars() if has_ended(other)]
    if not gone:
        return []
    orphans = sa.select(c.turn_id, c.tenant, c.fence).where(
        c.status.in_(ACTIVE), c.owner.in_(gone), ~c.turn_id.in_(known)
    )
    return connection.execute(orphans.order_by(c.number).limit(limit).with_for_update(skip_locked=True)).all()


def renew(connection: sa.Connection, *, owner: str, seconds: float) -> list[Held]:
    """Renew the leases of all turns that a process runs; returns those that are still its own."""
    c = turns.c
    mine = (c.owner == owner) & c.status.in_(ACTIVE)
    connection.execute(sa.update(turns).where(mine).values(lease_until=database_now(connection) + seconds))
    return [
        Held(turn_id=row.turn_id, tenant=row.tenant, fence=row.fence, cancel_asked=row.cancel_asked)
        for row in connection.execute(sa.select(c.turn_id, c.tenant, c.fence, c.cancel_asked).where(mine))
    ]


def release_all(connection: sa.Connection, *, owner: str) -> None:
    """Give up what a process runs: others may take it at once."""
    connection.execute(sa.update(turns).where(turns.c.owner == owner).values(owner="", lease_until=0.0))

"""Calls as stored: the intent before the effect, the result after it, and what a dead process left.

A row is RUNNING from its intent to its result. Its owner is the process that runs it; when that one is dead the row is
LOST, and runs again under the same key only when the tool's effect allows to repeat it.
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.runtime.database import Database
from services.runtime.moments import SECOND, now, stamp
from services.tools.audit import Audit, Entry
from services.tools.faults import Fault, FaultError
from services.tools.tables import audit, invocations, outputs, processes

KEEP = 24 * 3600 * SECOND
"""How long a result is kept."""
REPEATABLE = frozenset({v1.TOOL_EFFECT_READ, v1.TOOL_EFFECT_IDEMPOTENT_WRITE})


@dataclass(frozen=True, kw_only=True)
class Row:
    """A call as stored."""

    tenant: str
    key: str
    tool_name: str
    digest: str
    effect: "v1.ToolEffect.ValueType"
    status: "v1.InvocationStatus.ValueType"
    attempt: int
    owner: str
    asked: bool
    cancel_requested: bool
    result: v1.ToolInvocationResult | None
    output_id: str | None
    started_at: int
    completed_at: int | None

    @property
    def settled(self) -> bool:
        """Whether a repeat is answered with the result."""
        return self.status not in {v1.INVOCATION_STATUS_RUNNING, v1.INVOCATION_STATUS_LOST}

    def answer(self) -> v1.ToolInvocationResult:
        """What a repeat gets, of a call that does not run."""
        if self.result is not None:
            return self.result
        message = (
            f"The service ended while {self.tool_name} ran under the key {self.key!r}; whether it took effect is not "
            "known. Look before you call it again, with a new key."
        )
        return FaultError(Fault.LOST, message).result()

    def message(self) -> v1.Invocation:
        """The call as callers see it."""
        return v1.Invocation(
            idempotency_key=self.key,
            tool_name=self.tool_name,
            status=self.status,
            result=self.result,
            started_at=stamp(self.started_at),
            completed_at=stamp(self.completed_at),
        )


class Ledger:
    """Reads and writes calls.

    Args:
        database: Where they are.
        audit: Told of each end, in the same transaction.
        owner: This process, by a name that no other has.
        lease_seconds: Without a sign of life for so long another process is dead.
    """

    def __init__(self, database: Database, audit: Audit, *, owner: str, lease_seconds: float) -> None:
        self._database = database
        self._audit = audit
        self.owner = owner
        self._lease = int(lease_seconds * SECOND)

    async def get(self, tenant: str, key: str) -> Row | None:
        """A call that was made within the last day."""
        async with self._database.read() as connection:
            return await _row(connection, tenant, key)

    async def begin(self, row: Row) -> tuple[Row, bool]:
        """Store the intent.

        Args:
            row: The call; `asked` says that it brings the answer to what an earlier attempt asked.

        Returns:
            The row as it now is, and whether the tool is to be run; else another call under the key runs or ran.
        """
        async with self._database.write() as connection:
            values = {
                "tenant": row.tenant, "key": row.key, "tool_name": row.tool_name, "digest": row.digest,
                "effect": row.effect, "status": v1.INVOCATION_STATUS_RUNNING, "attempt": 1, "owner": self.owner,
                "asked": False, "cancel_requested": False, "started_at": now(),
            }  # fmt: skip
            c = invocations.c
            old = sa.and_(_is(row.tenant, row.key), c.completed_at < now() - KEEP)
            await connection.execute(sa.delete(invocations).where(old))
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            statement = insert(invocations).values(**values).on_conflict_do_nothing().returning(c.key)
            if (await connection.execute(statement)).first() is not None:
                found = await _row(connection, row.tenant, row.key)
                assert found is not None
                return found, True
            found = await _row(connection, row.tenant, row.key, lock=True)
            assert found is not None
            if found.digest != row.digest or not may_run(found, answered=row.asked):
                return found, False
            again = {"status": v1.INVOCATION_STATUS_RUNNING, "attempt": found.attempt + 1, "owner": self.owner}
            reset = {"asked": False, "cancel_requested": False, "result": None, "completed_at": None, "output_id": None}
            change = sa.update(invocations).where(_is(row.tenant, row.key)).values(**again, **reset, started_at=now())
            await connection.execute(change)
            found = await _row(connection, row.tenant, row.key)
            assert found is not None
            return found, True

    async def end(
        self,
        row: Row,
        status: "v1.InvocationStatus.ValueType",
        result: v1.ToolInvocationResult,
        *,
        entry: Entry,
        output_id: str | None = None,
    ) -> None:
        """Store the result of the attempt that this process ran, or of a call that was stopped before it began."""
        values = {
            "status": status, "result": result.SerializeToString(), "completed_at": now(), "output_id": output_id,
            "asked": result.HasField("input_required"),
        }  # fmt: skip
        c = invocations.c
        mine = sa.and_(_is(row.tenant, row.key), c.owner == self.owner, c.attempt == row.attempt)
        async with self._database.write() as connection:
            done = await connection.execute(sa.update(invocations).where(mine).values(**values))
            if not done.rowcount and not row.attempt:
                insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
                facts = {
                    "tenant": row.tenant, "key": row.key, "tool_name": row.tool_name, "digest": row.digest,
                    "effect": row.effect, "attempt": 0, "owner": self.owner, "cancel_requested": True,
                    "started_at": row.started_at,
                }  # fmt: skip
                await connection.execute(insert(invocations).values(**facts, **values).on_conflict_do_nothing())
            await self._audit.add(connection, entry)

    async def withdraw(self, row: Row, *, entry: Entry) -> None:
        """Forget an intent: nothing happened."""
        async with self._database.write() as connection:
            mine = sa.and_(_is(row.tenant, row.key), invocations.c.owner == self.owner)
            await connection.execute(sa.delete(invocations).where(mine))
            await self._audit.add(connection, entry)

    async def lose(self, row: Row, *, entry: Entry) -> None:
        """Say that it is not known what came of an attempt."""
        lost = {"status": v1.INVOCATION_STATUS_LOST, "completed_at": now()}
        async with self._database.write() as connection:
            mine = sa.and_(_is(row.tenant, row.key), invocations.c.owner == self.owner)
            await connection.execute(sa.update(invocations).where(mine).values(**lost))
            await self._audit.add(connection, entry)

    async def request_cancel(self, tenant: str, key: str) -> Row | None:
        """Ask the process that runs a call to stop it."""
        async with self._database.write() as connection:
            running = sa.and_(_is(tenant, key), invocations.c.status == v1.INVOCATION_STATUS_RUNNING)
            await connection.execute(sa.update(invocations).where(running).values(cancel_requested=True))
            return await _row(connection, tenant, key)

    async def to_cancel(self) -> list[tuple[str, str]]:
        """Tenant and key of the calls of this process that others want stopped."""
        c = invocations.c
        wanted = sa.and_(c.owner == self.owner, c.status == v1.INVOCATION_STATUS_RUNNING, c.cancel_requested)
        async with self._database.read() as connection:
            found = await connection.execute(sa.select(c.tenant, c.key).where(wanted))
            return [(row.tenant, row.key) for row in found]

    async def show_life(self) -> None:
        """Say that this process lives."""
        async with self._database.write() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            seen = insert(processes).values(owner=self.owner, seen_at=now())
            seen = seen.on_conflict_do_update(index_elements=[processes.c.owner], set_={"seen_at": now()})
            await connection.execute(seen)

    async def bury(self, *, alone: bool) -> int:
        """Mark the calls of dead processes as lost; returns how many.

        Args:
            alone: Whether no other process uses the database, so that all others are dead.
        """
        c = invocations.c
        async with self._database.write() as connection:
            living = sa.select(processes.c.owner).where(processes.c.seen_at > now() - self._lease)
            dead = sa.and_(c.status == v1.INVOCATION_STATUS_RUNNING, c.owner != self.owner)
            if not alone:
                dead = sa.and_(dead, c.owner.not_in(living))
            lost = {"status": v1.INVOCATION_STATUS_LOST, "completed_at": now()}
            found = (await connection.execute(sa.update(invocations).where(dead).values(**lost).returning(*c))).all()
            for one in found:
                row = _read(one)
                await self._audit.add(
                    connection,
                    Entry(
                        tool_name=row.tool_name, outcome="lost", tenant=row.tenant, key=row.key, digest=row.digest,
                        effect=effect_name(row.effect), attempt=row.attempt, error_code=int(Fault.LOST),
                    ),
                )  # fmt: skip
            if alone:
                await connection.execute(sa.delete(processes).where(processes.c.owner != self.owner))
            return len(found)

    async def leave(self) -> None:
        """This process ends."""
        async with self._database.write() as connection:
            await connection.execute(sa.delete(processes).where(processes.c.owner == self.owner))

    async def sweep(self, *, output_days: int, audit_days: int) -> None:
        """Delete what is too old; 0 days of audit means for ever."""
        async with self._database.write() as connection:
            await connection.execute(sa.delete(invocations).where(invocations.c.completed_at < now() - KEEP))
            old = outputs.c.created_at < now() - output_days * 24 * 3600 * SECOND
            await connection.execute(sa.delete(outputs).where(old))
            if audit_days:
                await connection.execute(sa.delete(audit).where(audit.c.at < now() - audit_days * 24 * 3600 * SECOND))


def may_run(row: Row, *, answered: bool) -> bool:
    """Whether a call may run again under its key."""
    if row.status == v1.INVOCATION_STATUS_LOST:
        return row.effect in REPEATABLE
    return row.asked and answered


def effect_name(effect: "v1.ToolEffect.ValueType") -> str:
    """`read`, `idempotent_write` or `write`."""
    return v1.ToolEffect.Name(effect).removeprefix("TOOL_EFFECT_").lower()


def _is(tenant: str, key: str) -> sa.ColumnElement[bool]:
    return sa.and_(invocations.c.tenant == tenant, invocations.c.key == key)


async def _row(connection: AsyncConnection, tenant: str, key: str, *, lock: bool = False) -> Row | None:
    statement = sa.select(invocations).where(_is(tenant, key))
    found = (await connection.execute(statement.with_for_update() if lock else statement)).first()
    row = None if found is None else _read(found)
    expired = row is not None and row.completed_at is not None and row.completed_at < now() - KEEP
    return None if expired else row


def _read(found: sa.Row[tuple[object, ...]]) -> Row:
    values = dict(found._mapping)  # noqa: SLF001 (its public name)
    result = values.pop("result")
    return Row(**values, result=None if result is None else v1.ToolInvocationResult.FromString(result))

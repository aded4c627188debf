"""What a worker does to its batch, step by step; each step is one transaction that names the lease's fence."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.gateway.batches.rows import (
    BatchRow,
    Lease,
    LeaseLostError,
    change,
    held,
    unless_cancelling,
)
from services.gateway.batches.store import BatchStore
from services.gateway.batches.tables import batches, lines
from services.runtime.database import Database
from services.runtime.moments import now

ROWS_AT_ONCE = 50
"""Answers held in memory while a file is written."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A request of a batch."""

    place: int
    """In the file, from 0."""
    custom_id: str
    """The caller's name of it."""
    body: bytes = b""
    """JSON."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a request."""

    place: int
    """In the file, from 0."""
    status_code: int
    """HTTP's."""
    answer: bytes
    """JSON."""
    tokens: Mapping[str, int]
    """By the name of the batch's column."""

    @property
    def succeeded(self) -> bool:
        """Whether it counts as completed."""
        return 200 <= self.status_code < 300


@dataclass(frozen=True, kw_only=True)
class Done:
    """A line with what came of it."""

    place: int
    """In the file, from 0."""
    custom_id: str
    """The caller's name of it."""
    status_code: int | None
    """HTTP's; None when it never ran."""
    answer: bytes
    """JSON; empty when it never ran."""


class Steps:
    """Changes of batches by those who hold them.

    Args:
        database: Where they are.
        store: Told of each change.
    """

    def __init__(self, database: Database, store: BatchStore) -> None:
        self._database = database
        self._store = store

    async def clear_lines(self, lease: Lease) -> None:
        """Forget what an earlier reading of the file left.

        Raises:
            LeaseLostError: If another process has the batch.
        """
        async with self._database.write() as connection:
            await _check(connection, lease)
            await connection.execute(sa.delete(lines).where(lines.c.batch == lease.number))

    async def add_lines(self, lease: Lease, found: Sequence[Line]) -> None:
        """Keep requests that were read.

        Raises:
            LeaseLostError: If another process has the batch.
        """
        rows = [{"batch": lease.number, "place": o.place, "custom_id": o.custom_id, "body": o.body} for o in found]
        async with self._database.write() as connection:
            await _check(connection, lease)
            await connection.execute(sa.insert(lines), rows)

    async def start(self, lease: Lease, *, total: int, model: str | None) -> None:
        """Begin to run requests.

        Raises:
            LeaseLostError: If another process has the batch.
        """
        status = unless_cancelling(v1.BATCH_STATUS_IN_PROGRESS, cancelling=v1.BATCH_STATUS_CANCELLING)
        await self._change(lease, {"status": status, "in_progress_at": now(), "total": total, "model": model})

    async def pending(self, lease: Lease, *, after: int, limit: int) -> list[Line]:
        """The next requests that have not run, in their order."""
        c = lines.c
        query = sa.select(c.place, c.custom_id, c.body).where(
            c.batch == lease.number, c.place > after, c.status_code.is_(None)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(c.place).limit(limit))).all()
        return [Line(place=row.place, custom_id=row.custom_id, body=row.body) for row in rows]

    async def record(self, lease: Lease, outcomes: Sequence[Outcome], *, told: bool) -> BatchRow:
        """Keep what came of some requests.

        Args:
            lease: Of the batch.
            outcomes: New ones.
            told: Whether watchers hear of it.

        Raises:
            LeaseLostError: If another process has the batch.
        """
        completed = sum(outcome.succeeded for outcome in outcomes)
        columns: dict[str, Any] = {
            "completed": batches.c.completed + completed,
            "failed": batches.c.failed + len(outcomes) - completed,
        }
        for name in sorted({name for outcome in outcomes for name in outcome.tokens}):
            columns[name] = batches.c[name] + sum(outcome.tokens.get(name, 0) for outcome in outcomes)
        where = sa.and_(lines.c.batch == lease.number, lines.c.place == sa.bindparam("at"))
        values: dict[str, Any] = {"status_code": sa.bindparam("status"), "answer": sa.bindparam("said"), "body": None}
        done = [{"at": one.place, "status": one.status_code, "said": one.answer} for one in outcomes]
        async with self._database.write() as connection:
            row = await change(connection, *held(lease), columns=columns, told=told)
            await connection.execute(sa.update(lines).where(where).values(values), done)
        self._store.signals.tell(lease.number)
        return row

    async def finalize(self, lease: Lease, *, ending: int) -> BatchRow:
        """Begin to write files; what the batch becomes then stays so, whoever goes on with it.

        Raises:
            LeaseLostError: If another process has the batch.
        """
        columns = {
            "status": unless_cancelling(v1.BATCH_STATUS_FINALIZING, cancelling=v1.BATCH_STATUS_CANCELLING),
            "ending": unless_cancelling(ending, cancelling=v1.BATCH_STATUS_CANCELLED),
            "finalizing_at": now(),
        }
        return await self._change(lease, columns)

    async def outcomes(self, lease: Lease) -> AsyncIterator[Done]:
        """All lines in the order of the file."""
        c, after = lines.c, -1
        query = sa.select(c.place, c.custom_id, c.status_code, c.answer).where(c.batch == lease.number)
        while True:
            async with self._database.read() as connection:
                page = query.where(c.place > after).order_by(c.place).limit(ROWS_AT_ONCE)
                rows = (await connection.execute(page)).all()
            if not rows:
                return
            for row in rows:
                yield Done(
                    place=row.place, custom_id=row.custom_id, status_code=row.status_code, answer=row.answer or b""
                )
            after = rows[-1].place

    async def written(self, lease: Lease, *, part: str, value: str) -> None:
        """Keep the identifier of the file of `output` or `error`.

        Raises:
            LeaseLostError: If another process has the batch.
        """
        await self._change(lease, {f"{part}_file_id": value}, told=False)

    async def end(self, lease: Lease) -> None:
        """End a batch whose files are written.

        Raises:
            LeaseLostError: If another process has it.
        """
        final = unless_cancelling(batches.c.ending, cancelling=v1.BATCH_STATUS_CANCELLED)
        await self._end(lease, {"status": final})

    async def fail(self, lease: Lease, errors: Sequence[v1.BatchError]) -> None:
        """End a batch that cannot run, or whose files cannot be written.

        Raises:
            LeaseLostError: If another process has it.
        """
        told = v1.BatchErrors(data=errors)
        await self._end(lease, {"status": v1.BATCH_STATUS_FAILED, "errors": told.SerializeToString()})

    async def _end(self, lease: Lease, columns: Mapping[str, Any]) -> None:
        columns = {**columns, "ended_at": now(), "owner": "", "leased_until": 0}
        async with self._database.write() as connection:
            await change(connection, *held(lease), columns=columns)
            await connection.execute(sa.delete(lines).where(lines.c.batch == lease.number))
        self._store.signals.tell(lease.number)

    async def _change(self, lease: Lease, columns: Mapping[str, Any], *, told: bool = True) -> BatchRow:
        async with self._database.write() as connection:
            row = await change(connection, *held(lease), columns=columns, told=told)
        self._store.signals.tell(lease.number)
        return row


async def _check(connection: AsyncConnection, lease: Lease) -> None:
    query = sa.select(batches.c.number).where(*held(lease)).with_for_update()
    if (await connection.execute(query)).first() is None:
        raise LeaseLostError

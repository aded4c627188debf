"""Writing telemetry: spans and their changes, events, points; what traces say in sum; deleting what is too old."""

import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.runtime.database import Database
from services.telemetry.rows import Batch, SpanChange
from services.telemetry.tables import events, points, series, spans, traces

CHUNK = 500
"""Traces, or rows, that one statement handles."""
SWEPT = 5000
"""Spans that one transaction deletes at most."""
_LOCK = 0x74656C77  # of our writers among PostgreSQL's advisory locks
_KEY = (spans.c.tenant, spans.c.trace_id, spans.c.span_id)


class Store:
    """The database's writing side.

    Args:
        database: An open database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert: Any = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def write(self, batch: Batch) -> None:
        """Store rows, all or none.

        Raises:
            StackError: If the database failed.
        """
        async with self._writing() as connection:
            if batch.spans:
                await connection.execute(self._put(spans), batch.spans)
            for change in batch.changes:
                await self._change(connection, change)
            if batch.events:
                await connection.execute(sa.insert(events), batch.events)
            if batch.points:
                await self._add_points(connection, batch.points)
            touched = {row["trace_id"] for row in batch.spans} | {change.trace_id for change in batch.changes}
            await self._summarise(connection, touched)

    async def sweep(self, *, max_spans: int) -> bool:
        """Delete some of what is too old or too much; returns whether there may be more.

        Raises:
            StackError: If the database failed.
        """
        now = time.time_ns()
        async with self._writing() as connection:
            await connection.execute(sa.delete(events).where(events.c.expires_ns < now))
            if (await connection.execute(sa.delete(points).where(points.c.expires_ns < now))).rowcount:
                used = sa.exists().where(points.c.series == series.c.number)
                await connection.execute(sa.delete(series).where(~used))
            count = (await connection.execute(sa.select(sa.func.count()).select_from(spans))).scalar_one()
            old = sa.select(*_KEY).where(spans.c.expires_ns < now).limit(SWEPT)
            gone = list((await connection.execute(old)).all())
            over = min(count - len(gone) - max_spans, SWEPT)
            if not gone and over > 0:
                oldest = sa.select(*_KEY).order_by(spans.c.start_ns).limit(over)
                gone = list((await connection.execute(oldest)).all())
            for some in _chunks(gone):
                await connection.execute(sa.delete(spans).where(sa.tuple_(*_KEY).in_([tuple(row) for row in some])))
            trace_ids = {row.trace_id for row in gone}
            await self._summarise(connection, trace_ids)
            await _forget_viewers(connection, trace_ids)
            return len(gone) == SWEPT

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction beside which no other replica writes: what a trace's spans say together needs all of them."""
        async with self._database.write() as connection:
            if self._database.dialect == "postgresql":
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield connection

    def _put(self, table: sa.Table) -> Any:  # noqa: ANN401 - a statement of one of two dialects
        statement = self._insert(table)
        keys = [column.name for column in table.primary_key]
        kept = {*keys, "made_ns"}
        changed = {column.name: statement.excluded[column.name] for column in table.c if column.name not in kept}
        return statement.on_conflict_do_update(index_elements=keys, set_=changed)

    async def _change(self, connection: AsyncConnection, change: SpanChange) -> None:
        """Merge a beginning or an end into what is known of the span; either may be the first that comes."""
        key = {"tenant": change.tenant, "trace_id": change.trace_id, "span_id": change.span_id}
        c = spans.c
        known = (
            await connection.execute(
                sa.select(spans)
                .where(c.tenant == change.tenant, c.trace_id == change.trace_id, c.span_id == change.span_id)
                .with_for_update()
            )
        ).first()
        row: dict[str, Any] = (
            dict(known._mapping)  # noqa: SLF001 - SQLAlchemy's documented way
            if known
            else {
                **key, "parent_id": None, "name": "", "start_ns": change.at_ns, "end_ns": None,
                "status": v1.SPAN_STATUS_UNSPECIFIED, "attributes": {}, "expires_ns": change.expires_ns,
            }
        )  # fmt: skip
        row["attributes"] = {**row["attributes"], **change.attributes}
        row["expires_ns"] = max(row["expires_ns"], change.expires_ns)
        if change.name is None:
            row |= {"end_ns": change.at_ns, "status": change.status}
        else:
            row |= {"start_ns": change.at_ns, "name": change.name, "parent_id": change.parent_id}
        await connection.execute(self._put(spans), [row])

    async def _add_points(self, connection: AsyncConnection, rows: Sequence[dict[str, Any]]) -> None:
        numbers: dict[tuple[str, ...], int] = {}
        names = ("tenant", "metric", "unit", "labels")
        for row in rows:
            key = tuple(row[name] for name in names)
            if key not in numbers:
                facts = dict(zip(names, key, strict=True))
                await connection.execute(self._insert(series).values(**facts).on_conflict_do_nothing())
                mine = sa.and_(*(series.c[name] == value for name, value in facts.items()))
                numbers[key] = (await connection.execute(sa.select(series.c.number).where(mine))).scalar_one()
        written = [
            {
                "series": numbers[tuple(row[name] for name in names)],
                "at_ns": row["at_ns"], "value": row["value"], "expires_ns": row["expires_ns"],
            }
            for row in rows
        ]  # fmt: skip
        await connection.execute(sa.insert(points), written)

    async def _summarise(self, connection: AsyncConnection, trace_ids: Collection[str]) -> None:
        """Say anew what the spans of some traces say together."""
        now = time.time_ns()
        for some in _chunks(sorted(trace_ids)):
            c = spans.c
            facts = sa.select(c.trace_id, c.tenant, c.span_id, c.parent_id, c.start_ns, c.end_ns)
            found = await connection.execute(facts.where(c.trace_id.in_(some)).order_by(c.trace_id, c.start_ns))
            rows = [
                {"trace_id": trace_id, "made_ns": now, **row}
                for trace_id, group in groupby(found.all(), key=lambda row: row.trace_id)
                for row in _summaries(list(group))
            ]
            seen = {row["trace_id"] for row in rows}
            gone = [one for one in some if one not in seen]
            if gone:
                await connection.execute(sa.delete(traces).where(traces.c.trace_id.in_(gone)))
            if rows:
                await connection.execute(self._put(traces), rows)


async def _forget_viewers(connection: AsyncConnection, trace_ids: Collection[str]) -> None:
    """Drop what tenants saw of traces in which they have no span any more."""
    seen = sa.exists().where(spans.c.trace_id == traces.c.trace_id, spans.c.tenant == traces.c.viewer)
    for some in _chunks(sorted(trace_ids)):
        lost = sa.and_(traces.c.trace_id.in_(some), traces.c.viewer != "", ~seen)
        await connection.execute(sa.delete(traces).where(lost))


def _summaries(rows: Sequence[Any]) -> Iterable[dict[str, Any]]:
    """What each tenant sees of a trace, from its spans by their beginning."""
    tenants = {row.tenant for row in rows}
    for viewer in {"", *tenants}:
        seen = [row for row in rows if not viewer or row.tenant == viewer]
        known = {row.span_id for row in seen}
        root = min(seen, key=lambda row: (row.parent_id is not None, row.parent_id in known, row.start_ns))
        ends = [row.end_ns for row in seen if row.end_ns is not None]
        runs = root.end_ns is None
        yield {
            "viewer": viewer, "root_span_id": root.span_id, "start_ns": seen[0].start_ns,
            "end_ns": None if runs else max(ends),
        }  # fmt: skip


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[begin : begin + CHUNK] for begin in range(0, len(items), CHUNK))

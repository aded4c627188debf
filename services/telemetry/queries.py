"""Finding traces and spans; a tenant sees its own, the empty tenant sees all."""

import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.runtime.database import Database
from services.runtime.pages import decode_token, encode_token, page_size
from services.telemetry.conditions import conditions
from services.telemetry.rows import hexadecimal, stamp, struct
from services.telemetry.tables import spans, traces
from stack_client.errors import InvalidArgumentError, NotFoundError

MAX_TREE = 10_000
"""Spans of a tree that are answered at most."""
_LOOKED = 1000
"""Spans that one step of a search by depth looks at."""
_CHUNK = 500
_ORDERS: dict[str, sa.ColumnElement[int]] = {
    "start_time": traces.c.start_ns,
    "end_time": sa.func.coalesce(traces.c.end_ns, 2**63 - 1),  # one that runs ends last
    "duration": sa.func.coalesce(traces.c.end_ns, 2**63 - 1) - traces.c.start_ns,
}


class Queries:
    """The database's reading side for traces.

    Args:
        database: An open database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def traces(self, request: v1.QueryTracesRequest, *, tenant: str) -> v1.QueryTracesResponse:
        """A page of traces whose root span meets the conditions.

        Raises:
            InvalidArgumentError: If a condition, the order or the token is none.
        """
        size, scope = page_size(request), _scope("traces", request)
        if request.offset and request.page_token:
            raise InvalidArgumentError("offset cannot be given with page_token; leave one out", field="offset")
        # Traces that come while somebody turns pages would move the others: they are left out.
        position = decode_token(request.page_token, scope=scope) or f"{request.offset}:{time.time_ns()}"
        offset, until = map(int, position.split(":"))
        root = sa.and_(spans.c.trace_id == traces.c.trace_id, spans.c.span_id == traces.c.root_span_id)
        found = sa.select(traces).where(traces.c.viewer == tenant, traces.c.made_ns <= until)
        filters = conditions(request.attribute_filters, dialect=self._database.dialect)
        if filters:
            mine = [] if not tenant else [spans.c.tenant == tenant]
            found = found.where(sa.exists(sa.select(sa.literal(1)).where(root, *mine, *filters).correlate(traces)))
        found = found.order_by(*_order(request.order_by)).offset(offset).limit(size + 1)
        async with self._database.read() as connection:
            rows = (await connection.execute(found)).all()
        token = encode_token(f"{offset + size}:{until}", scope=scope) if len(rows) > size else ""
        return v1.QueryTracesResponse(data=[_trace(row) for row in rows[:size]], next_page_token=token)

    async def trace(self, trace_id: str, *, tenant: str) -> v1.Trace:
        """One trace.

        Raises:
            NotFoundError: If there is none.
        """
        wanted = hexadecimal(trace_id, field="trace_id")
        query = sa.select(traces).where(traces.c.viewer == tenant, traces.c.trace_id == wanted)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFoundError(f"no trace {wanted}; it may be too old, or not sent yet")
        return _trace(row)

    async def span(self, trace_id: str, span_id: str, *, tenant: str) -> v1.Span:
        """One span.

        Raises:
            NotFoundError: If there is none.
        """
        trace, wanted = hexadecimal(trace_id, field="trace_id"), hexadecimal(span_id, field="span_id")
        query = sa.select(spans).where(spans.c.trace_id == trace, spans.c.span_id == wanted, *_visible(tenant))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFoundError(f"no span {wanted} in trace {trace}; it may be too old, or not sent yet")
        return _span(row)

    async def tree(self, request: v1.GetSpanTreeRequest, *, tenant: str) -> v1.GetSpanTreeResponse:
        """A span with those below it, level by level, at most `MAX_TREE`.

        Raises:
            NotFoundError: If there is no such span.
        """
        wanted, depth = hexadecimal(request.span_id, field="span_id"), _depth(request)
        c = spans.c
        async with self._database.read() as connection:
            query = sa.select(spans).where(c.span_id == wanted, *_visible(tenant)).order_by(c.start_ns.desc())
            top = (await connection.execute(query.limit(1))).first()
            if top is None:
                raise NotFoundError(f"no span {wanted}; it may be too old, or not sent yet")
            found: dict[str, Any] = {top.span_id: top}
            level, below = [top.span_id], sa.select(spans).where(c.trace_id == top.trace_id, *_visible(tenant))
            while level and depth > 0 and len(found) < MAX_TREE:
                children: list[Any] = []
                for some in _chunks(level):
                    query = below.where(c.parent_id.in_(some)).limit(MAX_TREE)
                    children += (await connection.execute(query)).all()
                # A damaged trace may be a ring.
                fresh = {row.span_id: row for row in children if row.span_id not in found}
                room = MAX_TREE - len(found)
                found |= dict(list(fresh.items())[:room])
                level, depth = list(fresh), depth - 1
        attributes = request.attributes_to_return
        return v1.GetSpanTreeResponse(data={key: _span(row, attributes) for key, row in found.items()})

    async def spans(self, request: v1.QuerySpansRequest, *, tenant: str) -> v1.QuerySpansResponse:
        """A page of spans that meet the conditions, the newest first.

        Raises:
            InvalidArgumentError: If a condition or the token is none.
        """
        size, scope = page_size(request), _scope("spans", request)
        depth, c = _depth(request), spans.c
        filters = conditions(request.attribute_filters, dialect=self._database.dialect)
        key = sa.tuple_(c.start_ns, c.trace_id, c.span_id)
        found = sa.select(spans).where(*_visible(tenant), *filters)
        found = found.order_by(c.start_ns.desc(), c.trace_id.desc(), c.span_id.desc())
        position = decode_token(request.page_token, scope=scope)
        rows: list[Any] = []
        async with self._database.read() as connection:
            while len(rows) <= size:
                after = found
                if position:
                    start, trace_id, span_id = position.split(":")
                    after = found.where(key < sa.tuple_(sa.literal(int(start), sa.BigInteger), trace_id, span_id))
                most = _LOOKED if request.HasField("max_depth") else size + 1
                some = (await connection.execute(after.limit(most))).all()
                if request.HasField("max_depth"):
                    rows += await _not_below(connection, some, depth=depth, tenant=tenant)
                else:
                    rows += some
                if len(some) < most:
                    break
                position = _position(some[-1])
        token = encode_token(_position(rows[size - 1]), scope=scope) if len(rows) > size else ""
        data = [_span(row, request.attributes_to_return) for row in rows[:size]]
        return v1.QuerySpansResponse(data=data, next_page_token=token)


async def _not_below(connection: AsyncConnection, rows: Sequence[Any], *, depth: int, tenant: str) -> list[Any]:
    """The rows at most so many levels below the first span of their trace."""
    parents: dict[tuple[str, str], str | None] = {}
    c = spans.c
    for some in _chunks(sorted({row.trace_id for row in rows})):
        query = sa.select(c.trace_id, c.span_id, c.parent_id).where(c.trace_id.in_(some), *_visible(tenant))
        parents |= {(row.trace_id, row.span_id): row.parent_id for row in await connection.execute(query)}

    def is_near(row: Any) -> bool:  # noqa: ANN401 - a row
        parent = row.parent_id
        for _ in range(depth + 1):
            if parent is None or (row.trace_id, parent) not in parents:
                return True
            parent = parents[row.trace_id, parent]
        return False

    return [row for row in rows if is_near(row)]


def _visible(tenant: str) -> list[sa.ColumnElement[bool]]:
    return [spans.c.tenant == tenant] if tenant else []


def _order(given: Iterable[str]) -> list[sa.ColumnElement[Any]]:
    clauses: list[sa.ColumnElement[Any]] = []
    for one in list(given) or ["-start_time"]:
        column = _ORDERS.get(one.removeprefix("-"))
        if column is None:
            message = f"order_by {one!r} is unknown; give start_time, end_time or duration, with - for descending"
            raise InvalidArgumentError(message, field="order_by")
        clauses.append(column.desc() if one.startswith("-") else column.asc())
    return [*clauses, traces.c.trace_id.asc()]


def _depth(request: v1.GetSpanTreeRequest | v1.QuerySpansRequest) -> int:
    if not request.HasField("max_depth"):
        return MAX_TREE
    if request.max_depth < 1:
        raise InvalidArgumentError("max_depth is 0; give at least 1, or leave it out", field="max_depth")
    return min(request.max_depth, MAX_TREE)


def _scope(name: str, request: Any) -> str:  # noqa: ANN401 - either query
    """What a token is bound to: everything but where the page begins."""
    same = type(request)()
    same.CopyFrom(request)
    for field in ("page_token", "page_size", "offset"):
        if field in same.DESCRIPTOR.fields_by_name:
            same.ClearField(field)
    said: str = same.SerializeToString(deterministic=True).hex()
    return name + said


def _position(row: Any) -> str:  # noqa: ANN401 - a row
    return f"{row.start_ns}:{row.trace_id}:{row.span_id}"


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[begin : begin + _CHUNK] for begin in range(0, len(items), _CHUNK))


def _trace(row: Any) -> v1.Trace:  # noqa: ANN401 - a row
    return v1.Trace(
        trace_id=row.trace_id,
        root_span_id=row.root_span_id,
        start_time=stamp(row.start_ns),
        end_time=stamp(row.end_ns),
    )


def _span(row: Any, attributes: Collection[str] = ()) -> v1.Span:  # noqa: ANN401 - a row
    return v1.Span(
        span_id=row.span_id,
        trace_id=row.trace_id,
        parent_span_id=row.parent_id,
        name=row.name,
        start_time=stamp(row.start_ns),
        end_time=stamp(row.end_ns),
        attributes=struct(row.attributes, attributes),
        status=row.status,
    )

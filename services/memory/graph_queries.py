"""Walking a graph: breadth first, one SQL statement a hop, in an order that does not depend on the database."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory.bank import Bank
from services.memory.database import Database
from services.memory.graph import names_of
from services.memory.graph_paths import Step, TangledError, paths_of_length
from services.memory.graph_plan import BEGINNING, FOREVER
from services.memory.graph_words import rank, weights_of, words_of
from services.memory.lists import among, outside
from services.memory.tables import edges, entities, entity_words
from services.runtime.moments import now
from stack_client.errors import NotFoundError

Direction = Literal["out", "in", "both"]

MAX_EDGES = 50_000
"""Of one answer, and loaded by one search for paths."""
MAX_CANDIDATES = 5000
"""Entities looked at for a text; the rarest words come first."""
MAX_STARTS = 100
"""Entities that a text may name."""
_OPPOSITE: dict[Direction, Direction] = {"out": "in", "in": "out", "both": "both"}


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which edges a read sees."""

    as_of: int = field(default_factory=now)
    """Edges that hold at this moment, microseconds since 1970."""
    recorded_as_of: int | None = None
    """As it was known at this moment; None means now."""
    relations: Sequence[str] = ()
    """Empty means all."""
    entity_types: Sequence[str] = ()
    """Of entities that are reached; empty means all."""
    direction: Direction = "both"
    """Which way edges are followed."""


class Reached(NamedTuple):
    """An entity that was reached."""

    entity_id: str
    hops: int
    """Steps from the nearest start; 0 = it is one."""
    via: str
    """The edge of the last step, the first by identifier; empty at the start."""


class GraphReader:
    """Queries of all graph banks.

    Args:
        database: Where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def view(self, bank: Bank, scope: Scope) -> AsyncIterator["GraphView"]:
        """One state of a graph, as a scope shows it."""
        async with self._database.read() as connection:
            yield GraphView(connection, self._database.dialect, bank.number, scope)


class GraphView:
    """One state of one graph, as a scope shows it; see `GraphReader.view`."""

    def __init__(self, connection: AsyncConnection, dialect: str, bank: int, scope: Scope) -> None:
        self._connection = connection
        self._dialect = dialect
        self._bank = bank
        self._scope = scope

    async def entities(self, entity_ids: Sequence[str], *, stored: bool = False) -> dict[str, v1.GraphEntity]:
        """Entities by identifier; those that are not there are left out.

        Args:
            entity_ids: The identifiers.
            stored: Leave out those that were not yet stored at the scope's moment.
        """
        c = entities.c
        where = (c.bank == self._bank) & among(self._dialect, c.entity_id, entity_ids)
        if stored:
            where &= self._stored()
        rows = await self._connection.execute(sa.select(c.body, c.recorded_at).where(where)) if entity_ids else ()
        found: dict[str, v1.GraphEntity] = {}
        for row in rows:
            entity = v1.GraphEntity.FromString(row.body)
            entity.recorded_at.FromMicroseconds(row.recorded_at)
            found[entity.entity_id] = entity
        return found

    async def require(self, entity_ids: Sequence[str], *, fields: Sequence[str]) -> dict[str, v1.GraphEntity]:
        """Entities that must be there.

        Raises:
            NotFoundError: If one is not, or was not yet stored at the scope's moment.
        """
        found = await self.entities(entity_ids, stored=True)
        for entity_id, name in zip(entity_ids, fields, strict=True):
            if entity_id not in found:
                when = "" if self._scope.recorded_as_of is None else " at that time"
                message = f"the graph has no entity {entity_id!r}{when}; look for it by text with QuerySubgraph"
                raise NotFoundError(message, field=name)
        return found

    async def edges(self, edge_ids: Sequence[str]) -> dict[str, v1.GraphEdge]:
        """Edges by identifier, as the scope shows them."""
        query = self._select_edges(among(self._dialect, edges.c.edge_id, edge_ids))
        found = [edge_of(row) for row in await self._connection.execute(query)] if edge_ids else []
        return {edge.edge_id: edge for edge in found}

    async def edges_between(self, entity_ids: Sequence[str]) -> tuple[list[v1.GraphEdge], bool]:
        """Edges with both ends among some entities, ordered by source, relation, target and identifier."""
        e = edges.c
        where = among(self._dialect, e.source, entity_ids) & among(self._dialect, e.target, entity_ids)
        query = self._select_edges(where).order_by(e.source, e.relation, e.target, e.edge_id).limit(MAX_EDGES + 1)
        found = [edge_of(row) for row in await self._connection.execute(query)]
        return found[:MAX_EDGES], len(found) > MAX_EDGES

    async def edges_of(self, entity_ids: Sequence[str], *, limit: int) -> dict[str, list[v1.GraphEdge]]:
        """Edges that begin or end at each entity, so many of each at most, ordered as `edges_between`."""
        e, dialect = edges.c, self._dialect
        columns = (e.body, e.valid_from, e.valid_to, e.recorded_at, e.source, e.relation, e.target, e.edge_id)
        begins = sa.select(e.source.label("at"), *columns).where(among(dialect, e.source, entity_ids), self._seen())
        ends = sa.select(e.target.label("at"), *columns).where(
            among(dialect, e.target, entity_ids), e.source != e.target, self._seen()
        )
        of = sa.union_all(begins, ends).subquery().c
        order = (of.source, of.relation, of.target, of.edge_id)
        place = sa.func.row_number().over(partition_by=of.at, order_by=order).label("place")
        ranked = sa.select(of.at, of.body, of.valid_from, of.valid_to, of.recorded_at, place).subquery()
        query = sa.select(ranked).where(ranked.c.place <= limit).order_by(ranked.c.at, ranked.c.place)
        found: dict[str, list[v1.GraphEdge]] = {entity_id: [] for entity_id in entity_ids}
        for row in await self._connection.execute(query) if entity_ids else ():
            found[row.at].append(edge_of(row))
        return found

    async def around(self, starts: Sequence[str], *, max_hops: int, limit: int) -> tuple[list[Reached], bool]:
        """Starts, then the entities around them by hops and identifier, and whether there are more than the limit."""
        reached = [Reached(start, 0, "") for start in starts[:limit]]
        if len(starts) > limit:
            return reached, True
        frontier = list(starts)
        for hops in range(1, max_hops + 1):
            left = limit - len(reached)
            found = await self._neighbours(frontier, visited=[one.entity_id for one in reached], limit=left + 1)
            reached += [Reached(entity_id, hops, via) for entity_id, via in found[:left]]
            if len(found) > left:
                return reached, True
            frontier = [entity_id for entity_id, _via in found]
            if not frontier:
                break
        return reached, False

    async def paths(
        self, source: str, target: str, *, max_hops: int, limit: int
    ) -> tuple[list[tuple[Step, ...]], bool]:
        """Paths that visit no entity twice, shortest first, and whether there may be more.

        Both ends are walked towards each other: after n hops in all, every path of n edges is loaded.
        """
        if source == target:
            return [()], False
        found: list[tuple[Step, ...]] = []
        steps: set[Step] = set()
        ahead, behind = _Side({source}), _Side({target})
        for length in range(1, max_hops + 1):
            if ahead.frontier and behind.frontier:  # else one side's whole surroundings are loaded
                side, back = (ahead, False) if len(ahead.frontier) <= len(behind.frontier) else (behind, True)
                loaded = await self._steps(side.frontier, back=back, exempt=(source, target))
                if len(steps) + len(loaded) > MAX_EDGES:
                    return found, True
                steps |= loaded
                side.go_on((step.origin if back else step.neighbour) for step in loaded)
            wanted = limit + 1 - len(found)
            more, complete = await asyncio.to_thread(_some_paths, steps, source, target, length, wanted)
            found += more
            if not complete or len(found) > limit:
                return found[:limit], True
        return found, False

    async def named(self, text: str) -> list[tuple[str, float]]:
        """Entities that a text names, best first, with scores above 0, at most 1; see `graph_words.rank`."""
        asked = words_of(text)
        w, mine = entity_words.c, entity_words.c.bank == self._bank
        if not asked:
            return []
        counts = sa.select(w.word, sa.func.count()).where(mine, w.word.in_(asked)).group_by(w.word)
        frequencies = {row[0]: row[1] for row in await self._connection.execute(counts)}
        candidates: dict[str, None] = {}
        for word in sorted(frequencies, key=lambda one: (frequencies[one], one)):
            query = sa.select(w.entity_id).where(mine, w.word == word).order_by(w.entity_id).limit(MAX_CANDIDATES)
            candidates |= dict.fromkeys((await self._connection.execute(query)).scalars())
            if len(candidates) >= MAX_CANDIDATES:
                break
        total = sa.select(sa.func.count()).where(entities.c.bank == self._bank)
        weights = weights_of(frequencies, (await self._connection.execute(total)).scalar_one())
        found = await self.entities(list(candidates), stored=True)
        types = set(self._scope.entity_types)
        names = {one.entity_id: names_of(one) for one in found.values() if not types or one.type in types}
        return (await asyncio.to_thread(rank, names, asked=asked, weights=weights))[:MAX_STARTS]

    def _stored(self) -> sa.ColumnElement[bool]:
        moment = self._scope.recorded_as_of
        return sa.true() if moment is None else entities.c.created_at <= moment

    def _seen(self) -> sa.ColumnElement[bool]:
        """Whether the scope shows a row of `edges`."""
        e, scope = edges.c, self._scope
        seen = (e.bank == self._bank) & (e.valid_from <= scope.as_of) & (e.valid_to > scope.as_of)
        if scope.recorded_as_of is None:
            seen &= e.superseded_at == FOREVER
        else:
            seen &= (e.recorded_at <= scope.recorded_as_of) & (e.superseded_at > scope.recorded_as_of)
        return seen & e.relation.in_(scope.relations) if scope.relations else seen

    def _steps_from(self, origins: Collection[str], direction: Direction) -> sa.Subquery:
        """Origin, edge and neighbour of every edge that leads away from some entities."""
        e, names, parts = edges.c, sorted(origins), []
        for way, here, there in (("out", e.source, e.target), ("in", e.target, e.source)):
            if direction in {way, "both"}:
                parts.append(
                    sa.select(here.label("origin"), e.edge_id.label("edge_id"), there.label("neighbour")).where(
                        among(self._dialect, here, names), self._seen()
                    )
                )
        return sa.union_all(*parts).subquery() if len(parts) > 1 else parts[0].subquery()

    def _of_type(self, column: sa.ColumnElement[str], exempt: Sequence[str] = ()) -> sa.ColumnElement[bool]:
        if not self._scope.entity_types:
            return sa.true()
        c = entities.c
        fits = sa.exists().where(c.bank == self._bank, c.entity_id == column, c.type.in_(self._scope.entity_types))
        return fits | column.in_(exempt) if exempt else fits

    async def _neighbours(
        self, frontier: Sequence[str], *, visited: Sequence[str], limit: int
    ) -> list[tuple[str, str]]:
        """Entities one step away that were not visited, by identifier, each with the first edge to it."""
        step = self._steps_from(frontier, self._scope.direction).c
        where = outside(self._dialect, step.neighbour, visited) & self._of_type(step.neighbour)
        query = sa.select(step.neighbour, sa.func.min(step.edge_id)).where(where).group_by(step.neighbour)
        rows = await self._connection.execute(query.order_by(step.neighbour).limit(limit))
        return [(row[0], row[1]) for row in rows]

    async def _steps(self, frontier: Collection[str], *, back: bool, exempt: Sequence[str]) -> set[Step]:
        """Steps to or from some entities, not many more than `MAX_EDGES`."""
        direction = self._scope.direction
        step = self._steps_from(frontier, _OPPOSITE[direction] if back else direction).c
        query = sa.select(step.origin, step.edge_id, step.neighbour).where(self._of_type(step.neighbour, exempt))
        rows = await self._connection.execute(query.limit(MAX_EDGES + 1))
        return {Step(row[2], row[1], row[0]) if back else Step(row[0], row[1], row[2]) for row in rows}

    def _select_edges(self, where: sa.ColumnElement[bool]) -> "sa.Select[Any]":
        e = edges.c
        return sa.select(e.body, e.valid_from, e.valid_to, e.recorded_at).where(where, self._seen())


@dataclass(kw_only=False)
class _Side:
    """One side of a search from both ends."""

    frontier: set[str]
    visited: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.visited = set(self.frontier)

    def go_on(self, reached: Iterable[str]) -> None:
        self.frontier = set(reached) - self.visited
        self.visited |= self.frontier


def edge_of(row: Any) -> v1.GraphEdge:  # noqa: ANN401 (a row)
    """A row as a message: the statement, with the validity that it has now."""
    edge = v1.GraphEdge.FromString(row.body)
    edge.ClearField("valid_from")
    edge.ClearField("valid_to")
    if row.valid_from != BEGINNING:
        edge.valid_from.FromMicroseconds(row.valid_from)
    if row.valid_to != FOREVER:
        edge.valid_to.FromMicroseconds(row.valid_to)
    edge.recorded_at.FromMicroseconds(row.recorded_at)
    return edge


def _some_paths(
    steps: Iterable[Step], source: str, target: str, length: int, wanted: int
) -> tuple[list[tuple[Step, ...]], bool]:
    """At most so many paths of a length, and whether the search came to its end."""
    found: list[tuple[Step, ...]] = []
    try:
        for path in paths_of_length(steps, source, target, length=length):
            found.append(path)
            if len(found) == wanted:
                break
    except TangledError:
        return found, False
    return found, True

"""Entities and edges: put in one transaction, erased for good."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory import requests
from services.memory.bank import Bank
from services.memory.database import Database, next_revision
from services.memory.graph_plan import FOREVER, Edge, Plan, make_plan, slot_of
from services.memory.graph_words import words_of
from services.memory.lists import among, matching
from services.memory.tables import edges, entities, entity_words
from services.runtime.moments import now
from stack_client.errors import InvalidArgumentError

_EDGE = ("number", "edge_id", "source", "relation", "target", "valid_from", "valid_to", "recorded_at", "body")


class GraphStore:
    """The graphs of all graph banks.

    Args:
        database: Where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, bank: Bank, request: v1.PutGraphRequest, *, tenant: str) -> v1.PutGraphResponse:
        """Add or change entities and edges, all or none; see `graph_plan` for what edges end others.

        Args:
            bank: The bank.
            request: Checked, without `recorded_at`.
            tenant: Whose request it is.

        Raises:
            InvalidArgumentError: If an edge names an unknown entity, or the request's id was used before.
            NotFoundError: If the bank is gone.
        """
        bodies = await asyncio.to_thread(_bodies, request.entities)
        async with self._database.write() as connection:
            await next_revision(connection, bank.number)
            before = await requests.recall(connection, request, tenant=tenant, answer=v1.PutGraphResponse)
            if before is not None:
                return before
            moment = now()
            written = await self._put_entities(connection, bank, bodies, moment)
            await self._check_ends(connection, bank, request.edges, bodies)
            plan = await self._put_edges(connection, bank, request.edges, moment)
            answer = v1.PutGraphResponse(
                entities_written=written,
                edges_written=len(plan.said),
                edge_ids=plan.edge_ids,
                closed_edge_ids=list(dict.fromkeys(plan.closed)),
            )
            await requests.remember(connection, request, tenant=tenant, answer=answer, bank=bank.number)
        return answer

    async def delete(self, bank: Bank, *, entity_ids: Sequence[str], edge_ids: Sequence[str]) -> tuple[int, int]:
        """Erase entities with all their edges, and edges; answers how many of both there were.

        Raises:
            NotFoundError: If the bank is gone.
        """
        e, dialect = edges.c, self._database.dialect
        touched = among(dialect, e.source, entity_ids) | among(dialect, e.target, entity_ids)
        goes = (e.bank == bank.number) & (touched | among(dialect, e.edge_id, edge_ids))
        async with self._database.write() as connection:
            await next_revision(connection, bank.number)
            count = sa.select(sa.func.count(sa.distinct(e.edge_id))).where(goes)
            gone = (await connection.execute(count)).scalar_one()
            await connection.execute(sa.delete(edges).where(goes))
            for table in (entity_words, entities):
                where = (table.c.bank == bank.number) & among(dialect, table.c.entity_id, entity_ids)
                result = await connection.execute(sa.delete(table).where(where))
        return result.rowcount, gone

    async def _put_entities(
        self, connection: AsyncConnection, bank: Bank, bodies: dict[str, tuple[v1.GraphEntity, bytes]], moment: int
    ) -> int:
        """Store those that are new or changed; answers how many."""
        c, dialect = entities.c, self._database.dialect
        mine = c.bank == bank.number
        query = sa.select(c.entity_id, c.body).where(mine, among(dialect, c.entity_id, list(bodies)))
        known = {row.entity_id: row.body for row in await connection.execute(query)} if bodies else {}
        changed = [name for name, (_entity, body) in bodies.items() if known.get(name) != body]
        old, new = [name for name in changed if name in known], [name for name in changed if name not in known]
        if old:
            w = entity_words.c
            await connection.execute(
                sa.delete(entity_words).where(w.bank == bank.number, among(dialect, w.entity_id, old))
            )
            # Parameters of an update must not be called like its columns.
            columns: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in ("type", "recorded_at", "body")}
            change = sa.update(entities).where(mine, c.entity_id == sa.bindparam("new_entity_id"))
            values = [
                {f"new_{key}": value for key, value in _entity_row(*bodies[name], moment).items()} for name in old
            ]
            await connection.execute(change.values(**columns), values)
        if new:
            rows = [{"bank": bank.number, "created_at": moment, **_entity_row(*bodies[name], moment)} for name in new]
            await connection.execute(sa.insert(entities), rows)
        words = await asyncio.to_thread(_word_rows, bank.number, [bodies[name][0] for name in changed])
        if words:
            await connection.execute(sa.insert(entity_words), words)
        return len(changed)

    async def _check_ends(
        self,
        connection: AsyncConnection,
        bank: Bank,
        statements: Sequence[v1.GraphEdge],
        given: Iterable[str],
    ) -> None:
        ends = {end for edge in statements for end in (edge.source_id, edge.target_id)}
        ends.difference_update(given)
        if not ends:
            return
        c = entities.c
        wanted = among(self._database.dialect, c.entity_id, sorted(ends))
        known = await connection.execute(sa.select(c.entity_id).where(c.bank == bank.number, wanted))
        ends.difference_update(known.scalars())
        for index, edge in enumerate(statements):
            for name, end in (("source_id", edge.source_id), ("target_id", edge.target_id)):
                if end in ends:
                    field = f"edges[{index}].{name}"
                    message = f"{field}: the graph has no entity {end!r}; put it in the same request or before"
                    raise InvalidArgumentError(message, field=field)

    async def _put_edges(
        self, connection: AsyncConnection, bank: Bank, statements: Sequence[v1.GraphEdge], moment: int
    ) -> Plan:
        if not statements:
            return Plan()
        single_valued = frozenset(bank.params.graph.single_valued_relations)
        stored = await self._stored(connection, bank, statements, single_valued)
        plan = await asyncio.to_thread(make_plan, statements, stored=stored, single_valued=single_valued, moment=moment)
        moment = max(moment, plan.latest + 1)  # the clock may have been set back
        if plan.superseded:
            old = among(self._database.dialect, edges.c.number, plan.superseded)
            await connection.execute(sa.update(edges).where(old).values(superseded_at=moment))
        if plan.added:
            rows = [_row(bank.number, edge, moment) for edge in plan.added]
            await connection.execute(sa.insert(edges), rows)
        return plan

    async def _stored(
        self,
        connection: AsyncConnection,
        bank: Bank,
        statements: Sequence[v1.GraphEdge],
        single_valued: frozenset[str],
    ) -> list[Edge]:
        """What is known of all edges that the statements may be about, or may end."""
        e, dialect = edges.c, self._database.dialect
        named = {edge.edge_id for edge in statements if edge.edge_id}
        slots = {slot_of(edge) for edge in statements if edge.relation in single_valued}
        triples = {
            (edge.source_id, edge.relation, edge.target_id)
            for edge in statements
            if not edge.edge_id and edge.relation not in single_valued
        }
        known = sa.select(*(e[name] for name in _EDGE)).where(e.bank == bank.number, e.superseded_at == FOREVER)
        queries = []
        if named:
            queries.append(known.where(among(dialect, e.edge_id, sorted(named))))
        if slots:
            queries.append(matching(dialect, known, (e.source, e.relation), sorted(slots)))
        if triples:
            queries.append(matching(dialect, known, (e.source, e.relation, e.target), sorted(triples)))
        found: dict[str, Edge] = {}
        for query in queries:
            found |= {row.edge_id: Edge(**row._mapping) for row in await connection.execute(query)}  # noqa: SLF001
        return [found[edge_id] for edge_id in sorted(found, key=lambda one: found[one].number)]


async def delete_graph(connection: AsyncConnection, bank: Bank) -> None:
    """Delete everything of a bank that this module keeps."""
    for table in (edges, entity_words, entities):
        await connection.execute(sa.delete(table).where(table.c.bank == bank.number))


def names_of(entity: v1.GraphEntity) -> list[str]:
    """What an entity is called: name and aliases, or its identifier where it has none."""
    return [entity.name or entity.entity_id, *entity.aliases]


def _bodies(given: Sequence[v1.GraphEntity]) -> dict[str, tuple[v1.GraphEntity, bytes]]:
    return {entity.entity_id: (entity, entity.SerializeToString(deterministic=True)) for entity in given}


def _entity_row(entity: v1.GraphEntity, body: bytes, moment: int) -> dict[str, Any]:
    return {"entity_id": entity.entity_id, "type": entity.type, "recorded_at": moment, "body": body}


def _word_rows(bank: int, changed: Sequence[v1.GraphEntity]) -> list[dict[str, Any]]:
    return [
        {"bank": bank, "word": word, "entity_id": entity.entity_id}
        for entity in changed
        for word in sorted({word for name in names_of(entity) for word in words_of(name)})
    ]


def _row(bank: int, edge: Edge, moment: int) -> dict[str, Any]:
    row = {name: getattr(edge, name) for name in _EDGE if name not in {"number", "recorded_at"}}
    return {"bank": bank, **row, "recorded_at": moment, "superseded_at": FOREVER}

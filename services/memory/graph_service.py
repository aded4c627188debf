"""Graph calls of the memory service: put, delete, neighbours, paths, subgraph."""

import asyncio
from typing import Any

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.graph import GraphStore
from services.memory.graph_checks import (
    MAX_ITEMS,
    MAX_STARTS,
    check_id,
    check_ids,
    check_number,
    check_put,
    check_text,
    scope_of,
)
from services.memory.graph_queries import GraphReader
from services.runtime.calls import current_tenant
from services.runtime.stream import RpcContext
from stack_client.errors import InvalidArgumentError

MAX_HOPS = 5
MAX_PATH = 8
MAX_ENTITIES = 5000
MAX_PATHS = 100


class GraphCalls:
    """Part of `MemoryBanksService`.

    Args:
        rest: What the other parts take.
        graph: Writes graphs.
        graph_reader: Reads them.
    """

    _banks: BankStore

    def __init__(
        self,
        *rest: Any,  # noqa: ANN401 (of the other parts)
        graph: GraphStore,
        graph_reader: GraphReader,
        **named: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*rest, **named)
        self._graph = graph
        self._graph_reader = graph_reader

    async def PutGraph(self, request: v1.PutGraphRequest, context: RpcContext) -> v1.PutGraphResponse:
        """Add or change entities and edges."""
        bank = await self._graph_bank(request.bank_id)
        await asyncio.to_thread(check_put, request)
        return await self._graph.put(bank, request, tenant=current_tenant())

    async def DeleteGraph(self, request: v1.DeleteGraphRequest, context: RpcContext) -> v1.DeleteGraphResponse:
        """Erase entities and edges."""
        bank = await self._graph_bank(request.bank_id)
        entity_ids = check_ids(request.entity_ids, field="entity_ids", most=MAX_ITEMS)
        edge_ids = check_ids(request.edge_ids, field="edge_ids", most=MAX_ITEMS)
        if not entity_ids and not edge_ids:
            raise InvalidArgumentError("give entity_ids or edge_ids", reason="MISSING_FIELD", field="entity_ids")
        entities, edges = await self._graph.delete(bank, entity_ids=entity_ids, edge_ids=edge_ids)
        return v1.DeleteGraphResponse(entities_deleted=entities, edges_deleted=edges)

    async def QueryNeighbours(
        self, request: v1.QueryNeighboursRequest, context: RpcContext
    ) -> v1.QueryNeighboursResponse:
        """Return entities around others."""
        bank, scope = await self._graph_bank(request.bank_id), scope_of(request.scope)
        starts = check_ids(request.entity_ids, field="entity_ids", most=MAX_STARTS)
        if not starts:
            raise InvalidArgumentError("entity_ids is empty", reason="MISSING_FIELD", field="entity_ids")
        hops, limit = _hops(request, default=1, least=1), _limit(request, default=100, most=MAX_ENTITIES)
        async with self._graph_reader.view(bank, scope) as view:
            await view.require(starts, fields=["entity_ids"] * len(starts))
            reached, truncated = await view.around(starts, max_hops=hops, limit=limit + len(starts))
            reached = reached[len(starts) :]
            entities = await view.entities([one.entity_id for one in reached])
            edges = await view.edges([one.via for one in reached])
        neighbours = [
            v1.GraphNeighbour(entity=entities[one.entity_id], hops=one.hops, via=edges[one.via]) for one in reached
        ]
        return v1.QueryNeighboursResponse(neighbours=neighbours, truncated=truncated)

    async def QueryPaths(self, request: v1.QueryPathsRequest, context: RpcContext) -> v1.QueryPathsResponse:
        """Return ways between two entities."""
        bank, scope = await self._graph_bank(request.bank_id), scope_of(request.scope)
        source, target = request.source_id, request.target_id
        check_id(source, field="source_id")
        check_id(target, field="target_id")
        hops, limit = _hops(request, default=4, least=1, most=MAX_PATH), _limit(request, default=10, most=MAX_PATHS)
        async with self._graph_reader.view(bank, scope) as view:
            await view.require([source, target], fields=["source_id", "target_id"])
            paths, truncated = await view.paths(source, target, max_hops=hops, limit=limit)
            entities = await view.entities(sorted({source, *(step.neighbour for path in paths for step in path)}))
            edges = await view.edges(sorted({step.edge_id for path in paths for step in path}))
        answers = [
            v1.GraphPath(
                entities=[entities[source], *(entities[step.neighbour] for step in path)],
                edges=[edges[step.edge_id] for step in path],
            )
            for path in paths
        ]
        return v1.QueryPathsResponse(paths=answers, truncated=truncated)

    async def QuerySubgraph(self, request: v1.QuerySubgraphRequest, context: RpcContext) -> v1.QuerySubgraphResponse:
        """Return a part of the graph."""
        bank, scope = await self._graph_bank(request.bank_id), scope_of(request.scope)
        starts = check_ids(request.entity_ids, field="entity_ids", most=MAX_STARTS)
        if bool(starts) == bool(check_text(request.text, field="text").strip()):
            message = "give entity_ids or text, one of them: where the part of the graph begins"
            raise InvalidArgumentError(message, field="entity_ids" if starts else "text")
        hops, limit = _hops(request, default=2, least=0), _limit(request, default=500, most=MAX_ENTITIES)
        async with self._graph_reader.view(bank, scope) as view:
            if starts:
                await view.require(starts, fields=["entity_ids"] * len(starts))
            else:
                starts = [entity_id for entity_id, _score in await view.named(request.text)]
            reached, truncated = await view.around(starts, max_hops=hops, limit=limit)
            ids = [one.entity_id for one in reached]
            entities = await view.entities(ids)
            edges, more_edges = await view.edges_between(ids)
        answer = [entities[entity_id] for entity_id in ids]
        return v1.QuerySubgraphResponse(entities=answer, edges=edges, truncated=truncated or more_edges)

    async def _graph_bank(self, identifier: str) -> Bank:
        return await self._banks.require(identifier, "graph", tenant=current_tenant())


def _hops(request: Any, *, default: int, least: int, most: int = MAX_HOPS) -> int:  # noqa: ANN401 (of several types)
    value = request.max_hops if request.HasField("max_hops") else None
    return check_number(value, default=default, least=least, most=most, field="max_hops")


def _limit(request: Any, *, default: int, most: int) -> int:  # noqa: ANN401
    value = request.limit if request.HasField("limit") else None
    return check_number(value, default=default, least=1, most=most, field="limit")

"""Part of `client.memory`: entities and the edges between them."""

from collections.abc import Sequence
from typing import Any

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, unary


class GraphCalls:
    """Calls about graph banks."""

    _stub: Any

    async def put_graph(
        self,
        bank: str,
        *,
        entities: Sequence[v1.GraphEntity] = (),
        edges: Sequence[v1.GraphEdge] = (),
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.PutGraphResponse:
        """Store entities and edges in one transaction.

        Raises:
            StackError: If the call fails.
        """
        request = v1.PutGraphRequest(bank_id=bank, entities=entities, edges=edges)
        response: v1.PutGraphResponse = await unary(self._stub.PutGraph(request, timeout=timeout))
        return response

    async def neighbours(
        self,
        bank: str,
        *entity_ids: str,
        max_hops: int = 1,
        scope: v1.GraphScope | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> list[v1.GraphNeighbour]:
        """Entities around others, nearest first.

        Raises:
            StackError: If the call fails.
        """
        request = v1.QueryNeighboursRequest(bank_id=bank, entity_ids=entity_ids, max_hops=max_hops, scope=scope)
        response: v1.QueryNeighboursResponse = await unary(self._stub.QueryNeighbours(request, timeout=timeout))
        return list(response.neighbours)

    async def paths(
        self,
        bank: str,
        source_id: str,
        target_id: str,
        *,
        max_hops: int = 4,
        scope: v1.GraphScope | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> list[v1.GraphPath]:
        """Ways from one entity to another, shortest first.

        Raises:
            StackError: If the call fails.
        """
        request = v1.QueryPathsRequest(
            bank_id=bank, source_id=source_id, target_id=target_id, max_hops=max_hops, scope=scope
        )
        response: v1.QueryPathsResponse = await unary(self._stub.QueryPaths(request, timeout=timeout))
        return list(response.paths)

    async def subgraph(
        self,
        bank: str,
        *entity_ids: str,
        text: str = "",
        max_hops: int = 2,
        scope: v1.GraphScope | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.QuerySubgraphResponse:
        """The part of a graph around entities, or around those whose names hold the words of a text.

        Raises:
            StackError: If the call fails.
        """
        request = v1.QuerySubgraphRequest(
            bank_id=bank, entity_ids=entity_ids, text=text, max_hops=max_hops, scope=scope
        )
        response: v1.QuerySubgraphResponse = await unary(self._stub.QuerySubgraph(request, timeout=timeout))
        return response

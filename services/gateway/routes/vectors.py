"""Vector DBs and their chunks."""

from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.request import JsonReply, Reply, Request
from services.gateway.routing import Route


def routes(edge: Edge) -> list[Route]:
    """The rows."""

    def found(response: Any, request: Request) -> Reply:  # noqa: ANN401
        written = edge.encode(response)
        if "x-ogx-client-version" in request.headers:  # it refuses a chunk whose vector is no list
            for chunk in written["chunks"]:
                chunk["embedding"] = chunk["embedding"] or []
        return JsonReply(value=written)

    shared: dict[str, Any] = {"api": "vector_dbs"}
    return [
        Route(
            method="GET",
            path="/vector-dbs",
            handler=edge.listing("VectorDBsService.ListVectorDBs"),
            summary="List vector DBs",
            response=v1.ListVectorDBsResponse,
            **shared,
        ),
        Route(
            method="GET",
            path="/vector-dbs/{vector_db_id:path}",
            handler=edge.unary("VectorDBsService.GetVectorDB", edge.member("vector_db")),
            summary="Show a vector DB",
            response=v1.VectorDB,
            **shared,
        ),
        Route(
            method="POST",
            path="/vector-dbs",
            handler=edge.unary("VectorDBsService.RegisterVectorDB", edge.member("vector_db")),
            summary="Register a vector DB",
            scope="memory",
            request=v1.RegisterVectorDBRequest,
            response=v1.VectorDB,
            **shared,
        ),
        Route(
            method="DELETE",
            path="/vector-dbs/{vector_db_id:path}",
            handler=edge.unary("VectorDBsService.UnregisterVectorDB", edge.nothing),
            summary="Unregister a vector DB with all its chunks",
            scope="memory",
            **shared,
        ),
        Route(
            method="POST",
            path="/vector-io/insert",
            handler=edge.unary("VectorIOService.InsertChunks", edge.nothing, needs=("vector_db_id",)),
            api="vector_io",
            summary="Store chunks",
            scope="memory",
            request=v1.InsertChunksRequest,
        ),
        Route(
            method="POST",
            path="/vector-io/query",
            handler=edge.unary("VectorIOService.QueryChunks", found, needs=("vector_db_id",)),
            api="vector_io",
            summary="Find chunks",
            scope="memory",
            request=v1.QueryChunksRequest,
            response=v1.QueryChunksResponse,
        ),
    ]

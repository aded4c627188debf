"""What this is and where things are: `/`, `/openapi.json`, `/livez`, `/readyz`."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.gateway.edge import Edge
from services.gateway.openapi import document
from services.gateway.providers import Providers
from services.gateway.request import JsonReply, Reply, Request
from services.gateway.routing import Route
from stack_client.version import version


def routes(edge: Edge, others: Sequence[Route]) -> list[Route]:
    """The rows.

    Args:
        edge: Channels and codec.
        others: The rest of the table.
    """
    table: list[Route] = []
    made: list[Any] = []
    providers = Providers(edge)

    async def root(_request: Request) -> Reply:
        return JsonReply(value={"name": "Llama Stack mesh", "version": version(), **_PLACES})

    async def openapi(_request: Request) -> Reply:
        if not made:
            # Numbers and names are checked once, so that every answer is the same.
            made.append(orjson.loads(orjson.dumps(document(served([*others, *table], edge), edge.codec))))
        return JsonReply(value=made[0])

    async def alive(_request: Request) -> Reply:
        return JsonReply(value={"status": "OK"})

    async def ready(request: Request) -> Reply:
        troubled = {name: one for name, one in (await providers.health(request)).items() if one}
        return JsonReply(value={"status": "Error" if troubled else "OK", "waiting": troubled}, status=_ready(troubled))

    for path, handler, summary in (
        ("/", root, "What this is"),
        ("/openapi.json", openapi, "This document"),
        ("/livez", alive, "Whether the gateway runs"),
        ("/readyz", ready, "Whether every service is ready"),
    ):
        row = Route(
            method="GET",
            path=path,
            handler=handler,
            api="inspect",
            summary=summary,
            scope="",
            mounts=("",),
            response={"type": "object"},
        )
        table.append(row)
    return table


_HOSTS = {
    "post_training": "post_training",
    "synthetic_data_generation": "post_training",
    "reward_scoring": "post_training",
    "eval": "evaluation",
    "scoring": "evaluation",
    "datasets": "evaluation",
    "telemetry": "telemetry",
    "batches": "gateway",
}
"""The service of the mesh behind an API that not every stack has."""


def served(table: Sequence[Route], edge: Edge) -> list[Route]:
    """The routes that this stack serves; those of services that it lacks answer 501 and are left out."""
    return [route for route in table if route.api not in _HOSTS or edge.upstream.has(_HOSTS[route.api])]


def _ready(troubled: Mapping[str, str]) -> int:
    return 503 if troubled else 200


_PLACES = {
    "openai": "/v1 (chat/completions, embeddings, responses, conversations, files, vector_stores, batches and more)",
    "llama_stack": "/v1, /v1alpha, /v1beta",
    "openapi": "/openapi.json",
    "routes": "/v1/inspect/routes",
    "providers": "/v1/providers",
    "health": "/v1/health",
    "grpc": "every route is a call of a gRPC service; `stack status` lists their addresses",
}

"""The providers of a stack in the words of Llama Stack, whose clients choose by `provider_type`."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.request import Request
from services.gateway.upstream import Rpc
from stack_client.errors import StackError

PROBE_SECONDS = 3.0
REFERENCE = "inline::meta-reference"
"""What Llama Stack called its own implementations, for which scripts look."""
_TYPES: Mapping[str, Mapping[str, str]] = {
    "inference": {"torch": REFERENCE, "scripted": "inline::scripted", "openai": "remote::vllm"},
    "safety": {
        "llama-guard": "inline::llama-guard",
        "prompt-guard": "inline::prompt-guard",
        "code-scanner": "inline::code-scanner",
        "embedded": "inline::embedded-guard",
        "rules": "inline::rules",
        "pii": "inline::pii",
        "moderation-api": "remote::moderation-api",
    },
    "vector_io": {"auto": "inline::faiss", "qdrant": "remote::qdrant", "pgvector": "remote::pgvector"},
    "tool_runtime": {
        "recorded": "inline::recorded-search",
        "brave-search": "remote::brave-search",
        "bing-search": "remote::bing-search",
        "tavily-search": "remote::tavily-search",
        "searxng": "remote::searxng",
        "wolfram-alpha": "remote::wolfram-alpha",
        "rag-runtime": "inline::rag-runtime",
        "model-context-protocol": "remote::model-context-protocol",
        "code-interpreter": "inline::code-interpreter",
        "agent-memory": "inline::agent-memory",
        "openapi": "remote::openapi",
        "python": "inline::python",
    },
}
"""Provider type by API and provider id."""
_SINGLE = {
    "agents": ("agents", "meta-reference", REFERENCE),
    "files": ("memory", "localfs", "inline::localfs"),
    "batches": ("gateway", "reference", "inline::reference"),
    "telemetry": ("telemetry", "meta-reference", REFERENCE),
    "post_training": ("post_training", "torch", "inline::torchtune"),
    "eval": ("evaluation", "meta-reference", REFERENCE),
    "scoring": ("evaluation", "basic", "inline::basic"),
    "datasetio": ("evaluation", "localfs", "inline::localfs"),
}
"""APIs with one provider: the service of the mesh, the provider's id and type."""
_HOST = {"inference": "inference", "safety": "safety", "vector_io": "memory", "tool_runtime": "tools"}
_MODELS = Rpc("ModelsService.ListModels")
_SHIELDS = Rpc("ShieldsService.ListShields")
_GROUPS = Rpc("ToolGroupsService.ListToolGroups")
_BANKS = Rpc("MemoryBanksService.ListMemoryBanks")
_SAME = {"models": "inference", "shields": "safety", "tool_groups": "tool_runtime", "vector_dbs": "vector_io"}
"""APIs that register what others use."""


def provider_types(api: str) -> Sequence[str]:
    """Types of the providers behind an API, for the list of routes."""
    api = _SAME.get(api, api)
    if api in _SINGLE:
        return (_SINGLE[api][2],)
    return tuple(dict.fromkeys(_TYPES.get(api, {}).values()))


class Providers:
    """What stands behind each API, as far as the services tell.

    Args:
        edge: Channels and codec.
    """

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def health(self, request: Request) -> Mapping[str, str]:
        """What ails each service of the mesh, empty where nothing does."""
        names = sorted(self._edge.upstream.services)
        found = await asyncio.gather(*(self._probe(name, request) for name in names))
        return dict(zip(names, found, strict=True))

    async def listed(self, request: Request) -> list[dict[str, Any]]:
        """Every provider with its health."""
        states = await self.health(request)
        used = {
            "inference": await self._ids(_MODELS, v1.ListModelsRequest(), request),
            "safety": await self._ids(_SHIELDS, v1.ListShieldsRequest(), request),
            "tool_runtime": await self._ids(_GROUPS, v1.ListToolGroupsRequest(), request),
            "vector_io": ["auto", *await self._ids(_BANKS, v1.ListMemoryBanksRequest(), request)],
        }
        found = []
        for api, ids in used.items():
            if self._edge.upstream.has(_HOST[api]):
                for one in dict.fromkeys(ids):
                    kind = _TYPES[api].get(one, f"inline::{one}")
                    found.append(_info(api, one, kind, states.get(_HOST[api], "")))
        for api, (service, one, kind) in _SINGLE.items():
            if self._edge.upstream.has(service):
                found.append(_info(api, one, kind, states.get(service, "")))
        return found

    async def _ids(self, rpc: Rpc, message: Any, request: Request) -> list[str]:  # noqa: ANN401 - by the Rpc
        """Ids of the providers in use; none where the service does not answer, for its health says so."""
        if not self._edge.upstream.has(rpc.host):
            return []
        try:
            entries = await self._edge.every(rpc, message, request=request)
        except StackError:
            return []
        return sorted({entry.provider_id for entry in entries if entry.provider_id})

    async def _probe(self, name: str, request: Request) -> str:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                status = await self._edge.upstream.status(name, request=request)
        except TimeoutError:
            return f"did not answer within {PROBE_SECONDS:g} s"
        except StackError as error:
            return error.message.partition(":")[0]
        if status.state == v1.SERVICE_STATE_READY:
            return ""
        return status.waiting_for or "not ready"


def _info(api: str, provider_id: str, provider_type: str, ailing: str) -> dict[str, Any]:
    health = {"status": "Error", "message": ailing} if ailing else {"status": "OK", "message": None}
    return {"api": api, "provider_id": provider_id, "provider_type": provider_type, "config": {}, "health": health}

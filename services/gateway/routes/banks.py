"""Memory banks of all kinds: at /v1 as the client of 0.1.0 calls them, at /alpha as that of 0.0.63."""

from collections.abc import Callable
from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.request import Handler, JsonReply, Reply, Request
from services.gateway.routing import Route
from services.gateway.upstream import Rpc
from stack_client.errors import NotFoundError

LIST, GET = Rpc("MemoryBanksService.ListMemoryBanks"), Rpc("MemoryBanksService.GetMemoryBank")
ALPHA_63 = ("/alpha",)
_ID = {"memory_bank_id": {"type": "string"}}


def routes(edge: Edge) -> list[Route]:
    """The rows."""
    register = edge.unary("MemoryBanksService.RegisterMemoryBank", _one(edge))
    rows: list[tuple[str, str, Handler, str, dict[str, Any]]] = [
        ("GET", "/memory-banks", _listed(edge, bare=False), "List memory banks",
         {"response": v1.ListMemoryBanksResponse}),
        ("GET", "/memory-banks/{memory_bank_id:path}", _shown(edge, null=False), "Show a memory bank", {}),
        ("POST", "/memory-banks", register, "Register a memory bank", {"request": v1.RegisterMemoryBankRequest}),
        ("DELETE", "/memory-banks/{memory_bank_id:path}", _call(edge, "UnregisterMemoryBank"), "Unregister a bank", {}),
        ("POST", "/memory/insert", _call(edge, "InsertDocuments"), "Store documents",
         {"request": v1.InsertDocumentsRequest}),
        ("POST", "/memory/query", _whole(edge, "QueryDocuments"), "Find chunks of documents",
         {"request": v1.QueryDocumentsRequest, "response": v1.QueryDocumentsResponse}),
        ("POST", "/memory/update", _whole(edge, "UpdateDocuments"), "Replace documents",
         {"request": v1.UpdateDocumentsRequest, "response": v1.UpdateDocumentsResponse}),
        ("POST", "/memory/documents/get", _whole(edge, "GetDocuments"), "Show documents",
         {"request": v1.GetDocumentsRequest, "response": v1.GetDocumentsResponse}),
        ("POST", "/memory/documents/delete", _whole(edge, "DeleteDocuments"), "Delete documents",
         {"request": v1.DeleteDocumentsRequest, "response": v1.DeleteDocumentsResponse}),
    ]  # fmt: skip
    newer = [_row(*row) for row in rows]
    old: list[tuple[str, str, Handler, str, dict[str, Any]]] = [
        ("GET", "/memory-banks/list", _listed(edge, bare=True), "List memory banks", {}),
        ("GET", "/memory-banks/get", _shown(edge, null=True), "Show a memory bank", {"query": _ID}),
        ("POST", "/memory-banks/register", register, "Register a memory bank",
         {"request": v1.RegisterMemoryBankRequest}),
        ("POST", "/memory-banks/unregister", _null(_call(edge, "UnregisterMemoryBank")), "Unregister a bank",
         {"request": v1.UnregisterMemoryBankRequest}),
        ("POST", "/memory/insert", _null(_call(edge, "InsertDocuments")), "Store documents",
         {"request": v1.InsertDocumentsRequest}),
        ("POST", "/memory/query", _whole(edge, "QueryDocuments"), "Find chunks of documents",
         {"request": v1.QueryDocumentsRequest, "response": v1.QueryDocumentsResponse}),
    ]  # fmt: skip
    return newer + [_row(*row, mounts=ALPHA_63) for row in old]


def _row(
    method: str, path: str, handler: Handler, summary: str, more: dict[str, Any], *, mounts: tuple[str, ...] = ("/v1",)
) -> Route:
    scope = "read" if method == "GET" else "memory"
    return Route(
        method=method, path=path, handler=handler, api="memory", summary=summary, scope=scope, mounts=mounts, **more
    )


def bank_json(edge: Edge, bank: v1.MemoryBank) -> dict[str, Any]:
    """A bank with its parameters beside its names, as clients read them, and below `params`, as they are sent."""
    written = dict(edge.encode(bank))
    params = written.get("params") or {}
    defaults = {"embedding_dimension": None} if bank.params.HasField("vector") else {}
    return {**defaults, **params, **written, "params": params}


def _one(edge: Edge) -> Callable[[Any, Request], Reply]:
    return lambda response, _request: JsonReply(value=bank_json(edge, response.memory_bank))


def _call(edge: Edge, method: str) -> Handler:
    return edge.unary(f"MemoryBanksService.{method}", edge.nothing)


def _whole(edge: Edge, method: str) -> Handler:
    return edge.unary(f"MemoryBanksService.{method}", edge.whole)


def _null(handler: Handler) -> Handler:
    """What answers nothing answers `null` to clients of 0.0.63."""

    async def done(request: Request) -> Reply:
        await handler(request)
        return JsonReply(value=None)

    return done


def _listed(edge: Edge, *, bare: bool) -> Handler:
    async def handler(request: Request) -> Reply:
        banks = await edge.every(LIST, v1.ListMemoryBanksRequest(), request=request)
        data = [bank_json(edge, bank) for bank in banks]
        return JsonReply(value=data if bare else {"data": data})

    return handler


def _shown(edge: Edge, *, null: bool) -> Handler:
    async def handler(request: Request) -> Reply:
        message = edge.read(GET, request)
        try:
            response = await edge.upstream.unary(GET, message, request=request)
        except NotFoundError:
            if null:
                return JsonReply(value=None)
            raise
        return JsonReply(value=bank_json(edge, response.memory_bank))

    return handler

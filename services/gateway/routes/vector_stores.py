"""OpenAI's vector stores: stores, the files in them, batches of files, and search."""

from typing import Any

from llamastack import v1
from services.gateway.edge import Edge, coerced
from services.gateway.request import Handler, JsonReply, Reply, Request
from services.gateway.routes.pages import page_query, paged_list
from services.gateway.routing import OPENAI, Route
from services.gateway.upstream import Rpc

SEARCH = Rpc("VectorStoresService.SearchVectorStore")
CONTENT = Rpc("VectorStoresService.ListVectorStoreFileContent")
STORES = Rpc("VectorStoresService.ListVectorStores")
FILES = Rpc("VectorStoresService.ListVectorStoreFiles")
BATCH_FILES = Rpc("VectorStoresService.ListVectorStoreFileBatchFiles")
MOST = 100
_STORE = "/vector_stores/{vector_store_id}"
_FILE = f"{_STORE}/files/{{file_id}}"
_BATCH = f"{_STORE}/file_batches/{{batch_id}}"
_CONTENT_QUERY = {
    "include_embeddings": {"type": "boolean", "default": False},
    "include_metadata": {"type": "boolean", "default": False},
    "limit": {"type": "integer"},
    "page": {"type": "string"},
}


def routes(edge: Edge) -> list[Route]:
    """The rows."""
    return [_row(*row) for row in (*_stores(edge), *_files(edge), *_batches(edge))]


def _row(method: str, path: str, handler: Handler, summary: str, more: dict[str, Any]) -> Route:
    scope = "read" if method == "GET" else "memory"
    return Route(
        method=method,
        path=path,
        handler=handler,
        api="vector_io",
        summary=summary,
        mounts=OPENAI,
        **{"scope": scope, **more},
    )


_Row = tuple[str, str, Handler, str, dict[str, Any]]


def _call(edge: Edge, method: str, answer: Any, *, path: dict[str, str] | None = None) -> Handler:  # noqa: ANN401
    return edge.unary(f"VectorStoresService.{method}", answer, strict=True, rename=path)


def _deleted(kind: str) -> Any:  # noqa: ANN401
    return lambda response, _request: JsonReply(value={"id": response.id, "object": kind, "deleted": True})


def _listed(edge: Edge, rpc: Rpc) -> Handler:
    async def handler(request: Request) -> Reply:
        edge.require(rpc)

        def write(one: Any) -> Any:  # noqa: ANN401
            return edge.encode(one) if rpc is STORES else _file_json(edge, one, request)

        return await paged_list(edge, rpc, request, write=write, default=20, most=MOST)

    return handler


def _file_json(edge: Edge, file: v1.VectorStoreFile, request: Request) -> dict[str, Any]:
    """A file of a store; OpenAI's clients know the strategy `static`, and `other` for all the rest."""
    written = dict(edge.encode(file))
    strategy = written["chunking_strategy"]
    if request.client_version is None and (strategy is None or strategy["type"] != "static"):
        written["chunking_strategy"] = {"type": "other"}
    return written


def _stores(edge: Edge) -> list[_Row]:
    one = {"response": v1.VectorStore}
    show = edge.member("vector_store")

    async def search(request: Request) -> Reply:
        edge.require(SEARCH)
        return await _search(edge, request)

    return [
        ("POST", "/vector_stores", _call(edge, "CreateVectorStore", show), "Make a store",
         {"request": v1.CreateVectorStoreRequest, **one}),
        ("GET", "/vector_stores", _listed(edge, STORES), "List stores", {"query": page_query(most=MOST, default=20)}),
        ("GET", _STORE, _call(edge, "GetVectorStore", show), "Show a store", one),
        ("POST", _STORE, _call(edge, "UpdateVectorStore", show), "Change a store",
         {"request": v1.UpdateVectorStoreRequest, **one}),
        ("DELETE", _STORE, _call(edge, "DeleteVectorStore", _deleted("vector_store.deleted")), "Delete a store", {}),
        ("POST", f"{_STORE}/search", search, "Find chunks",
         {"scope": "read", "request": v1.SearchVectorStoreRequest, "response": v1.SearchVectorStoreResponse}),
    ]  # fmt: skip


def _files(edge: Edge) -> list[_Row]:
    one = {"response": v1.VectorStoreFile}

    def show(response: Any, request: Request) -> Reply:  # noqa: ANN401
        return JsonReply(value=_file_json(edge, response.vector_store_file, request))

    gone = _deleted("vector_store.file.deleted")

    async def content(request: Request) -> Reply:
        edge.require(CONTENT)
        return await _content(edge, request)

    return [
        ("POST", f"{_STORE}/files", _call(edge, "CreateVectorStoreFile", show), "Attach a file",
         {"request": v1.CreateVectorStoreFileRequest, **one}),
        ("GET", f"{_STORE}/files", _listed(edge, FILES), "List the files of a store",
         {"query": page_query("filter", most=MOST, default=20)}),
        ("GET", _FILE, _call(edge, "GetVectorStoreFile", show), "Show a file of a store", one),
        ("POST", _FILE, _call(edge, "UpdateVectorStoreFile", show), "Change a file's attributes",
         {"request": v1.UpdateVectorStoreFileRequest, **one}),
        ("DELETE", _FILE, _call(edge, "DeleteVectorStoreFile", gone), "Detach a file", {}),
        ("GET", f"{_FILE}/content", content, "Show the chunks of a file", {"query": _CONTENT_QUERY}),
    ]  # fmt: skip


def _batches(edge: Edge) -> list[_Row]:
    one = {"response": v1.VectorStoreFileBatch}
    show = edge.member("vector_store_file_batch")
    return [
        ("POST", f"{_STORE}/file_batches", _call(edge, "CreateVectorStoreFileBatch", show), "Attach many files",
         {"request": v1.CreateVectorStoreFileBatchRequest, **one}),
        ("GET", _BATCH, _call(edge, "GetVectorStoreFileBatch", show), "Show a batch", one),
        ("POST", f"{_BATCH}/cancel", _call(edge, "CancelVectorStoreFileBatch", show), "Stop a batch", one),
        ("GET", f"{_BATCH}/files", _listed(edge, BATCH_FILES), "List the files of a batch",
         {"query": page_query("filter", most=MOST, default=20)}),
    ]  # fmt: skip


async def _search(edge: Edge, request: Request) -> Reply:
    values = dict(request.json())
    if isinstance(values.get("query"), str):  # with its commas: only queries of URLs are lists with commas
        values["query"] = [values["query"]]
    message = edge.fill(SEARCH, {**values, **request.params}, request, strict=True)
    response = await edge.upstream.unary(SEARCH, message, request=request)
    asked = list(response.search_query)
    written = {
        "object": "vector_store.search_results.page",
        # Clients of 0.2 read one string where all others read a list.
        "search_query": "\n".join(asked) if request.openai_mount else asked,
        "data": [edge.encode(one) for one in response.data],
        "has_more": response.has_more,
        "next_page": response.next_page if response.HasField("next_page") else None,
    }
    return JsonReply(value=written)


async def _content(edge: Edge, request: Request) -> Reply:
    query = request.query()
    names = {"limit": "page_size", "page": "page_token"}
    values = {names.get(name, name): value for name, value in query.items() if value != ""} | dict(request.params)
    message = edge.fill(CONTENT, coerced(values, CONTENT.request.DESCRIPTOR), request, strict=False)
    if "limit" in query:
        page = await edge.upstream.unary(CONTENT, message, request=request)
        chunks, token = list(page.data), page.next_page_token
    else:
        page, chunks, token = await _all_content(edge, message, request)
    data = [edge.encode(chunk) for chunk in chunks]
    written = edge.encode(page)
    return JsonReply(
        value={
            "object": "vector_store.file_content.page",
            "file_id": written["file_id"],
            "filename": written["filename"],
            "attributes": written["attributes"],
            "data": data,
            "content": data,
            "has_more": bool(token),
            "next_page": token or None,
        }
    )


async def _all_content(edge: Edge, message: Any, request: Request) -> tuple[Any, list[Any], str]:  # noqa: ANN401
    """All chunks of a file: clients of this list know no pages."""
    chunks: list[Any] = []
    message.page_size = 1000
    while True:
        page = await edge.upstream.unary(CONTENT, message, request=request)
        chunks += page.data
        if not page.next_page_token:
            return page, chunks, ""
        message.page_token = page.next_page_token

"""Batches: files of requests that run in the background."""

from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.request import Handler, JsonReply, Reply, Request
from services.gateway.routes.pages import page_query, paged_list
from services.gateway.routing import OPENAI, Route, Row, table
from services.gateway.upstream import Rpc

LIST = Rpc("BatchesService.ListBatches")


def routes(edge: Edge) -> list[Route]:
    """The rows."""

    def one(response: Any, _request: Request) -> Reply:  # noqa: ANN401
        return JsonReply(value=batch_json(edge, response.batch))

    async def listed(request: Request) -> Reply:
        def write(batch: v1.Batch) -> dict[str, Any]:
            return batch_json(edge, batch)

        return await paged_list(edge, LIST, request, write=write, default=20, most=100)

    def call(method: str) -> Handler:
        return edge.unary(f"BatchesService.{method}", one, strict=True, drop=("output_expires_after",))

    rows: list[Row] = [
        ("POST", "/batches", call("CreateBatch"), "Begin a batch",
         {"request": v1.CreateBatchRequest, "response": v1.Batch}),
        ("GET", "/batches", listed, "List batches", {"query": page_query(most=100, default=20)}),
        ("GET", "/batches/{batch_id}", call("GetBatch"), "Show a batch", {"response": v1.Batch}),
        ("POST", "/batches/{batch_id}/cancel", call("CancelBatch"), "Cancel a batch", {"response": v1.Batch}),
    ]  # fmt: skip
    return table(rows, api="batches", scope="batches", mounts=OPENAI)


def batch_json(edge: Edge, batch: v1.Batch) -> dict[str, Any]:
    """A batch as OpenAI's clients read it."""
    written = dict(edge.encode(batch))
    written.pop("last_sequence")
    usage = batch.usage
    written["usage"] = {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
    if not batch.errors.data:
        written["errors"] = None
    return written

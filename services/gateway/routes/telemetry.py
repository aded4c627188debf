"""Traces, spans and metrics of the mesh: routes of the telemetry service."""

from typing import Any

from llamastack import v1
from services.gateway.edge import Edge, page_bounds
from services.gateway.request import Handler, JsonReply, Reply, Request
from services.gateway.routing import Route
from services.gateway.upstream import Rpc

TRACES, SPANS = Rpc("TelemetryService.QueryTraces"), Rpc("TelemetryService.QuerySpans")
_TREE = "/telemetry/spans/{span_id}/tree"


def routes(edge: Edge) -> list[Route]:
    """The rows."""

    async def traces(request: Request) -> Reply:
        return await _found(edge, TRACES, request, most=100)

    async def spans(request: Request) -> Reply:
        return await _found(edge, SPANS, request, most=None)

    def call(method: str, answer: Any) -> Handler:  # noqa: ANN401
        return edge.unary(f"TelemetryService.{method}", answer)

    rows: list[tuple[str, str, Handler, str, dict[str, Any]]] = [
        ("POST", "/telemetry/events", call("LogEvent", edge.nothing), "Log an event", {"request": v1.LogEventRequest}),
        ("POST", "/telemetry/traces", traces, "Find traces", {"request": v1.QueryTracesRequest}),
        ("GET", "/telemetry/traces/{trace_id}", call("GetTrace", edge.member("trace")), "Show a trace",
         {"response": v1.Trace}),
        ("GET", "/telemetry/traces/{trace_id}/spans/{span_id}", call("GetSpan", edge.member("span")), "Show a span",
         {"response": v1.Span}),
        ("POST", _TREE, call("GetSpanTree", edge.whole), "Show a span with all below it",
         {"request": v1.GetSpanTreeRequest, "response": v1.GetSpanTreeResponse}),
        ("POST", "/telemetry/spans", spans, "Find spans", {"request": v1.QuerySpansRequest}),
        ("POST", "/telemetry/spans/export", call("SaveSpansToDataset", edge.nothing), "Write spans to a data set",
         {"request": v1.SaveSpansToDatasetRequest}),
        ("POST", "/telemetry/metrics/{metric_name}", call("QueryMetrics", edge.whole), "Find values of a metric",
         {"request": v1.QueryMetricsRequest, "response": v1.QueryMetricsResponse}),
    ]  # fmt: skip
    return [
        Route(
            method=method,
            path=path,
            handler=handler,
            api="telemetry",
            summary=summary,
            scope="inference" if path.endswith("/events") else "telemetry.read",
            **more,
        )
        for method, path, handler, summary, more in rows
    ]


async def _found(edge: Edge, rpc: Rpc, request: Request, *, most: int | None) -> Reply:
    """All that a query finds, up to its limit."""
    edge.require(rpc)
    body = dict(request.json())
    bounds = {"limit": body.pop("limit", None)}
    _, limit = page_bounds(bounds)
    message = edge.fill(rpc, body, request, strict=False)
    entries = await edge.every(rpc, message, request=request, most=limit or most)
    return JsonReply(value={"data": [edge.encode(one) for one in entries]})

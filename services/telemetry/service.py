"""The RPC edge of telemetry."""

from typing import Any, TypeAlias

import grpc

from llamastack import v1
from services.runtime.calls import current_tenant
from services.telemetry.events import rows_of
from services.telemetry.metric_queries import MetricQueries
from services.telemetry.queries import Queries
from services.telemetry.saving import Saver
from services.telemetry.writer import Writer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class TelemetryService(v1.TelemetryServiceServicer):
    """`TelemetryService`.

    Args:
        writer: Takes events.
        queries: Finds traces.
        metrics: Finds values.
        saver: Adds spans to datasets.
    """

    def __init__(self, *, writer: Writer, queries: Queries, metrics: MetricQueries, saver: Saver) -> None:
        self._writer = writer
        self._queries = queries
        self._metrics = metrics
        self._saver = saver

    async def LogEvent(self, request: v1.LogEventRequest, context: Context) -> v1.LogEventResponse:
        """Store an event."""
        await self._writer.write(rows_of(request, tenant=current_tenant()))
        return v1.LogEventResponse()

    async def QueryTraces(self, request: v1.QueryTracesRequest, context: Context) -> v1.QueryTracesResponse:
        """Find traces."""
        return await self._queries.traces(request, tenant=current_tenant())

    async def GetTrace(self, request: v1.GetTraceRequest, context: Context) -> v1.GetTraceResponse:
        """Answer a trace."""
        return v1.GetTraceResponse(trace=await self._queries.trace(request.trace_id, tenant=current_tenant()))

    async def GetSpan(self, request: v1.GetSpanRequest, context: Context) -> v1.GetSpanResponse:
        """Answer a span."""
        span = await self._queries.span(request.trace_id, request.span_id, tenant=current_tenant())
        return v1.GetSpanResponse(span=span)

    async def GetSpanTree(self, request: v1.GetSpanTreeRequest, context: Context) -> v1.GetSpanTreeResponse:
        """Answer a span with those below it."""
        return await self._queries.tree(request, tenant=current_tenant())

    async def QuerySpans(self, request: v1.QuerySpansRequest, context: Context) -> v1.QuerySpansResponse:
        """Find spans."""
        return await self._queries.spans(request, tenant=current_tenant())

    async def SaveSpansToDataset(
        self, request: v1.SaveSpansToDatasetRequest, context: Context
    ) -> v1.SaveSpansToDatasetResponse:
        """Add spans to a dataset."""
        return await self._saver.save(request, tenant=current_tenant())

    async def QueryMetrics(self, request: v1.QueryMetricsRequest, context: Context) -> v1.QueryMetricsResponse:
        """Answer the values of a metric."""
        return await self._metrics.query(request, tenant=current_tenant())

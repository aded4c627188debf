"""OpenTelemetry's collector: takes the spans and metrics that instrumented programs export."""

import asyncio
from typing import Any, TypeAlias

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.runtime.calls import current_tenant
from services.telemetry.otlp import Reader
from services.telemetry.writer import Writer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

NAMES = (
    "opentelemetry.proto.collector.trace.v1.TraceService",
    "opentelemetry.proto.collector.metrics.v1.MetricsService",
)
_REFUSED = "no ids of 16 and 8 bytes, or a time outside of 1970 to 2261"


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    """`TraceService` of OTLP.

    Args:
        writer: Takes the rows.
        keep_ns: How long they are kept.
    """

    def __init__(self, writer: Writer, *, keep_ns: int) -> None:
        self._writer = writer
        self._keep = keep_ns

    async def Export(self, request: Any, context: Context) -> Any:  # noqa: ANN401 - OTLP's messages
        """Store spans; says how many were none."""
        reader = Reader(tenant=current_tenant(), keep_ns=self._keep)
        await asyncio.to_thread(reader.spans, request)
        await self._writer.write(reader.batch)
        response = trace_service_pb2.ExportTraceServiceResponse()
        if reader.refused:
            response.partial_success.rejected_spans = reader.refused
            response.partial_success.error_message = _REFUSED
        return response


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    """`MetricsService` of OTLP.

    Args:
        writer: Takes the rows.
        keep_ns: How long they are kept.
    """

    def __init__(self, writer: Writer, *, keep_ns: int) -> None:
        self._writer = writer
        self._keep = keep_ns

    async def Export(self, request: Any, context: Context) -> Any:  # noqa: ANN401 - OTLP's messages
        """Store points; says how many were none."""
        reader = Reader(tenant=current_tenant(), keep_ns=self._keep)
        await asyncio.to_thread(reader.metrics, request)
        await self._writer.write(reader.batch)
        response = metrics_service_pb2.ExportMetricsServiceResponse()
        if reader.refused:
            response.partial_success.rejected_data_points = reader.refused
            response.partial_success.error_message = "no name, no number, or a time outside of 1970 to 2261"
        return response


def add_to(server: grpc.aio.Server, writer: Writer, *, keep_ns: int) -> None:
    """Add both services."""
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(Traces(writer, keep_ns=keep_ns), server)
    add = metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server
    add(Metrics(writer, keep_ns=keep_ns), server)

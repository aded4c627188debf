"""Spans and metrics reach a collector, and one trace holds all hops."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.runtime.config import TelemetryConfig
from tests.runtime.echo import Host, unary


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.metrics: set[str] = set()

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - named by the proto
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
            return trace_service_pb2.ExportTraceServiceResponse()
        self.metrics |= {m.name for r in request.resource_metrics for scope in r.scope_metrics for m in scope.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()


async def test_spans_of_all_hops_form_one_trace_and_cancelled_calls_end_theirs(host: Host) -> None:
    collector, server = Collector(), grpc.aio.server()
    register: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    register(collector, server)
    register = metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server
    register(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    telemetry = TelemetryConfig(otlp_endpoint=f"http://127.0.0.1:{port}")
    async with host(telemetry=telemetry) as last, host(telemetry=telemetry, addresses={"peer": last.address}) as first:
        await unary(first.channel, "Unary")(StringValue(value="forward hello"))
        with pytest.raises(grpc.aio.AioRpcError):
            await unary(first.channel, "Unary")(StringValue(value="forward missing"))
        cancelled = unary(first.channel, "Unary")(StringValue(value="forward forever"))
        await last.echo.entered.wait()
        cancelled.cancel()
        async with asyncio.timeout(10):
            await last.echo.left.wait()
    await server.stop(0)
    by_id = {span.span_id: span for span in collector.spans}
    children = [span for span in collector.spans if span.parent_span_id]
    assert (len(collector.spans), len(children)) == (6, 3)
    assert all(by_id[span.parent_span_id].trace_id == span.trace_id for span in children)
    codes = sorted(a.value.string_value for s in collector.spans for a in s.attributes if a.key == "rpc.status_code")
    assert codes == ["CANCELLED", "CANCELLED", "NOT_FOUND", "NOT_FOUND", "OK", "OK"]
    assert "rpc.server.duration" in collector.metrics

"""OpenTelemetry's own exporters send here, spans and metrics."""

import asyncio
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace.status import StatusCode

from llamastack import v1
from tests.telemetry.mesh import of, telemetry_mesh


def instrumented(target: str) -> None:
    """A program of a user."""
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=target, insecure=True)))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("order", attributes={"count": 3, "tags": ["a", "b"], "paid": True}):
        with tracer.start_as_current_span("pay") as span:
            span.add_event("asked the bank")
            span.set_status(StatusCode.ERROR, "no money")
    provider.shutdown()
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=target, insecure=True))
    meters = MeterProvider(metric_readers=[reader])
    meters.get_meter("test").create_counter("orders", unit="1").add(2, {"shop": "north"})
    meters.get_meter("test").create_histogram("price", unit="eur").record(40, {"shop": "north"})
    meters.shutdown()


async def test_a_program_with_the_sdk_exports_spans_and_metrics(home: Path) -> None:
    async with telemetry_mesh(home) as mesh:
        await asyncio.to_thread(instrumented, mesh.client.addresses["telemetry"])
        (trace,) = await mesh.client.telemetry.query_traces(("count", "gt", 2))
        tree = await mesh.client.telemetry.tree(trace.root_span_id)
        by_name = {span.name: span for span in tree.values()}
        assert by_name["pay"].parent_span_id == by_name["order"].span_id
        assert by_name["pay"].status == v1.SPAN_STATUS_ERROR
        assert by_name["order"].status == v1.SPAN_STATUS_OK
        assert by_name["order"].attributes["service.name"] == "shop"
        assert list(by_name["order"].attributes["tags"]) == ["a", "b"]  # type: ignore[arg-type] # a list of values
        for metric, expected in (("orders", 2), ("price.sum", 40), ("price.count", 1)):
            (series,) = await mesh.client.telemetry.metrics(metric, start=0)
            assert [point.value for point in series.values] == [expected]
            assert series.labels[0].value == "north"


async def test_spans_without_proper_ids_are_counted_as_refused_and_the_others_stored(home: Path) -> None:
    async with telemetry_mesh(home) as mesh:
        request = trace_service_pb2.ExportTraceServiceRequest()
        spans = request.resource_spans.add().scope_spans.add().spans
        times = {"start_time_unix_nano": 1, "end_time_unix_nano": 2}
        spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, name="good", **times)
        spans.add(trace_id=b"\1" * 3, span_id=b"\2" * 8, name="short", **times)
        spans.add(trace_id=b"\1" * 16, span_id=b"\3" * 8, name="late", start_time_unix_nano=2**64 - 1)
        make: Any = trace_service_pb2_grpc.TraceServiceStub
        stub = make(mesh.client.channel("telemetry"))
        answer = await stub.Export(request)
        assert answer.partial_success.rejected_spans == 2
        await stub.Export(request)  # a repeat changes nothing
        assert [span.name for span in await mesh.client.telemetry.spans()] == ["good"]


async def test_spans_of_a_caller_with_a_tenant_are_that_tenants_whatever_they_say(home: Path) -> None:
    async with telemetry_mesh(home) as mesh:
        request = trace_service_pb2.ExportTraceServiceRequest()
        span = (
            request.resource_spans.add()
            .scope_spans.add()
            .spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, name="x", start_time_unix_nano=1, end_time_unix_nano=2)
        )
        span.attributes.add(key="llamastack.tenant").value.string_value = "red"
        make: Any = trace_service_pb2_grpc.TraceServiceStub
        await make(mesh.client.channel("telemetry")).Export(request, metadata=of("blue"))
        for tenant, expected in (("blue", 1), ("red", 0)):
            page = await mesh.stub.QuerySpans(v1.QuerySpansRequest(), metadata=of(tenant))
            assert len(page.data) == expected

"""Spans are sent to the mesh's telemetry service in batches; what cannot be sent is kept for a while, then counted."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.runtime import recorder
from services.runtime.calls import Call, Trace
from services.runtime.config import ConfigError, RuntimeConfig, StackConfig, TelemetryConfig, read_config, read_stack
from services.runtime.process import hosting
from services.runtime.recorder import Recorder
from tests.runtime.echo import Host, unary
from tests.runtime.test_otlp import Collector


class Grumpy(trace_service_pb2_grpc.TraceServiceServicer):
    """Refuses everything."""

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - named by the proto
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")


async def serve(collector: Any, port: int = 0) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, bound


def call(**facts: Any) -> Call:
    return Call(method="/test.Echo/Unary", request_id="r", facts=facts)


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


async def test_spans_of_all_hops_reach_the_service_at_the_latest_when_the_process_ends(host: Host) -> None:
    collector = Collector()
    server, port = await serve(collector)
    telemetry, at = TelemetryConfig(traces=True), {"telemetry": f"127.0.0.1:{port}"}
    async with host(telemetry=telemetry, addresses=at) as last:
        async with host(telemetry=telemetry, addresses={"peer": last.address, **at}) as first:
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
    assert (len(by_id), len(children)) == (6, 3)
    assert all(by_id[span.parent_span_id].trace_id == span.trace_id for span in children)
    codes = sorted(attributes(span)["rpc.status_code"] for span in collector.spans)
    assert codes == ["CANCELLED", "CANCELLED", "NOT_FOUND", "NOT_FOUND", "OK", "OK"]
    failed = next(span for span in collector.spans if attributes(span)["rpc.status_code"] == "NOT_FOUND")
    assert (attributes(failed)["error.type"], failed.status.code) == ("MODEL_NOT_FOUND", 2)


async def test_spans_wait_while_the_service_is_away() -> None:
    lost: list[int] = []
    server, port = await serve(Collector())
    await server.stop(0)
    sent = Recorder(process="test", sample=1, dropped=lost.append)
    collector = Collector()
    async with sent.sending(grpc.aio.insecure_channel(f"127.0.0.1:{port}")):
        sent.ended(call(model="m", tokens=3, share=0.5, yes=True), cancelled=False)
        await sent.flush()
        server, _ = await serve(collector, port)
        async with asyncio.timeout(20):
            while not collector.spans:
                await sent.flush()
    await server.stop(0)
    assert sum(lost) == 0
    said = attributes(collector.spans[0])
    assert (said["model"], said["tokens"], said["share"], said["yes"]) == ("m", 3, 0.5, True)


async def test_what_is_refused_or_too_much_is_counted_as_lost() -> None:
    lost: list[int] = []
    server, port = await serve(Grumpy())
    sent = Recorder(process="test", sample=1, dropped=lost.append, limit=3)
    async with sent.sending(grpc.aio.insecure_channel(f"127.0.0.1:{port}")):
        for _ in range(5):
            sent.ended(call(), cancelled=False)
        assert sum(lost) == 2
        await sent.flush()
        assert sum(lost) == 5
    await server.stop(0)


async def test_a_trace_is_recorded_as_a_whole_or_not_at_all() -> None:
    sent = Recorder(process="test", sample=0.5, dropped=print)
    chosen = 0
    for _ in range(400):
        first = call()
        sent.choose(first)
        second = call()
        second.trace = Trace.from_headers(traceparent=first.trace.traceparent, tracestate="")
        sent.choose(second)
        assert second.trace.flags == first.trace.flags
        chosen += first.trace.flags == "01"
        sent.ended(first, cancelled=False)
        sent.ended(second, cancelled=False)
    assert 100 < chosen < 300
    assert len(sent._spans) == 2 * chosen


def test_traces_need_the_address_of_the_service_and_a_share_is_one(tmp_path: Any) -> None:
    file = tmp_path / "stack.yaml"
    file.write_text("runtime: {telemetry: {traces: true}}")
    with pytest.raises(ConfigError, match="telemetry is missing"):
        read_stack(file)
    with pytest.raises(ConfigError, match="sample: 2 is no share"):
        read_config(TelemetryConfig, {"sample": 2}, file="f")


async def test_an_error_of_a_service_comes_out_as_it_is_while_spans_are_sent(tmp_path: Any) -> None:
    def broken(context: Any) -> Any:
        raise ConfigError("the setting is wrong")

    runtime = RuntimeConfig(tcp=False, socket_dir=tmp_path, telemetry=TelemetryConfig(traces=True))
    config = StackConfig(file="test", addresses={"telemetry": "127.0.0.1:1"}, runtime=runtime)
    with pytest.raises(ConfigError, match="the setting is wrong"):
        async with hosting({"echo": broken}, config=config, home=tmp_path):
            pass


def test_a_call_of_http_has_the_status_of_http() -> None:
    sent = Recorder(process="gateway", sample=1, dropped=print)
    made = Call(method="/GET /v1/models/{id}", facts={"http.response.status_code": 404}, reason="MODEL_NOT_FOUND")
    sent.ended(made, cancelled=False)
    request = trace_service_pb2.ExportTraceServiceRequest.FromString(
        recorder.encode_spans(list(sent._spans), process="gateway")
    )
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert span.name == "GET /v1/models/{id}"
    assert attributes(span)["http.response.status_code"] == 404
    assert "rpc.status_code" not in attributes(span)


def test_a_batch_is_what_otlp_expects() -> None:
    sent = Recorder(process="test", sample=1, dropped=print)
    sent.ended(call(), cancelled=True)
    request = trace_service_pb2.ExportTraceServiceRequest.FromString(
        recorder.encode_spans(list(sent._spans), process="test")
    )
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert (span.name, span.kind, len(span.trace_id), len(span.span_id)) == ("test.Echo/Unary", 2, 16, 8)
    assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert attributes(span)["llamastack.cancelled_by_caller"] is True

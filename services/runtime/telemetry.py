"""Metrics of a process as Prometheus text and, when a collector is configured, spans and metrics over OTLP.

The OpenTelemetry SDK is imported only when `otlp_endpoint` is set: it costs a third of a light service's start.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.runtime.calls import Call
from services.runtime.config import TelemetryConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class EndSpan(Protocol):
    """Ends a span."""

    def __call__(self, call: Call, *, cancelled: bool) -> None:
        """End it with the outcome of the call."""


class Telemetry:
    """The metrics registry of a process and its exporters.

    Attributes:
        registry: Services add their own metrics here.
    """

    def __init__(self, *, config: TelemetryConfig, process: str) -> None:
        self.registry = CollectorRegistry()
        self._config = config
        self._process = process
        self._calls = Counter(
            "rpc_server_calls", "Calls that ended, by method and status.", ["method", "code"], registry=self.registry
        )
        self._duration = Histogram(
            "rpc_server_duration_seconds",
            "Seconds from a call's arrival to its end.",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._active = Gauge("rpc_server_active_calls", "Calls being handled now.", ["method"], registry=self.registry)
        self._messages = Counter(
            "rpc_server_messages_sent", "Responses sent, by method.", ["method"], registry=self.registry
        )
        self._tracer: Any = None
        self._otlp_duration: Any = None
        self._tracer_provider: TracerProvider | None = None
        self._meter_provider: MeterProvider | None = None

    def start(self) -> None:
        """Connect the exporters, when configured."""
        endpoint = self._config.otlp_endpoint
        if endpoint is None:
            return
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter  # noqa: PLC0415 - lazy
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - lazy
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - lazy, see the top
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415 - lazy
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - lazy, see the top
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - lazy, see the top
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - lazy, see the top

        insecure = not endpoint.startswith("https:")
        resource = Resource.create({"service.name": self._process, "service.namespace": "llama-stack-mesh"})
        self._tracer_provider = TracerProvider(resource=resource)
        self._tracer_provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=insecure))
        )
        self._tracer = self._tracer_provider.get_tracer("services.runtime")
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoint, insecure=insecure))
        self._meter_provider = MeterProvider(resource=resource, metric_readers=[reader])
        self._otlp_duration = self._meter_provider.get_meter("services.runtime").create_histogram(
            "rpc.server.duration", unit="s", description="Seconds from a call's arrival to its end."
        )

    def stop(self) -> None:
        """Flush and close the exporters; blocks, so call it off the event loop."""
        for provider in (self._tracer_provider, self._meter_provider):
            if provider is not None:
                provider.shutdown()

    def text(self) -> bytes:
        """All metrics as Prometheus text."""
        return generate_latest(self.registry)

    def call_started(self, call: Call) -> None:
        """Count a call in."""
        self._active.labels(call.method).inc()

    def call_ended(self, call: Call) -> None:
        """Count a call out, with its outcome."""
        seconds = time.monotonic() - call.started
        self._active.labels(call.method).dec()
        self._calls.labels(call.method, call.code.name).inc()
        self._duration.labels(call.method).observe(seconds)
        self._messages.labels(call.method).inc(call.messages)
        if self._otlp_duration is not None:
            self._otlp_duration.record(seconds, {"rpc.method": call.method, "rpc.status_code": call.code.name})

    def start_span(self, call: Call) -> EndSpan:
        """Begin the span of an incoming call; the call's trace takes the span's ids."""
        if self._tracer is None:
            return _no_span
        return _start_span(self._tracer, call)


def _no_span(call: Call, *, cancelled: bool) -> None:
    """No exporter, no span."""


def _start_span(tracer: Any, call: Call) -> Callable[..., None]:  # noqa: ANN401 - the SDK is imported lazily
    from opentelemetry import trace  # noqa: PLC0415 - lazy, see the top
    from opentelemetry.trace.status import StatusCode  # noqa: PLC0415 - lazy, see the top

    parent = None
    if call.trace.parent_id:
        remote = trace.SpanContext(
            trace_id=int(call.trace.trace_id, 16),
            span_id=int(call.trace.parent_id, 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(int(call.trace.flags, 16)),
        )
        parent = trace.set_span_in_context(trace.NonRecordingSpan(remote))
    span = tracer.start_span(
        call.method.lstrip("/"),
        context=parent,
        kind=trace.SpanKind.SERVER,
        attributes={"rpc.system.name": "grpc", "rpc.method": call.method},
    )
    ids = span.get_span_context()
    call.trace.trace_id, call.trace.span_id = f"{ids.trace_id:032x}", f"{ids.span_id:016x}"

    def end(call: Call, *, cancelled: bool) -> None:
        span.set_attribute("rpc.status_code", call.code.name)
        span.set_attribute("llamastack.request_id", call.request_id)
        span.set_attribute("llamastack.cancelled_by_caller", cancelled)
        if call.reason:
            span.set_attribute("error.type", call.reason)
            span.set_status(StatusCode.ERROR, call.reason)
        span.end()

    return end

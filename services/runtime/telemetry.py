"""Metrics of a process as Prometheus text; spans and metrics for the mesh's own store, and for an OTLP collector.

The OpenTelemetry SDK is imported only when `otlp_endpoint` is set: it costs a third of a light service's start.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.runtime.calls import Call, current_tenant, work_of
from services.runtime.config import TelemetryConfig
from services.runtime.recorder import LAST_SECONDS, TENANT_ATTRIBUTE, Recorder

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


_ABOUT_TELEMETRY = "/llamastack.v1.TelemetryService/"
"""Whoever looks at traces would find mostly that he looked."""


class EndSpan(Protocol):
    """Ends a span."""

    def __call__(self, call: Call, *, cancelled: bool) -> None:
        """End it with the outcome of the call."""


class SpanOfWork(Protocol):
    """Gives a span of work that goes on beside calls; see `Telemetry.work`."""

    def __call__(self, name: str, **facts: str | float | bool) -> AbstractContextManager[None]:
        """The span, which ends with the block."""


def no_span(name: str, **facts: str | float | bool) -> AbstractContextManager[None]:  # noqa: ARG001 - the interface
    """Records nothing."""
    return nullcontext()


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
        self._lost = Counter(
            "telemetry_lost",
            "Spans and points that could not be sent to the telemetry service.",
            registry=self.registry,
        )
        self._recorder: Recorder | None = None
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

    @asynccontextmanager
    async def recording(self, channel: grpc.aio.Channel) -> AsyncIterator[None]:
        """Send spans and tokens to the mesh's telemetry service until the block ends; closes the channel."""
        recorder = Recorder(process=self._process, sample=self._config.sample, dropped=self._lost.inc)
        async with recorder.sending(channel):
            self._recorder = recorder
            try:
                yield
            finally:
                self._recorder = None

    async def flush(self) -> None:
        """Send what waits for the mesh's telemetry service; gives up after a second."""
        if self._recorder is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    await self._recorder.flush()

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
        """Begin the span of an incoming call; the call's trace takes the span's ids, and says what is not recorded.

        A call of HTTP is one whose `method` is `/POST /v1/path/{name}` and whose `facts` say
        `http.response.status_code` in the end; pass its trace on only after this.
        """
        end = _no_span if self._tracer is None else _start_span(self._tracer, call)
        recorder = self._recorder
        if recorder is None or call.method.startswith(_ABOUT_TELEMETRY):
            return end
        recorder.choose(call)
        if self._tracer is None:
            return recorder.ended

        def end_both(call: Call, *, cancelled: bool) -> None:
            end(call, cancelled=cancelled)
            recorder.ended(call, cancelled=cancelled)

        return end_both

    @contextmanager
    def work(self, name: str, **facts: str | float | bool) -> Iterator[None]:
        """A span of work that goes on beside calls, such as an agent's turn; calls made inside are its children.

        Args:
            name: Of the span.
            facts: Its attributes, as `calls.note` takes them.
        """
        with work_of(name, facts) as call:
            recorder = self._recorder
            if recorder is not None:
                recorder.choose(call)
            try:
                yield
            finally:
                if recorder is not None:
                    recorder.ended(call, cancelled=False)

    def used_tokens(self, *, model: str, provider: str, prompt: int, completion: int) -> None:
        """Record what an answer used."""
        if self._recorder is None:
            return
        labels = {"model_id": model, "provider_id": provider}
        tenant = current_tenant()
        if tenant:
            labels[TENANT_ATTRIBUTE] = tenant
        for metric, value in (
            ("prompt_tokens", prompt), ("completion_tokens", completion), ("total_tokens", prompt + completion),
        ):  # fmt: skip
            self._recorder.point(metric, value, unit="tokens", labels=labels)


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

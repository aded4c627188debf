"""Sends a process's finished spans and counted tokens to the mesh's telemetry service, in batches over OTLP.

The OpenTelemetry SDK does the same for collectors elsewhere; it costs a third of a light service's start and ten times
as much per span. Here a span that ends is a tuple in a bounded queue, and everything else happens once a second.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from services.runtime.calls import Call

_log = logging.getLogger(__name__)

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
TENANT_ATTRIBUTE = "llamastack.tenant"
"""Attribute of spans and metric points that says whose they are."""

QUEUE = 16_384
"""Spans, and metric points, that wait at most."""
BATCH = 512
EVERY_SECONDS = 1.0
LAST_SECONDS = 1.0
"""For the last batches of a process that ends."""
EXPORT_SECONDS = 10.0
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_RECORDED = "01"
_NOT_RECORDED = "00"


@dataclass(slots=True, frozen=True)
class Point:
    """A number at a moment."""

    metric: str
    """Its name."""
    value: float
    """What was measured."""
    unit: str
    """What it counts."""
    at: int
    """Nanoseconds since 1970."""
    labels: Mapping[str, str]
    """What it is about."""


class Recorder:
    """Collects and sends; give it to `Telemetry`.

    Args:
        process: Name of this process.
        sample: Share of the traces that begin here which are recorded, 0 to 1.
        dropped: Told the number of spans or points that were lost.
        limit: Spans, and points, that wait at most.
    """

    def __init__(self, *, process: str, sample: float, dropped: Callable[[int], object], limit: int = QUEUE) -> None:
        self._process = process
        self._sample = sample
        self._dropped = dropped
        self._limit = limit
        # A tuple: trace, span, parent, name, begin, end, tenant, request id, status, reason, cancelled, facts.
        self._spans: deque[tuple[Any, ...]] = deque()
        self._points: deque[Point] = deque()
        self._full = asyncio.Event()
        self._sending = asyncio.Lock()
        self._away = False
        self._closed = False
        self._export_spans: Any = None
        self._export_points: Any = None

    def choose(self, call: Call) -> None:
        """Decide whether a trace that begins here is recorded; later hops follow its flags."""
        if self._sample < 1 and not call.trace.parent_id and random.random() >= self._sample:  # noqa: S311 - no secret
            call.trace.flags = _NOT_RECORDED

    def ended(self, call: Call, *, cancelled: bool) -> None:
        """Record a span that ends now."""
        trace = call.trace
        if trace.flags != _RECORDED and not int(trace.flags, 16) & 1:
            return
        if len(self._spans) >= self._limit:
            self._dropped(1)
            return
        end = time.time_ns()
        begin = end - int((time.monotonic() - call.started) * 1e9)
        self._spans.append(
            (
                trace.trace_id, trace.span_id, trace.parent_id, call.method[1:], begin, end,
                call.tenant, call.request_id, call.code.name, call.reason, cancelled, call.facts,
            )
        )  # fmt: skip
        if len(self._spans) == BATCH:
            self._full.set()

    def point(self, metric: str, value: float, *, unit: str, labels: Mapping[str, str]) -> None:
        """Record a number."""
        if len(self._points) >= self._limit:
            self._dropped(1)
            return
        self._points.append(Point(metric, value, unit, time.time_ns(), labels))
        if len(self._points) == BATCH:
            self._full.set()

    @asynccontextmanager
    async def sending(self, channel: grpc.aio.Channel) -> AsyncIterator[None]:
        """Send in the background; on the way out send what is left, if somebody takes it, and close the channel."""
        self._export_spans = channel.unary_unary(TRACES, bytes, bytes)  # requests are encoded before
        self._export_points = channel.unary_unary(METRICS, bytes, bytes)
        failed: Exception | None = None  # handed on as it is: a group of exceptions would hide what it was
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._send_until_closed())
            try:
                yield
            except Exception as error:  # noqa: BLE001 - raised again below
                failed = error
            finally:
                self._closed = True  # not cancelled: what is on its way would be sent twice
                self._full.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_SECONDS):
                        await task
                        await self.flush()
                self._dropped(len(self._spans) + len(self._points))
                await channel.close(None)
        if failed is not None:
            raise failed

    async def flush(self) -> None:
        """Send all that waits now; returns when it is stored, or when the service is away."""
        async with self._sending:
            await self._drain(self._spans, encode_spans, self._export_spans)
            await self._drain(self._points, encode_points, self._export_points)

    async def _send_until_closed(self) -> None:
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._full.wait()
            self._full.clear()
            await self.flush()

    async def _drain(self, queue: "deque[Any]", encode: Callable[..., bytes], export: Callable[..., Any]) -> None:
        left = len(queue)  # not `while queue`: what comes meanwhile would go out in batches of a few
        while left:
            batch = [queue[index] for index in range(min(BATCH, left))]
            left -= len(batch)
            request = await asyncio.to_thread(encode, batch, process=self._process)
            try:
                await export(request, timeout=EXPORT_SECONDS)
                self._away = False
            except grpc.aio.AioRpcError as error:
                if error.code() in _AWAY:  # kept, for it may come back
                    if not self._away:
                        _log.info("telemetry service is away", extra={"code": error.code().name})
                    self._away = True
                    return
                _log.warning("telemetry was refused", extra={"code": error.code().name, "reason": error.details()})
                self._dropped(len(batch))
            for _ in batch:
                queue.popleft()


def encode_spans(batch: list[tuple[Any, ...]], *, process: str) -> bytes:
    """A batch as OTLP's request."""
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2  # noqa: PLC0415 - only where traces are on
    from opentelemetry.proto.trace.v1 import trace_pb2  # noqa: PLC0415 - as above

    request = trace_service_pb2.ExportTraceServiceRequest()
    group = request.resource_spans.add()
    _say(group.resource.attributes, {"service.name": process, "service.namespace": "llama-stack-mesh"})
    spans = group.scope_spans.add().spans
    for trace, span, parent, name, begin, end, tenant, request_id, code, reason, cancelled, facts in batch:
        one = spans.add(
            trace_id=bytes.fromhex(trace),
            span_id=bytes.fromhex(span),
            name=name,
            kind=trace_pb2.Span.SPAN_KIND_SERVER,
            start_time_unix_nano=begin,
            end_time_unix_nano=end,
        )
        if parent:
            one.parent_span_id = bytes.fromhex(parent)
        said = {"service.name": process, "llamastack.request_id": request_id}
        if "http.response.status_code" not in facts:  # else the call is one of HTTP, see `Telemetry.start_span`
            said["rpc.status_code"] = code
        if tenant:
            said[TENANT_ATTRIBUTE] = tenant
        if cancelled:
            said["llamastack.cancelled_by_caller"] = True
        if reason:
            said["error.type"] = reason
            one.status.code = trace_pb2.Status.STATUS_CODE_ERROR
            one.status.message = reason
        _say(one.attributes, said)
        if facts:
            _say(one.attributes, facts)
    return bytes(request.SerializeToString())


def encode_points(batch: list[Point], *, process: str) -> bytes:
    """A batch as OTLP's request: each number is an increase that was counted at its moment."""
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2  # noqa: PLC0415 - as above
    from opentelemetry.proto.metrics.v1 import metrics_pb2  # noqa: PLC0415 - as above

    request = metrics_service_pb2.ExportMetricsServiceRequest()
    group = request.resource_metrics.add()
    _say(group.resource.attributes, {"service.name": process, "service.namespace": "llama-stack-mesh"})
    metrics = group.scope_metrics.add().metrics
    by_name: dict[tuple[str, str], Any] = {}
    for point in batch:
        key = point.metric, point.unit
        if key not in by_name:
            metric = metrics.add(name=point.metric, unit=point.unit)
            metric.sum.aggregation_temporality = metrics_pb2.AGGREGATION_TEMPORALITY_DELTA
            metric.sum.is_monotonic = True
            by_name[key] = metric.sum.data_points
        one = by_name[key].add(time_unix_nano=point.at, as_double=point.value)
        _say(one.attributes, point.labels)
    return bytes(request.SerializeToString())


def _say(attributes: Any, facts: Mapping[str, Any]) -> None:  # noqa: ANN401 - a repeated field
    for key, value in facts.items():
        said = attributes.add(key=key).value
        match value:
            case bool():
                said.bool_value = value
            case int():
                said.int_value = value
            case float():
                said.double_value = value
            case _:
                said.string_value = value

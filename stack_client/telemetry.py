"""`client.telemetry`: traces, spans and metrics that the stack has recorded, and events of your own."""

import time
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.struct_pb2 import NULL_VALUE, Value
from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, every_page, unary
from stack_client.errors import InvalidArgumentError

_OPS = {
    "eq": v1.QUERY_CONDITION_OP_EQ,
    "ne": v1.QUERY_CONDITION_OP_NE,
    "gt": v1.QUERY_CONDITION_OP_GT,
    "lt": v1.QUERY_CONDITION_OP_LT,
}
_MATCHES = {
    "=": v1.METRIC_LABEL_OPERATOR_EQUALS,
    "!=": v1.METRIC_LABEL_OPERATOR_NOT_EQUALS,
    "=~": v1.METRIC_LABEL_OPERATOR_REGEX_MATCH,
    "!~": v1.METRIC_LABEL_OPERATOR_REGEX_NOT_MATCH,
}
Filter = tuple[str, str, str | float | bool | None]
"""Attribute, `eq`, `ne`, `gt` or `lt`, value."""


class Telemetry:
    """Calls of `TelemetryService`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.TelemetryServiceStub(channel)

    async def query_traces(
        self,
        *filters: Filter,
        order_by: Sequence[str] = (),
        limit: int = 100,
        offset: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> list[v1.Trace]:
        """Traces whose root span meets all filters, the newest first unless `order_by` says otherwise.

        Args:
            filters: `("llamastack.tenant", "eq", "acme")`.
            order_by: `start_time`, `end_time`, `duration`, each with `-` in front for descending.
            limit: Traces answered at most, up to 1000.
            offset: Traces left out at the start.
            timeout: Seconds.

        Raises:
            InvalidArgumentError: If a filter or an order is none.
        """
        request = v1.QueryTracesRequest(
            page_size=limit, attribute_filters=conditions(filters), order_by=order_by, offset=offset
        )
        response: v1.QueryTracesResponse = await unary(self._stub.QueryTraces(request, timeout=timeout))
        return list(response.data)

    async def trace(self, trace_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Trace:
        """One trace.

        Raises:
            NotFoundError: If there is none of that id.
        """
        request = v1.GetTraceRequest(trace_id=trace_id)
        response: v1.GetTraceResponse = await unary(self._stub.GetTrace(request, timeout=timeout))
        return response.trace

    async def span(self, trace_id: str, span_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Span:
        """One span.

        Raises:
            NotFoundError: If there is none of these ids.
        """
        request = v1.GetSpanRequest(trace_id=trace_id, span_id=span_id)
        response: v1.GetSpanResponse = await unary(self._stub.GetSpan(request, timeout=timeout))
        return response.span

    async def spans(
        self,
        *filters: Filter,
        attributes: Sequence[str] = (),
        max_depth: int | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> list[v1.Span]:
        """All spans that meet all filters, the newest first.

        Args:
            filters: `("llamastack.turn_id", "eq", turn_id)`.
            attributes: Those to send; empty means all.
            max_depth: Levels below the root span; None means all.
            timeout: Seconds, of each page.

        Raises:
            InvalidArgumentError: If a filter is none.
        """
        request = v1.QuerySpansRequest(
            page_size=1000,
            attribute_filters=conditions(filters),
            attributes_to_return=attributes,
            max_depth=max_depth,
        )
        return await every_page(self._stub.QuerySpans, request, timeout=timeout)

    async def tree(
        self,
        span_id: str,
        *,
        attributes: Sequence[str] = (),
        max_depth: int | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, v1.Span]:
        """A span with all spans below it, by span id.

        Raises:
            NotFoundError: If there is no such span.
        """
        request = v1.GetSpanTreeRequest(span_id=span_id, attributes_to_return=attributes, max_depth=max_depth)
        response: v1.GetSpanTreeResponse = await unary(self._stub.GetSpanTree(request, timeout=timeout))
        return dict(response.data)

    async def metrics(
        self,
        name: str,
        *matchers: tuple[str, str, str],
        start: float,
        end: float | None = None,
        granularity: str | None = None,
        instant: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> list[v1.MetricSeries]:
        """The values of a metric, one series per set of labels.

        Args:
            name: `prompt_tokens`, `completion_tokens`, `total_tokens`, or one of your own.
            matchers: Label, `=`, `!=`, `=~` or `!~`, value: `("model_id", "=~", "llama.*")`.
            start: Seconds since 1970.
            end: The same; None means now.
            granularity: Width of a value, `1m`, `1h`, `1d`; None means every value as it came.
            instant: Answer only the last value of each series.
            timeout: Seconds.

        Raises:
            NotFoundError: If there is no such metric.
            InvalidArgumentError: If the granularity or a matcher is none.
        """
        kind = v1.METRIC_QUERY_TYPE_INSTANT if instant else v1.METRIC_QUERY_TYPE_RANGE
        request = v1.QueryMetricsRequest(
            metric_name=name,
            start_time=_stamp(start),
            end_time=None if end is None else _stamp(end),
            granularity=granularity,
            query_type=kind,
            label_matchers=[_matcher(one) for one in matchers],
        )
        response: v1.QueryMetricsResponse = await unary(self._stub.QueryMetrics(request, timeout=timeout))
        return list(response.data)

    async def log_event(
        self, event: v1.TelemetryEvent, *, ttl_seconds: int | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Store an event; one without a time happens now.

        Args:
            event: With the ids of its trace and span.
            ttl_seconds: How long it is kept; None means a week.
            timeout: Seconds.

        Raises:
            InvalidArgumentError: If an id is not hexadecimal, or something is missing.
        """
        request = v1.LogEventRequest(event=event, ttl_seconds=ttl_seconds)
        if not event.HasField("timestamp"):
            request.event.timestamp.CopyFrom(_stamp(time.time()))
        await unary(self._stub.LogEvent(request, timeout=timeout))


def conditions(filters: Sequence[Filter]) -> list[v1.QueryCondition]:
    """Filters as messages.

    Raises:
        InvalidArgumentError: If the comparison of one is unknown.
    """
    made: list[v1.QueryCondition] = []
    for key, op, value in filters:
        if op not in _OPS:
            raise InvalidArgumentError(f"comparison {op!r} is unknown; use {', '.join(_OPS)}", field="op")
        made.append(v1.QueryCondition(key=key, op=_OPS[op], value=_value(value)))
    return made


def _value(value: str | float | bool | None) -> Value:  # noqa: FBT001 - data
    match value:
        case None:
            return Value(null_value=NULL_VALUE)
        case bool():
            return Value(bool_value=value)
        case str():
            return Value(string_value=value)
        case _:
            return Value(number_value=value)


def _matcher(given: tuple[str, str, str]) -> v1.MetricLabelMatcher:
    name, operator, value = given
    if operator not in _MATCHES:
        message = f"comparison {operator!r} is unknown; use {', '.join(_MATCHES)}"
        raise InvalidArgumentError(message, field="operator")
    return v1.MetricLabelMatcher(name=name, value=value, operator=_MATCHES[operator])


def _stamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1_000_000_000))
    return stamp

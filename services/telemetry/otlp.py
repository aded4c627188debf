"""OpenTelemetry's export requests as rows."""

import json
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

from llamastack import v1
from services.runtime.recorder import TENANT_ATTRIBUTE
from services.telemetry.rows import LAST_NS, Batch, clean, text
from stack_client.content import plain

_ERROR = 2
"""OTLP's status code of a failed span."""


class Reader:
    """Reads one request.

    Args:
        tenant: Of the caller; empty means that each span or point says for itself whose it is.
        keep_ns: How long rows are kept.
    """

    def __init__(self, *, tenant: str, keep_ns: int) -> None:
        self.batch = Batch()
        """What was read."""
        self.refused = 0
        """Spans or points that are none."""
        self._tenant = tenant
        self._expires = time.time_ns() + keep_ns

    def spans(self, request: Any) -> None:  # noqa: ANN401 - OTLP's messages
        """Read an `ExportTraceServiceRequest`."""
        for group in request.resource_spans:
            common = _service(group.resource)
            for scope in group.scope_spans:
                for span in scope.spans:
                    self._span(span, common)

    def metrics(self, request: Any) -> None:  # noqa: ANN401 - OTLP's messages
        """Read an `ExportMetricsServiceRequest`; a histogram becomes its `.sum` and its `.count`."""
        for group in request.resource_metrics:
            for scope in group.scope_metrics:
                for metric in scope.metrics:
                    for name, unit, point, value in _numbers(metric):
                        self._point(name, unit, point, value)

    def _span(self, span: Any, common: dict[str, Any]) -> None:  # noqa: ANN401 - OTLP's message
        trace_id, span_id = span.trace_id.hex(), span.span_id.hex()
        begin, end = span.start_time_unix_nano, span.end_time_unix_nano
        if len(span.trace_id) != 16 or len(span.span_id) != 8 or not 0 < begin <= LAST_NS or end > LAST_NS:
            self.refused += 1
            return
        facts = {**common, **_facts(span.attributes)}
        tenant = self._whose(facts)
        status = v1.SPAN_STATUS_ERROR if span.status.code == _ERROR else v1.SPAN_STATUS_OK
        self.batch.spans.append(
            {
                "tenant": tenant, "trace_id": trace_id, "span_id": span_id,
                "parent_id": span.parent_span_id.hex() or None,
                "name": text(span.name), "start_ns": begin, "end_ns": end or None,
                "status": status if end else v1.SPAN_STATUS_UNSPECIFIED,
                "attributes": facts, "expires_ns": self._expires,
            }
        )  # fmt: skip
        for event in span.events:
            self.batch.events.append(
                {
                    "tenant": tenant, "trace_id": trace_id, "span_id": span_id,
                    "at_ns": min(event.time_unix_nano, LAST_NS), "severity": v1.LOG_SEVERITY_INFO,
                    "message": text(event.name), "attributes": _facts(event.attributes), "expires_ns": self._expires,
                }
            )  # fmt: skip

    def _point(self, name: str, unit: str, point: Any, value: float) -> None:  # noqa: ANN401 - OTLP's message
        if not 0 < point.time_unix_nano <= LAST_NS or not math.isfinite(value) or not name:
            self.refused += 1
            return
        facts = _facts(point.attributes)
        self.batch.points.append(
            {
                "tenant": self._whose(facts), "metric": text(name), "unit": text(unit), "labels": labels_of(facts),
                "at_ns": point.time_unix_nano, "value": value, "expires_ns": self._expires,
            }
        )  # fmt: skip

    def _whose(self, facts: dict[str, Any]) -> str:
        if self._tenant:
            facts[TENANT_ATTRIBUTE] = self._tenant
        return str(facts.get(TENANT_ATTRIBUTE, ""))


def labels_of(facts: dict[str, Any]) -> str:
    """A set of labels as text, the same for the same set."""
    said = {name: value if isinstance(value, str) else json.dumps(plain(value)) for name, value in facts.items()}
    return json.dumps(said, sort_keys=True, ensure_ascii=False)


def _numbers(metric: Any) -> Iterator[tuple[str, str, Any, float]]:  # noqa: ANN401 - OTLP's message
    kind = metric.WhichOneof("data")
    if kind in {"gauge", "sum"}:
        for point in getattr(metric, kind).data_points:
            value = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
            yield metric.name, metric.unit, point, float(value)
    elif kind:
        for point in getattr(metric, kind).data_points:
            yield f"{metric.name}.sum", metric.unit, point, float(point.sum)
            yield f"{metric.name}.count", "1", point, float(point.count)


def _service(resource: Any) -> dict[str, Any]:  # noqa: ANN401 - OTLP's message
    return {one.key: one.value.string_value for one in resource.attributes if one.key == "service.name"}


def _facts(attributes: Iterable[Any]) -> dict[str, Any]:
    return {text(one.key): clean(_value(one.value)) for one in attributes}


def _value(value: Any) -> Any:  # noqa: ANN401 - any attribute
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return {item.key: _value(item.value) for item in value.kvlist_value.values}
        case "bytes_value":
            return str(value.bytes_value.hex())
        case kind:
            return getattr(value, kind)

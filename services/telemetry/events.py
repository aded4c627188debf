"""Events of `LogEvent` as rows."""

import math
import time
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from services.telemetry.otlp import labels_of
from services.telemetry.rows import Batch, SpanChange, clean, hexadecimal, nanoseconds, text
from stack_client.errors import InvalidArgumentError

WEEK = 604_800
"""Seconds that an event is kept unless it says otherwise."""
_ENDS = {v1.SPAN_STATUS_OK, v1.SPAN_STATUS_ERROR}


def rows_of(request: v1.LogEventRequest, *, tenant: str) -> Batch:
    """What an event adds.

    Raises:
        InvalidArgumentError: If something is missing, or an id or a time is none.
    """
    event = request.event
    if request.HasField("ttl_seconds") and not request.ttl_seconds:
        raise InvalidArgumentError("ttl_seconds is 0; give at least 1, or leave it out", field="ttl_seconds")
    for field in ("timestamp", "event"):
        there = event.HasField("timestamp") if field == "timestamp" else event.WhichOneof("event")
        if not there:
            raise _missing(f"event.{field}")
    lives = request.ttl_seconds if request.HasField("ttl_seconds") else WEEK
    trace_id = hexadecimal(event.trace_id, field="event.trace_id")
    span_id = hexadecimal(event.span_id, field="event.span_id")
    at, expires = nanoseconds(event.timestamp, field="event.timestamp"), time.time_ns() + lives * 1_000_000_000
    facts = clean(json_format.MessageToDict(event.attributes))
    match event.WhichOneof("event"):
        case "unstructured_log":
            log = event.unstructured_log
            severity = log.severity or v1.LOG_SEVERITY_INFO
            row = {
                "tenant": tenant, "trace_id": trace_id, "span_id": span_id, "at_ns": at, "severity": severity,
                "message": text(log.message), "attributes": facts, "expires_ns": expires,
            }  # fmt: skip
            return Batch(events=[row])
        case "metric":
            metric = event.metric
            if not metric.metric:
                raise _missing("event.metric.metric")
            if not math.isfinite(metric.value):
                raise InvalidArgumentError("event.metric.value is no number", field="event.metric.value")
            row = {
                "tenant": tenant, "metric": text(metric.metric), "unit": text(metric.unit), "labels": labels_of(facts),
                "at_ns": at, "value": metric.value, "expires_ns": expires,
            }  # fmt: skip
            return Batch(points=[row])
        case _:
            change = _change(event.structured_log)
            common = {"tenant": tenant, "trace_id": trace_id, "span_id": span_id, "at_ns": at, "expires_ns": expires}
            return Batch(changes=[SpanChange(**{**common, **change}, attributes=facts)])


def _change(log: v1.StructuredLog) -> dict[str, Any]:
    where = "event.structured_log"
    match log.WhichOneof("payload"):
        case "span_start":
            parent = log.span_start.parent_span_id
            if not log.span_start.name:
                raise _missing(f"{where}.span_start.name")
            parent_id = hexadecimal(parent, field=f"{where}.span_start.parent_span_id") if parent else None
            return {"name": text(log.span_start.name), "parent_id": parent_id}
        case "span_end":
            if log.span_end.status not in _ENDS:
                field = f"{where}.span_end.status"
                raise InvalidArgumentError(f"{field} is none; give ok or error", field=field)
            return {"status": log.span_end.status}
        case _:
            raise _missing(f"{where}.payload")


def _missing(field: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field} is missing", reason="MISSING_FIELD", field=field)

"""What is to be written: spans, changes of spans, events, points; and attributes as JSON that every database takes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from stack_client.errors import InvalidArgumentError

LAST_NS = 2**63 - 1
"""Nanoseconds since 1970 that fit a column: the year 2262."""
_ID = frozenset("0123456789abcdef")
MAX_ID = 64
"""Hexadecimal digits of an id; OpenTelemetry has 32 and 16."""


@dataclass(frozen=True, kw_only=True)
class SpanChange:
    """A span begins or ends; the two may come in either order, and again."""

    tenant: str
    trace_id: str
    span_id: str
    at_ns: int
    expires_ns: int
    attributes: Mapping[str, Any]
    name: str | None = None
    """Of the beginning; None: this is the end."""
    parent_id: str | None = None
    status: int = v1.SPAN_STATUS_UNSPECIFIED


@dataclass(kw_only=True)
class Batch:
    """Rows that are written together."""

    spans: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `tables.spans`, whole."""
    changes: list[SpanChange] = field(default_factory=list)
    """Beginnings and ends."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `tables.events`."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `tables.points` with the columns of `tables.series` in place of its number."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.spans) + len(self.changes) + len(self.events) + len(self.points)

    @classmethod
    def joined(cls, batches: Iterable["Batch"]) -> "Batch":
        """Several as one, in order."""
        whole = cls()
        for one in batches:
            whole.spans += one.spans
            whole.changes += one.changes
            whole.events += one.events
            whole.points += one.points
        return whole


def clean(value: Any) -> Any:  # noqa: ANN401 - JSON
    """JSON that SQLite and PostgreSQL both take: no NaN, no NUL."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case str():
            return text(value)
        case dict():
            return {text(key): clean(item) for key, item in value.items()}
        case list():
            return [clean(item) for item in value]
        case _:
            return value


def text(value: str) -> str:
    """A text without NUL, which PostgreSQL cannot store."""
    return value.replace("\0", "\ufffd") if "\0" in value else value


def hexadecimal(value: str, *, field: str) -> str:
    """An id in small letters.

    Raises:
        InvalidArgumentError: If it is missing, or not hexadecimal.
    """
    small = value.lower()
    if not small:
        raise InvalidArgumentError(f"{field} is missing", reason="MISSING_FIELD", field=field)
    if len(small) > MAX_ID or not _ID.issuperset(small):
        message = f"{field} is no id; give 1 to {MAX_ID} hexadecimal digits"
        raise InvalidArgumentError(message, field=field)
    return small


def nanoseconds(stamp: Timestamp, *, field: str) -> int:
    """A moment of a request.

    Raises:
        InvalidArgumentError: If it lies before 1970 or after 2261.
    """
    moment = stamp.seconds * 1_000_000_000 + stamp.nanos
    if not (0 <= moment <= LAST_NS and 0 <= stamp.nanos < 1_000_000_000):
        raise InvalidArgumentError(f"{field} is out of range; give a time from 1970 to 2261", field=field)
    return moment


def stamp(moment: int | None) -> Timestamp | None:
    """A moment as a message; None stays None."""
    return None if moment is None else Timestamp(seconds=moment // 1_000_000_000, nanos=moment % 1_000_000_000)


def struct(facts: Mapping[str, Any], wanted: Iterable[str] = ()) -> Struct:
    """Attributes as a message, only the wanted ones where any are named."""
    names = set(wanted)
    result = Struct()
    result.update({name: value for name, value in facts.items() if not names or name in names})
    return result

"""Answering the values of a metric, series by series."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import re2
import sqlalchemy as sa

from llamastack import v1
from services.runtime.database import Database
from services.telemetry.rows import nanoseconds, stamp
from services.telemetry.tables import points, series
from stack_client.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError

MAX_SERIES = 1000
MAX_POINTS = 100_000
"""Values that one answer holds at most."""
MAX_PATTERN = 1000
_SECOND = 1_000_000_000
_UNITS = {"s": _SECOND, "m": 60 * _SECOND, "h": 3600 * _SECOND, "d": 86_400 * _SECOND}
_WIDTH = re.compile(r"^([1-9][0-9]{0,5})([smhd])$", re.ASCII)
_PATTERNS = {v1.METRIC_LABEL_OPERATOR_REGEX_MATCH, v1.METRIC_LABEL_OPERATOR_REGEX_NOT_MATCH}
_NEGATIVE = {v1.METRIC_LABEL_OPERATOR_NOT_EQUALS, v1.METRIC_LABEL_OPERATOR_REGEX_NOT_MATCH}


class Matcher:
    """A condition on a label; a label that is not there is an empty text.

    Args:
        given: As asked for.
        field: Its place in the request.

    Raises:
        InvalidArgumentError: If it is none.
    """

    def __init__(self, given: v1.MetricLabelMatcher, *, field: str) -> None:
        if not given.name:
            raise InvalidArgumentError(f"{field}.name is missing", reason="MISSING_FIELD", field=f"{field}.name")
        self._name, self._value = given.name, given.value
        self._negative = given.operator in _NEGATIVE
        self._pattern: Any = None
        if given.operator in _PATTERNS:
            self._pattern = _compiled(given.value, field=f"{field}.value")

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a set of labels meets it."""
        value = labels.get(self._name, "")
        found = self._pattern.fullmatch(value) is not None if self._pattern is not None else value == self._value
        return found != self._negative


class MetricQueries:
    """The database's reading side for metrics.

    Args:
        database: An open database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def query(self, request: v1.QueryMetricsRequest, *, tenant: str) -> v1.QueryMetricsResponse:
        """The values of a metric in a time.

        Raises:
            InvalidArgumentError: If the time, the granularity or a matcher is none.
            NotFoundError: If there is no such metric.
            ResourceExhaustedError: If there are too many series or values.
        """
        begin, end = _time(request)
        width = _width(request)
        matchers = [Matcher(one, field=f"label_matchers[{i}]") for i, one in enumerate(request.label_matchers)]
        mine = [series.c.tenant == tenant] if tenant else []
        async with self._database.read() as connection:
            known = (
                await connection.execute(sa.select(series).where(series.c.metric == request.metric_name, *mine))
            ).all()
            if not known:
                raise NotFoundError(f"no metric {request.metric_name!r}; nothing was recorded under this name yet")
            sets = {row.number: row.labels for row in known}
            units = {row.number: row.unit for row in known}
            read = {text: json.loads(text) for text in sets.values()}
            wanted = {text for text, labels in read.items() if all(one.holds(labels) for one in matchers)}
            if len(wanted) > MAX_SERIES:
                message = f"{request.metric_name} has {len(wanted)} series there, {MAX_SERIES} are answered at most"
                raise ResourceExhaustedError(f"{message}; add label_matchers", reason="QUOTA_EXCEEDED")
            numbers = [number for number, text in sets.items() if text in wanted]
            rows: list[Any] = []
            for first in range(0, len(numbers), MAX_SERIES):
                query = _values(numbers[first : first + MAX_SERIES], begin, end, width, request.query_type)
                rows += (await connection.execute(query)).all()
        if len(rows) > MAX_POINTS:
            message = f"{request.metric_name} has more than {MAX_POINTS} values there; give a granularity or less time"
            raise ResourceExhaustedError(message, reason="QUOTA_EXCEEDED")
        return _response(request.metric_name, rows, sets=sets, units=units, read=read)


def _values(
    numbers: Sequence[int], begin: int, end: int, width: int | None, kind: "v1.MetricQueryType.ValueType"
) -> sa.Select[Any]:
    c = points.c
    inside = sa.and_(c.series.in_(numbers), c.at_ns >= begin, c.at_ns <= end)
    if kind == v1.METRIC_QUERY_TYPE_INSTANT:
        last = sa.select(c.series, sa.func.max(c.at_ns).label("at_ns")).where(inside).group_by(c.series).subquery()
        same = sa.and_(c.series == last.c.series, c.at_ns == last.c.at_ns)
        chosen = sa.select(c.series, c.at_ns, sa.func.max(c.value).label("value")).join_from(points, last, same)
        return chosen.group_by(c.series, c.at_ns)
    if width is None:
        return sa.select(c.series, c.at_ns, c.value).where(inside).order_by(c.at_ns, c.number).limit(MAX_POINTS + 1)
    bucket = (c.at_ns - c.at_ns % sa.literal(width, sa.BigInteger)).label("bucket")
    parts = sa.select(c.series, bucket, c.value).where(inside).subquery()
    grouped = sa.select(parts.c.series, parts.c.bucket.label("at_ns"), sa.func.avg(parts.c.value).label("value"))
    return grouped.group_by(parts.c.series, parts.c.bucket).order_by(parts.c.bucket).limit(MAX_POINTS + 1)


def _response(
    metric: str,
    rows: Sequence[Any],
    *,
    sets: Mapping[int, str],
    units: Mapping[int, str],
    read: Mapping[str, Mapping[str, str]],
) -> v1.QueryMetricsResponse:
    by_labels: dict[str, v1.MetricSeries] = {}
    for row in sorted(rows, key=lambda one: one.at_ns):
        text = sets[row.series]
        if text not in by_labels:
            labels = [v1.MetricLabel(name=name, value=value) for name, value in read[text].items()]
            by_labels[text] = v1.MetricSeries(metric=metric, labels=labels)
        by_labels[text].values.add(timestamp=stamp(row.at_ns), value=row.value, unit=units[row.series])
    return v1.QueryMetricsResponse(data=[by_labels[text] for text in sorted(by_labels)])


def _time(request: v1.QueryMetricsRequest) -> tuple[int, int]:
    for field in ("metric_name", "start_time"):
        if not (request.metric_name if field == "metric_name" else request.HasField("start_time")):
            raise InvalidArgumentError(f"{field} is missing", reason="MISSING_FIELD", field=field)
    begin = nanoseconds(request.start_time, field="start_time")
    end = nanoseconds(request.end_time, field="end_time") if request.HasField("end_time") else time.time_ns()
    if begin > end:
        raise InvalidArgumentError("start_time is later than end_time; exchange them", field="start_time")
    return begin, end


def _width(request: v1.QueryMetricsRequest) -> int | None:
    if not request.HasField("granularity"):
        return None
    found = _WIDTH.match(request.granularity)
    if found is None:
        message = f"granularity {request.granularity!r} is none; give a number of s, m, h or d, for example 1m"
        raise InvalidArgumentError(message, field="granularity")
    if request.query_type == v1.METRIC_QUERY_TYPE_INSTANT:
        message = "granularity cannot be given for an instant, which has one value; leave one out"
        raise InvalidArgumentError(message, field="granularity")
    return int(found[1]) * _UNITS[found[2]]


def _compiled(pattern: str, *, field: str) -> Any:  # noqa: ANN401 - re2 publishes no types
    if len(pattern) > MAX_PATTERN:
        raise InvalidArgumentError(f"{field} is too long for a pattern; {MAX_PATTERN} at most", field=field)
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise InvalidArgumentError(f"{field} is no pattern of RE2: {reason}", field=field) from error

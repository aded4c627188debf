"""Metadata filters: what a caller asks for, checked, and what it means.

A bank's metadata is turned into facts when it is stored: nulls are dropped (a null is a missing key), moments of
declared TIME fields become seconds since 1970. Filters are checked and turned in the same way, so that below this
module values are only booleans, numbers, strings and lists, compared by these rules, the same on every backend:

- values of different types are unequal, and neither is greater; true is no number;
- EQ and IN match a list when one of its members does; a list is neither greater nor less than anything;
- a missing key matches NE, NIN and EXISTS false, and nothing else; NOT negates whatever its filter answers;
- strings are ordered by code point.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from google.protobuf import json_format

from llamastack import v1
from stack_client.content import plain
from stack_client.errors import InvalidArgumentError

Operator: TypeAlias = Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "exists"]
Scalar: TypeAlias = bool | float | str
Facts: TypeAlias = Mapping[str, Any]
"""Metadata as filters see it: JSON values without nulls; numbers are doubles, whole ones written as integers."""

_RFC_3339 = re.compile(
    r"(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ](?P<minute>[0-9]{2}:[0-9]{2}):(?P<second>[0-9]{2})"
    r"(?P<fraction>\.[0-9]+)?(?P<offset>[Zz]|[+-][0-9]{2}:[0-9]{2})?"
)
MAX_DEPTH = 16
MAX_FILTERS = 100
MAX_LIST = 10_000
"""Values of one list, and of all lists of one filter."""
MAX_COMPARISONS = 500
"""Of one filter: what a database compiles within a tenth of a second."""
_OPERATORS: Mapping[int, Operator] = {
    v1.FILTER_OPERATOR_EQ: "eq",
    v1.FILTER_OPERATOR_NE: "ne",
    v1.FILTER_OPERATOR_GT: "gt",
    v1.FILTER_OPERATOR_GTE: "gte",
    v1.FILTER_OPERATOR_LT: "lt",
    v1.FILTER_OPERATOR_LTE: "lte",
    v1.FILTER_OPERATOR_IN: "in",
    v1.FILTER_OPERATOR_NIN: "nin",
    v1.FILTER_OPERATOR_EXISTS: "exists",
}
_ORDERED: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": lambda have, want: have > want,
    "gte": lambda have, want: have >= want,
    "lt": lambda have, want: have < want,
    "lte": lambda have, want: have <= want,
}
_TYPES: Mapping[int, tuple[str, Callable[[Any], bool]]] = {
    v1.METADATA_FIELD_TYPE_STRING: ("a string", lambda value: isinstance(value, str)),
    v1.METADATA_FIELD_TYPE_NUMBER: ("a number", lambda value: _kind(value) == "number"),
    v1.METADATA_FIELD_TYPE_BOOLEAN: ("true or false", lambda value: isinstance(value, bool)),
    v1.METADATA_FIELD_TYPE_STRING_LIST: (
        "a list of strings",
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    ),
    v1.METADATA_FIELD_TYPE_TIME: ("a time as in RFC 3339", lambda value: _moment(value) is not None),
}


@dataclass(frozen=True, slots=True)
class Compare:
    """Compares the value of one key."""

    operator: Operator
    key: str
    value: Scalar | tuple[Scalar, ...]
    """A tuple for `in` and `nin`, True or False for `exists`, else one value; numbers are floats."""


@dataclass(frozen=True, slots=True)
class And:
    """All match."""

    filters: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    """At least one matches."""

    filters: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """The filter does not match."""

    filter: "Filter"


Filter: TypeAlias = Compare | And | Or | Not
Fields: TypeAlias = Mapping[str, int]
"""Declared metadata fields: a `MetadataFieldType` by key; empty = everything is allowed."""


def declared(fields: Sequence[v1.MetadataField]) -> Fields:
    """Declared fields by key."""
    return {field.name: field.type for field in fields}


def parse(message: v1.MetadataFilter | None, *, fields: Fields, field: str) -> Filter | None:
    """The filter that a message holds; None where it holds none.

    Args:
        message: Of the request; None or empty means no filter.
        fields: The bank's declared fields.
        field: Name of the request's field, for errors.

    Raises:
        InvalidArgumentError: If it is incomplete, too deep or too large, or names an undeclared field or a wrong type.
    """
    if message is None or message.WhichOneof("filter") is None:
        return None
    _check_size(message, field)
    return _parse(message, fields, field, depth=1)


def whole(value: float) -> float:
    """A number as JSON is to write it: digits mean the same to readers of doubles and of decimals, 1e300 does not."""
    return int(value) if value.is_integer() else value


def matches(wanted: Filter | None, facts: Facts) -> bool:
    """Whether facts satisfy a filter; the definition that every backend is tested against."""
    match wanted:
        case None:
            return True
        case Compare():
            return _compare(wanted, facts.get(wanted.key))
        case And(filters):
            return all(matches(one, facts) for one in filters)
        case Or(filters):
            return any(matches(one, facts) for one in filters)
        case Not(one):
            return not matches(one, facts)


def facts_of(metadata: Mapping[str, Any], *, fields: Fields, field: str) -> dict[str, Any]:
    """Metadata as filters see it.

    Raises:
        InvalidArgumentError: If a value breaks its declared type.
    """
    facts = {}
    for key, value in metadata.items():
        if value is None:
            continue
        value = _doubles(value)  # noqa: PLW2901 (what is stored)
        if key in fields:
            name, fits = _TYPES[fields[key]]
            if not fits(value):
                raise InvalidArgumentError(f"{field}.{key}: {value!r} is not {name}, as the bank declares", field=field)
            facts[key] = _moment(value) if fields[key] == v1.METADATA_FIELD_TYPE_TIME else value
        else:
            facts[key] = value
    return facts


def _check_size(message: v1.MetadataFilter, field: str) -> None:
    """Refuse a filter that is too large as a whole; a filter of few parts nests into many."""
    comparisons, values, pending = 0, 0, [(message, 1)]
    while pending:
        one, depth = pending.pop()
        if one.WhichOneof("filter") == "comparison":
            comparisons += 1
            values += len(one.comparison.value.list_value.values)
        elif depth <= MAX_DEPTH:  # what is deeper is refused as such
            pending += [(inner, depth + 1) for inner in one.compound.filters]
        if comparisons > MAX_COMPARISONS:
            message_ = f"{field} has more than {MAX_COMPARISONS} comparisons; compare with lists (in), or ask twice"
            raise InvalidArgumentError(message_, field=field)
        if values > MAX_LIST:
            message_ = f"{field} has more than {MAX_LIST} values in its lists; ask twice, each time for fewer"
            raise InvalidArgumentError(message_, field=field)


def _doubles(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """A value whose whole numbers are doubles, as the filters' are, written with all their digits."""
    if isinstance(value, list):
        return [_doubles(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return whole(float(value))


def _parse(message: v1.MetadataFilter, fields: Fields, field: str, *, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise InvalidArgumentError(f"{field}: nested more than {MAX_DEPTH} deep", field=field)
    kind = message.WhichOneof("filter")
    if kind == "comparison":
        return _parse_comparison(message.comparison, fields, f"{field}.comparison")
    if kind is None:
        raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
    compound, field = message.compound, f"{field}.compound"
    count = len(compound.filters)
    if not 1 <= count <= MAX_FILTERS:
        raise InvalidArgumentError(f"{field}.filters has {count} filters; allowed: 1 to {MAX_FILTERS}", field=field)
    inner = tuple(
        _parse(one, fields, f"{field}.filters[{index}]", depth=depth + 1) for index, one in enumerate(compound.filters)
    )
    match compound.type:
        case v1.COMPOUND_OPERATOR_AND:
            return And(inner)
        case v1.COMPOUND_OPERATOR_OR:
            return Or(inner)
        case v1.COMPOUND_OPERATOR_NOT if count == 1:
            return Not(inner[0])
        case v1.COMPOUND_OPERATOR_NOT:
            raise InvalidArgumentError(f"{field}: not takes exactly one filter, here are {count}", field=field)
    raise InvalidArgumentError(f"{field}.type: give and, or, or not", reason="MISSING_FIELD", field=field)


def _parse_comparison(message: v1.ComparisonFilter, fields: Fields, field: str) -> Compare:
    operator = _OPERATORS.get(message.type)
    if operator is None:
        known = ", ".join(_OPERATORS.values())
        raise InvalidArgumentError(f"{field}.type: give one of {known}", reason="MISSING_FIELD", field=field)
    if not message.key:
        raise InvalidArgumentError(f"{field}.key is empty", reason="MISSING_FIELD", field=field)
    if fields and message.key not in fields:
        known = ", ".join(sorted(fields))
        raise InvalidArgumentError(f"{field}.key: the bank declares no {message.key!r}; it has {known}", field=field)
    try:
        value = plain(json_format.MessageToDict(message.value)) if message.HasField("value") else None
    except (json_format.Error, ValueError) as error:  # NaN and infinity are no JSON
        raise InvalidArgumentError(f"{field}.value: give finite numbers", field=field) from error
    if operator == "exists":
        if not isinstance(value, bool) and value is not None:
            raise InvalidArgumentError(f"{field}.value: exists takes true or false", field=field)
        return Compare(operator, message.key, value is not False)
    if operator in {"in", "nin"}:
        if not isinstance(value, list) or len(value) > MAX_LIST:
            message_ = f"{field}.value: {operator} takes a list of at most {MAX_LIST} values"
            raise InvalidArgumentError(message_, field=field)
        return Compare(operator, message.key, tuple(_scalar(one, message.key, fields, field) for one in value))
    return Compare(operator, message.key, _scalar(value, message.key, fields, field))


def _scalar(value: Any, key: str, fields: Fields, field: str) -> Scalar:  # noqa: ANN401 (JSON)
    declared_type = fields.get(key)
    if declared_type == v1.METADATA_FIELD_TYPE_STRING_LIST:
        declared_type = v1.METADATA_FIELD_TYPE_STRING  # one member is looked for
    if declared_type is not None:
        name, fits = _TYPES[declared_type]
        if not fits(value):
            raise InvalidArgumentError(f"{field}.value: {key!r} is declared as {name}, not {value!r}", field=field)
        if declared_type == v1.METADATA_FIELD_TYPE_TIME:
            return _moment(value) or 0.0
    if _kind(value) == "number" and math.isfinite(value):
        return float(value)
    if isinstance(value, bool | str):
        return value
    message = f"{field}.value: give a string, a finite number, true or false; for a missing value use exists"
    raise InvalidArgumentError(message, field=field)


def _compare(wanted: Compare, have: Any) -> bool:  # noqa: ANN401 (JSON)
    match wanted.operator:
        case "exists":
            return (have is not None) is wanted.value
        case "eq":
            return _equals_one(have, (wanted.value,))
        case "ne":
            return not _equals_one(have, (wanted.value,))
        case "in":
            return _equals_one(have, wanted.value)
        case "nin":
            return not _equals_one(have, wanted.value)
    same = _kind(have) == _kind(wanted.value) and _kind(have) in {"number", "string"}
    return same and _ORDERED[wanted.operator](have, wanted.value)


def _equals_one(have: Any, wanted: Any) -> bool:  # noqa: ANN401 (JSON)
    members = have if isinstance(have, list) else [have]
    return any(_kind(member) == _kind(one) and member == one for member in members for one in wanted)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "other"


def _moment(value: object) -> float | None:
    """Seconds since 1970 of an RFC 3339 text; without an offset it is UTC."""
    parts = _RFC_3339.fullmatch(value) if isinstance(value, str) else None
    if parts is None:
        return None
    leap = parts["second"] == "60"
    second = "59" if leap else parts["second"]
    text = f"{parts['day']}T{parts['minute']}:{second}{parts['fraction'] or ''}{parts['offset'] or ''}"
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() + leap


__all__ = [
    "And",
    "Compare",
    "Facts",
    "Fields",
    "Filter",
    "Not",
    "Or",
    "declared",
    "facts_of",
    "matches",
    "parse",
    "whole",
]

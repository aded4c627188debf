"""Metadata filters as Python writes them.

{"year": 1999}                                   # equal
{"year": {"gte": 1990, "lt": 2000}, "lang": "en"}  # all of these
{"or": [{"tag": {"in": ["a", "b"]}}, {"not": {"draft": {"exists": True}}}]}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from stack_client.errors import InvalidArgumentError

OPERATORS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "exists")
COMPOUNDS = ("and", "or", "not")


def metadata_filter(where: Mapping[str, Any] | v1.MetadataFilter | None) -> v1.MetadataFilter | None:
    """A filter as the protos write it; None stays None.

    Args:
        where: Keys with what they equal, or with a mapping of operators; `and` and `or` take lists of filters, `not`
            one. Several keys must all match. The form of OpenAI, with `type`, `key` and `value`, is taken as well.

    Raises:
        InvalidArgumentError: If it cannot be read.
    """
    if where is None or isinstance(where, v1.MetadataFilter):
        return where
    if not where:
        raise InvalidArgumentError("the filter is empty; leave it out, or name a key", field="where")
    if "type" in where and ("key" in where or "filters" in where):
        return _typed(where)
    parts = [part for key, value in where.items() for part in _parts(key, value)]
    return parts[0] if len(parts) == 1 else _compound("and", parts)


def plain_filter(where: v1.MetadataFilter) -> dict[str, Any]:
    """A filter of the protos as JSON, in the form of OpenAI, which `metadata_filter` reads back."""
    if where.WhichOneof("filter") == "compound":
        kind = v1.CompoundOperator.Name(where.compound.type).removeprefix("COMPOUND_OPERATOR_").lower()
        return {"type": kind, "filters": [plain_filter(one) for one in where.compound.filters]}
    one = where.comparison
    operator = v1.FilterOperator.Name(one.type).removeprefix("FILTER_OPERATOR_").lower()
    return {"type": operator, "key": one.key, "value": json_format.MessageToDict(one.value)}


def _parts(key: str, value: Any) -> list[v1.MetadataFilter]:  # noqa: ANN401 (JSON)
    if key in {"and", "or"} and isinstance(value, Sequence) and not isinstance(value, str):
        return [_compound(key, [_some(one) for one in value])]
    if key == "not" and isinstance(value, Mapping):
        return [_compound("not", [_some(value)])]
    if isinstance(value, Mapping):
        if not value:
            raise InvalidArgumentError(f"filter {key!r} names no operator; there are {_known()}", field="where")
        return [_comparison(operator, key, one) for operator, one in value.items()]
    return [_comparison("eq", key, value)]


def _some(where: Any) -> v1.MetadataFilter:  # noqa: ANN401 (JSON)
    found = metadata_filter(where) if isinstance(where, Mapping | v1.MetadataFilter) else None
    if found is None:
        raise InvalidArgumentError(f"{where!r} is no filter; write it as {{key: value}}", field="where")
    return found


def _typed(where: Mapping[str, Any]) -> v1.MetadataFilter:
    if "filters" in where:
        return _compound(str(where["type"]), [_some(one) for one in where["filters"]])
    return _comparison(str(where["type"]), str(where["key"]), where.get("value"))


def _comparison(operator: str, key: str, value: Any) -> v1.MetadataFilter:  # noqa: ANN401 (JSON)
    if operator not in OPERATORS:
        raise InvalidArgumentError(f"filter {key!r}: no operator {operator!r}; there are {_known()}", field="where")
    message = v1.ComparisonFilter(type=v1.FilterOperator.Value(f"FILTER_OPERATOR_{operator.upper()}"), key=key)
    try:
        plain: Any = list(value) if isinstance(value, tuple | set | frozenset) else value
        json_format.ParseDict(plain, message.value)
    except (json_format.ParseError, TypeError) as error:
        raise InvalidArgumentError(f"filter {key!r}: {value!r} is no JSON value", field="where") from error
    return v1.MetadataFilter(comparison=message)


def _compound(kind: str, filters: Sequence[v1.MetadataFilter]) -> v1.MetadataFilter:
    if kind not in COMPOUNDS:
        raise InvalidArgumentError(f"no compound {kind!r}; there are {', '.join(COMPOUNDS)}", field="where")
    operator = v1.CompoundOperator.Value(f"COMPOUND_OPERATOR_{kind.upper()}")
    return v1.MetadataFilter(compound=v1.CompoundFilter(type=operator, filters=filters))


def _known() -> str:
    return ", ".join(OPERATORS)

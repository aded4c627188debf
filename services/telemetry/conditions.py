"""Conditions on attributes as SQL, where names and values of callers are parameters only."""

import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from google.protobuf.struct_pb2 import Value

from llamastack import v1
from services.telemetry.tables import spans
from stack_client.errors import InvalidArgumentError

Condition = sa.ColumnElement[bool]
Scalar = str | float | bool | None
_OPS = {v1.QUERY_CONDITION_OP_EQ, v1.QUERY_CONDITION_OP_NE, v1.QUERY_CONDITION_OP_GT, v1.QUERY_CONDITION_OP_LT}
MAX_CONDITIONS = 32


def conditions(filters: Iterable[v1.QueryCondition], *, dialect: str) -> list[Condition]:
    """What a span's attributes must meet.

    Raises:
        InvalidArgumentError: If a condition is none.
    """
    listed = list(filters)
    if len(listed) > MAX_CONDITIONS:
        message = f"attribute_filters has {len(listed)} conditions; give {MAX_CONDITIONS} at most"
        raise InvalidArgumentError(message, field="attribute_filters")
    make = _postgresql if dialect == "postgresql" else _sqlite
    return [_condition(one, f"attribute_filters[{index}]", make) for index, one in enumerate(listed)]


def _condition(one: v1.QueryCondition, field: str, make: Any) -> Condition:  # noqa: ANN401 - one of the two below
    if not one.key:
        raise InvalidArgumentError(f"{field}.key is missing", reason="MISSING_FIELD", field=f"{field}.key")
    if one.op not in _OPS:
        raise InvalidArgumentError(f"{field}.op is none; give eq, ne, gt or lt", field=f"{field}.op")
    value = _scalar(one.value, field=f"{field}.value")
    if one.op in {v1.QUERY_CONDITION_OP_EQ, v1.QUERY_CONDITION_OP_NE}:
        equal: Condition = make(one.key, "=", value)
        return sa.not_(equal) if one.op == v1.QUERY_CONDITION_OP_NE else equal
    if value is None or isinstance(value, bool):
        message = f"{field}.value is compared by order; give a number or a text"
        raise InvalidArgumentError(message, field=f"{field}.value")
    result: Condition = make(one.key, ">" if one.op == v1.QUERY_CONDITION_OP_GT else "<", value)
    return result


def _scalar(value: Value, *, field: str) -> Scalar:
    match value.WhichOneof("kind"):
        case "null_value":
            return None
        case "number_value" if math.isfinite(value.number_value):
            return value.number_value
        case "bool_value":
            return value.bool_value
        case "string_value":
            return value.string_value.replace("\0", "\ufffd")  # as it is stored
        case _:
            raise InvalidArgumentError(f"{field} is missing, or no number, text, boolean or null", field=field)


_names = itertools.count()


def _sqlite(key: str, operator: str, value: Scalar) -> Condition:
    """Some entry of the attributes has the key, the value's type, and meets the comparison."""
    entries = sa.func.json_each(spans.c.attributes).table_valued("key", "value", "type", name=f"e{next(_names)}")
    test: Condition
    if value is None or isinstance(value, bool):
        kinds, test = [json.dumps(value)], sa.true()  # SQLite's types are called `null`, `true` and `false`
    else:
        kinds = ["text"] if isinstance(value, str) else ["integer", "real"]
        test = sa.literal_column(f"{entries.name}.value").op(operator)(value)
    where = sa.and_(entries.c.key == key, entries.c.type.in_(kinds), test)
    return sa.exists(sa.select(sa.literal(1)).select_from(entries).where(where).correlate(spans))


def _postgresql(key: str, operator: str, value: Scalar) -> Condition:
    """The same over JSONB, whose order of texts is not by code point."""
    attributes: Any = spans.c.attributes
    entry = attributes.op("->", return_type=attributes.type)(sa.literal(key, sa.Text))
    kind = sa.func.jsonb_typeof(entry)
    if value is None or isinstance(value, bool):
        test = sa.cast(entry, sa.Text) == json.dumps(value)
    elif isinstance(value, str):
        said = attributes.op("->>", return_type=sa.Text())(sa.literal(key, sa.Text)).collate("C")
        test = sa.and_(kind == "string", said.op(operator, is_comparison=True)(sa.literal(value, sa.Text)))
    else:
        said = sa.cast(sa.literal(json.dumps(value), sa.Text), attributes.type)
        test = sa.and_(kind == "number", entry.op(operator, is_comparison=True)(said))
    return sa.func.coalesce(test, sa.false())

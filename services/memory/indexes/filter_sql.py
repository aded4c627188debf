"""Metadata filters as SQL over a JSON column, by the rules of `filters` on SQLite and PostgreSQL alike.

SQLite: `json_each(facts)` finds a key whatever characters it has; the faster path syntax is used for plain keys.
PostgreSQL: jsonb containment, in which an array contains its members and a scalar itself, is just what EQ means.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from services.memory.filters import And, Compare, Filter, Not, Or, Scalar

Condition: TypeAlias = sa.ColumnElement[bool]

_PLAIN = re.compile(r"[A-Za-z0-9_\- ]+")
"""Keys that SQLite's path syntax finds as they are; before 3.45 it compares with the text of the JSON as written."""
_ORDER = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def sql_filter(wanted: Filter | None, column: sa.ColumnElement[Any], dialect: str) -> Condition:
    """The condition under which a row's facts match; never NULL.

    Args:
        wanted: None matches everything.
        column: JSON object of facts: text on SQLite, jsonb on PostgreSQL.
        dialect: `sqlite` or `postgresql`.
    """
    match wanted:
        case None:
            return sa.true()
        case And(filters):
            return sa.and_(sa.true(), *(sql_filter(one, column, dialect) for one in filters))
        case Or(filters):
            return sa.or_(sa.false(), *(sql_filter(one, column, dialect) for one in filters))
        case Not(one):
            return sa.not_(sql_filter(one, column, dialect))
        case Compare():
            return (_compare_postgres if dialect == "postgresql" else _compare_sqlite)(wanted, column)


def _compare_sqlite(wanted: Compare, column: sa.ColumnElement[Any]) -> Condition:
    path = f'$."{wanted.key}"' if _PLAIN.fullmatch(wanted.key) else None
    match wanted.operator:
        case "exists":
            exists = _sqlite_exists(column, wanted.key, path)
            return exists if wanted.value else sa.not_(exists)
        case "eq" | "in":
            return _sqlite_equals(column, wanted.key, path, _values(wanted))
        case "ne" | "nin":
            return sa.not_(_sqlite_equals(column, wanted.key, path, _values(wanted)))
    value = wanted.value
    if isinstance(value, bool | tuple):
        return sa.false()
    if path is not None:
        kind, have = sa.func.json_type(column, path), sa.func.json_extract(column, path)
        return sa.func.coalesce(_ordered(kind, have, wanted.operator, value), sa.false())
    entry = _each(column)
    ordered = _ordered(entry.c.type, entry.c.atom, wanted.operator, value)
    return sa.exists(sa.select(1).select_from(entry).where(entry.c.key == wanted.key, ordered))


def _ordered(kind: Any, have: Any, operator: str, value: Scalar) -> Condition:  # noqa: ANN401 (SQL expressions)
    if isinstance(value, str):
        # Both sides are read by the same rules; a bound text has no collation of its own, so bytes decide.
        return sa.and_(kind == "text", have.bool_op(_ORDER[operator])(value))
    return sa.and_(kind.in_(["integer", "real"]), have.bool_op(_ORDER[operator])(_number(value)))


def _number(value: float) -> sa.ColumnElement[Any]:
    """A number read by SQLite's JSON reader, which may round the last digit differently than a bound one."""
    return sa.func.json_extract(json.dumps([value]), "$[0]")


def _sqlite_exists(column: sa.ColumnElement[Any], key: str, path: str | None) -> Condition:
    if path is not None:
        return sa.func.coalesce(sa.func.json_type(column, path) != "null", sa.false())
    entry = _each(column)
    return sa.exists(sa.select(1).select_from(entry).where(entry.c.key == key, entry.c.type != "null"))


def _sqlite_equals(column: sa.ColumnElement[Any], key: str, path: str | None, values: Sequence[Scalar]) -> Condition:
    """A scalar is one row of json_each, as each member of a list is; an object's rows are no members."""
    if path is not None:
        kind, member = sa.func.json_type(column, path), _each(column, path)
        listed = sa.exists(sa.select(1).select_from(member).where(_is_one(member.c.type, member.c.atom, values)))
        scalar = _is_one(kind, sa.func.json_extract(column, path), values)
        return sa.case((kind == "array", listed), (kind == "object", sa.false()), else_=_known(scalar))
    entry = _each(column)
    inside = sa.case((entry.c.type == "array", entry.c.value), else_="[]")
    member = _each(inside)
    within = sa.exists(
        sa.select(1).select_from(member).where(_is_one(member.c.type, member.c.atom, values)).correlate(entry)
    )
    return sa.exists(
        sa.select(1)
        .select_from(entry)
        .where(entry.c.key == key, sa.or_(_is_one(entry.c.type, entry.c.atom, values), within))
    )


def _is_one(kind: Any, have: Any, values: Sequence[Scalar]) -> Condition:  # noqa: ANN401 (SQL expressions)
    """Whether a value of SQLite's JSON is one of some."""
    choices = [kind == ("true" if value else "false") for value in values if isinstance(value, bool)]
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if isinstance(value, float | int) and not isinstance(value, bool)]
    for kinds, some in ((["text"], texts), (["integer", "real"], numbers)):
        if len(some) == 1:
            choices.append(sa.and_(kind.in_(kinds), have == sa.func.json_extract(json.dumps(some), "$[0]")))
        elif some:
            listed = _each(json.dumps(some))
            choices.append(sa.and_(kind.in_(kinds), have.in_(sa.select(listed.c.value))))
    return sa.or_(sa.false(), *choices)


def _known(condition: Condition) -> Condition:
    return sa.func.coalesce(condition, sa.false())


def _each(*arguments: Any) -> Any:  # noqa: ANN401 (a table-valued function)
    return sa.func.json_each(*arguments).table_valued("key", "value", "type", "atom").alias()


def _compare_postgres(wanted: Compare, column: sa.ColumnElement[Any]) -> Condition:
    if "\0" in wanted.key:  # such a key cannot be stored
        missing = wanted.operator in {"ne", "nin"} or (wanted.operator == "exists" and not wanted.value)
        return sa.true() if missing else sa.false()
    have = sa.type_coerce(column, JSONB).op("->")(sa.bindparam(None, wanted.key, sa.Text))
    match wanted.operator:
        case "exists":
            exists = sa.func.coalesce(sa.func.jsonb_typeof(have) != "null", sa.false())
            return exists if wanted.value else sa.not_(exists)
        case "eq" | "in":
            return _postgres_equals(have, _values(wanted))
        case "ne" | "nin":
            return sa.not_(_postgres_equals(have, _values(wanted)))
    value = wanted.value
    if isinstance(value, bool | tuple) or (isinstance(value, str) and "\0" in value):
        return sa.false()
    if isinstance(value, str):
        text = sa.collate(have.op("#>>", return_type=sa.Text())(sa.literal_column("'{}'")), "C")
        ordered = sa.and_(sa.func.jsonb_typeof(have) == "string", text.bool_op(_ORDER[wanted.operator])(value))
    else:
        ordered = sa.and_(sa.func.jsonb_typeof(have) == "number", have.bool_op(_ORDER[wanted.operator])(_jsonb(value)))
    return sa.func.coalesce(ordered, sa.false())


def _postgres_equals(have: sa.ColumnElement[Any], values: Sequence[Scalar]) -> Condition:
    storable = [value for value in values if not (isinstance(value, str) and "\0" in value)]
    if not storable:
        return sa.false()
    if len(storable) == 1:
        return sa.func.coalesce(have.bool_op("@>")(_jsonb(storable[0])), sa.false())
    wanted = sa.func.jsonb_array_elements(_jsonb(storable)).table_valued(sa.column("value", JSONB)).alias()
    member = sa.case((sa.func.jsonb_typeof(have) == "array", have), else_=sa.func.jsonb_build_array(have))
    listed = sa.func.jsonb_array_elements(member).table_valued(sa.column("value", JSONB)).alias()
    inside = sa.select(1).select_from(listed).where(listed.c.value.in_(sa.select(wanted.c.value)))
    return sa.and_(have.is_not(None), sa.exists(inside))


def _jsonb(value: Any) -> sa.ColumnElement[Any]:  # noqa: ANN401 (JSON)
    return sa.cast(sa.bindparam(None, json.dumps(value), sa.Text), JSONB)


def _values(wanted: Compare) -> tuple[Scalar, ...]:
    return wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)

"""Metadata filters as SQL over a JSON column, by the rules of `filters` on SQLite and PostgreSQL alike.

SQLite: `json_each(facts)` finds a key whatever characters it has; the faster path syntax is used for plain keys.
PostgreSQL: jsonb containment, in which an array contains its members and a scalar itself, is just what EQ means.

A filter is one expression that writes its SQL itself: made of SQLAlchemy's, hundreds of comparisons cost a second of
the event loop. Values are bound, each once; what is written between them is ours and holds no percent sign.
"""

# ruff: noqa: S608 (values are bound; the rest is ours)

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from services.memory.filters import And, Compare, Filter, Not, Or, Scalar, whole

Condition: TypeAlias = sa.ColumnElement[bool]
Bind: TypeAlias = Callable[[str], str]
"""Binds a text and answers its place in the SQL."""

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
    return sa.true() if wanted is None else _Matches(wanted, column, dialect)


class _Matches(sa.ColumnElement[bool]):
    """Whether facts match a filter."""

    inherit_cache = False
    type = sa.Boolean()

    def __init__(self, wanted: Filter, column: sa.ColumnElement[Any], dialect: str) -> None:
        self.wanted = wanted
        self.column = column
        self.written_for = dialect

    @property
    def _from_objects(self) -> Any:  # noqa: ANN401 (SQLAlchemy's: the tables that a statement selects from)
        return self.column._from_objects  # noqa: SLF001

    def self_group(self, against: Any = None) -> "_Matches":  # noqa: ANN401, ARG002
        """It has parentheses of its own."""
        return self


@compiles(_Matches)
def _write(element: _Matches, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    bound: dict[str, str] = {}

    def bind(value: str) -> str:
        if value not in bound:
            bound[value] = compiler.process(sa.bindparam(None, value, sa.Text, unique=True), **options)
        return bound[value]

    column = compiler.process(element.column, **options)
    compare = _postgres if element.written_for == "postgresql" else _sqlite
    return f"({_filter(element.wanted, lambda one: compare(one, column, bind))})"


def _filter(wanted: Filter, compare: Callable[[Compare], str]) -> str:
    match wanted:
        case And(filters):
            return f"({' AND '.join(_filter(one, compare) for one in _deepest_first(filters)) or _truth(known=True)})"
        case Or(filters):
            return _any_of(_filter(one, compare) for one in _deepest_first(filters))
        case Not(one):
            return f"NOT {_filter(one, compare)}"
        case Compare():
            negated = wanted.operator in {"ne", "nin"} or (wanted.operator == "exists" and not wanted.value)
            return f"NOT {compare(wanted)}" if negated else compare(wanted)


def _deepest_first(filters: Sequence[Filter]) -> list[Filter]:
    """The parser of SQLite remembers what comes before a bracket, and no more than a hundred words."""
    return sorted(filters, key=_depth, reverse=True)


def _depth(wanted: Filter) -> int:
    match wanted:
        case And(filters) | Or(filters):
            return 1 + max((_depth(one) for one in filters), default=0)
        case Not(one):
            return 1 + _depth(one)
        case Compare():
            return 0


def _truth(*, known: bool) -> str:
    """True or false in both languages."""
    return "(1 = 1)" if known else "(1 = 0)"


def _any_of(conditions: Iterator[str]) -> str:
    return f"({' OR '.join(conditions) or _truth(known=False)})"


def _sqlite(wanted: Compare, column: str, bind: Bind) -> str:
    if not _PLAIN.fullmatch(wanted.key):
        key = bind(wanted.key)
        inside = _sqlite_entry(wanted, bind)
        return f"EXISTS (SELECT 1 FROM json_each({column}) AS entry WHERE entry.key = {key} AND {inside})"
    path = bind(f'$."{wanted.key}"')
    kind, have = f"json_type({column}, {path})", f"json_extract({column}, {path})"
    match wanted.operator:
        case "exists":
            return f"coalesce({kind} <> 'null', 0)"
        case "eq" | "ne" | "in" | "nin":
            listed = _is_one("member.type", "member.atom", _values(wanted), bind)
            return (
                f"(CASE {kind} WHEN 'array' THEN EXISTS (SELECT 1 FROM json_each({column}, {path}) AS member "
                f"WHERE {listed}) WHEN 'object' THEN 0 ELSE coalesce({_is_one(kind, have, _values(wanted), bind)}, 0) "
                "END)"
            )
    return f"coalesce({_sqlite_ordered(kind, have, wanted, bind)}, 0)"


def _sqlite_entry(wanted: Compare, bind: Bind) -> str:
    """What a row of json_each must be, for a comparison."""
    match wanted.operator:
        case "exists":
            return "entry.type <> 'null'"
        case "eq" | "ne" | "in" | "nin":
            listed = _is_one("member.type", "member.atom", _values(wanted), bind)
            members = "json_each(CASE entry.type WHEN 'array' THEN entry.value ELSE '[]' END)"
            scalar = _is_one("entry.type", "entry.atom", _values(wanted), bind)
            return f"({scalar} OR EXISTS (SELECT 1 FROM {members} AS member WHERE {listed}))"
    return _sqlite_ordered("entry.type", "entry.atom", wanted, bind)


def _sqlite_ordered(kind: str, have: str, wanted: Compare, bind: Bind) -> str:
    value, operator = wanted.value, _ORDER[wanted.operator]
    if isinstance(value, bool | tuple):
        return _truth(known=False)
    if isinstance(value, str):
        # Both sides are read by the same rules; a bound text has no collation of its own, so bytes decide.
        return f"({kind} = 'text' AND {have} {operator} {bind(value)})"
    return f"({kind} IN ('integer', 'real') AND {have} {operator} {_read(value, bind)})"


def _read(value: Scalar, bind: Bind) -> str:
    """A value read by SQLite's JSON reader, which may round a number's last digit differently than a bound one."""
    return f"json_extract({bind(json.dumps([_exact(value)]))}, '$[0]')"


def _is_one(kind: str, have: str, values: Sequence[Scalar], bind: Bind) -> str:
    """Whether a value of SQLite's JSON is one of some."""
    choices = [f"{kind} = '{'true' if value else 'false'}'" for value in values if isinstance(value, bool)]
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if isinstance(value, float | int) and not isinstance(value, bool)]
    for kinds, some in (("= 'text'", texts), ("IN ('integer', 'real')", numbers)):
        if len(some) == 1:
            choices.append(f"({kind} {kinds} AND {have} = {_read(some[0], bind)})")
        elif some:
            among = bind(json.dumps([_exact(value) for value in some]))
            listed = f"SELECT listed.value FROM json_each({among}) AS listed"
            choices.append(f"({kind} {kinds} AND {have} IN ({listed}))")
    return _any_of(iter(dict.fromkeys(choices)))


def _postgres(wanted: Compare, column: str, bind: Bind) -> str:
    if "\0" in wanted.key:  # such a key cannot be stored
        return _truth(known=False)
    have = f"({column} -> {bind(wanted.key)})"
    match wanted.operator:
        case "exists":
            return f"coalesce(jsonb_typeof({have}) <> 'null', false)"
        case "eq" | "ne" | "in" | "nin":
            return _postgres_equals(have, _values(wanted), bind)
    value, operator = wanted.value, _ORDER[wanted.operator]
    if isinstance(value, bool | tuple) or (isinstance(value, str) and "\0" in value):
        return _truth(known=False)
    if isinstance(value, str):
        text = f"""(({have} #>> '{{}}') COLLATE "C")"""
        return f"coalesce(jsonb_typeof({have}) = 'string' AND {text} {operator} {bind(value)}, false)"
    return f"coalesce(jsonb_typeof({have}) = 'number' AND {have} {operator} {_jsonb(_exact(value), bind)}, false)"


def _postgres_equals(have: str, values: Sequence[Scalar], bind: Bind) -> str:
    storable = [value for value in values if not (isinstance(value, str) and "\0" in value)]
    if not storable:
        return _truth(known=False)
    if len(storable) == 1:
        return f"coalesce({have} @> {_jsonb(_exact(storable[0]), bind)}, false)"
    members = f"CASE jsonb_typeof({have}) WHEN 'array' THEN {have} ELSE jsonb_build_array({have}) END"
    among = _jsonb([_exact(value) for value in storable], bind)
    listed = f"SELECT listed.value FROM jsonb_array_elements({among}) AS listed(value)"
    inside = f"SELECT 1 FROM jsonb_array_elements({members}) AS member(value) WHERE member.value IN ({listed})"
    return f"({have} IS NOT NULL AND EXISTS ({inside}))"


def _jsonb(value: Any, bind: Bind) -> str:  # noqa: ANN401 (JSON)
    return f"CAST({bind(json.dumps(value))} AS jsonb)"


def _exact(value: Scalar) -> Scalar:
    """As facts are written."""
    return whole(value) if isinstance(value, float) else value


def _values(wanted: Compare) -> tuple[Scalar, ...]:
    return wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)

"""Metadata filters for Qdrant, embedded and as a server, by payloads of our own.

Qdrant's own rules of types and lists are not ours, so a chunk's payload holds its facts as terms (`fact_terms`) under
`e`, its numbers under `n` and when it expires under `t`. Strings have no order in Qdrant: who lies between two is asked
of the database first.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import sqlalchemy as sa

from services.memory.bank import Bank
from services.memory.chunks import IndexedChunk
from services.memory.database import Database
from services.memory.filters import And, Compare, Filter, Not, Or
from services.memory.indexes.fact_terms import equal_term, fact_terms, key_term
from services.memory.indexes.filter_sql import sql_filter
from services.memory.tables import chunks

TERMS, EXPIRES = "e", "t"
Resolved: TypeAlias = Mapping[Compare, list[int]]
"""Chunks that match what Qdrant cannot compare."""


class Conditions(Protocol):
    """How one of Qdrant's libraries makes conditions."""

    def among(self, terms: list[str]) -> Any:  # noqa: ANN401 (a condition)
        """One of the terms is there."""

    def between(self, key: str, **bounds: float) -> Any:  # noqa: ANN401 (a condition)
        """A number lies within bounds, `gt`, `gte`, `lt` or `lte`."""

    def numbered(self, numbers: list[int]) -> Any:  # noqa: ANN401 (a condition)
        """Points by number."""

    def every(self, some: list[Any]) -> Any:  # noqa: ANN401 (a filter)
        """All match."""

    def some(self, some: list[Any]) -> Any:  # noqa: ANN401 (a filter)
        """One matches; there is at least one."""

    def none(self, some: list[Any]) -> Any:  # noqa: ANN401 (a filter)
        """None matches."""


def payload(chunk: IndexedChunk) -> dict[str, Any]:
    """What is kept beside a chunk's vector."""
    result: dict[str, Any] = {TERMS: [term for term in fact_terms(chunk.facts) if not term.startswith("r")]}
    numbers = {
        _field(key): float(value)
        for key, value in chunk.facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if numbers:
        result["n"] = numbers
    if chunk.expires_at is not None:
        result[EXPIRES] = chunk.expires_at
    return result


def number_keys(chunk: IndexedChunk) -> Iterator[str]:
    """Payload keys of a chunk's numbers."""
    for key, value in chunk.facts.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"n.{_field(key)}"


async def resolve(database: Database, bank: Bank, wanted: Filter | None) -> Resolved:
    """Ask the database for what Qdrant cannot compare."""
    ordered = {one for one in _comparisons(wanted) if one.operator in _BOUNDS and isinstance(one.value, str)}
    result = {}
    for one in ordered:
        query = sa.select(chunks.c.number).where(chunks.c.bank == bank.number)
        async with database.read() as connection:
            rows = await connection.execute(query.where(sql_filter(one, chunks.c.facts, database.dialect)))
            result[one] = list(rows.scalars())
    return result


def compiled(make: Conditions, wanted: Filter | None, resolved: Resolved, *, now: int) -> Any:  # noqa: ANN401 (a filter)
    """Chunks that live and match."""
    alive = make.none([make.between(EXPIRES, lte=float(now))])
    return alive if wanted is None else make.every([alive, _compiled(make, wanted, resolved)])


_BOUNDS = {"gt", "gte", "lt", "lte"}


def _compiled(make: Conditions, wanted: Filter, resolved: Resolved) -> Any:  # noqa: ANN401 (a filter)
    match wanted:
        case And(filters):
            return make.every([_compiled(make, one, resolved) for one in filters])
        case Or(filters):
            return make.some([_compiled(make, one, resolved) for one in filters])
        case Not(one):
            return make.none([_compiled(make, one, resolved)])
        case Compare():
            return _compare(make, wanted, resolved)


def _compare(make: Conditions, wanted: Compare, resolved: Resolved) -> Any:  # noqa: ANN401 (a filter)
    values = wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)
    terms = [equal_term(wanted.key, value) for value in values]
    match wanted.operator:
        case "exists":
            there = make.among([key_term(wanted.key)])
            return make.every([there]) if wanted.value else make.none([there])
        case "eq" | "in":
            return make.every([make.among(terms) if terms else make.numbered([])])
        case "ne" | "nin":
            return make.none([make.among(terms) if terms else make.numbered([])])
    if isinstance(wanted.value, str):
        return make.every([make.numbered(resolved[wanted])])
    if isinstance(wanted.value, bool | tuple):
        return make.every([make.numbered([])])
    return make.every([make.between(f"n.{_field(wanted.key)}", **{wanted.operator: float(wanted.value)})])


def _comparisons(wanted: Filter | None) -> Iterator[Compare]:
    match wanted:
        case Compare():
            yield wanted
        case Not(one):
            yield from _comparisons(one)
        case And(filters) | Or(filters):
            for one in filters:
                yield from _comparisons(one)


def _field(key: str) -> str:
    """A key as part of a path, in which dots and brackets mean something."""
    return "k" + key.encode("utf-8", "surrogatepass").hex()

"""Metadata filters over an index of terms: every fact is a few terms, every comparison a set of them.

`x"key"` stands for a key that is there, `e"key"=value` for a value or a member of a list, `r"key"=value` for a value
that has an order. Values are JSON, so types never mix. Of what lies between two values, the terms themselves are asked.
"""

import hashlib
import json
from collections.abc import Iterator

import tantivy
from tantivy import Occur, Query

from services.memory.filters import And, Compare, Facts, Filter, Not, Or, matches

LONGEST = 1000
"""Characters of a value that is looked for as it is; longer ones by their hash."""


def fact_terms(facts: Facts) -> Iterator[str]:
    """The terms of a chunk's facts."""
    for key, value in facts.items():
        if value is None:
            continue
        name = json.dumps(key)
        yield f"x{name}"
        for member in value if isinstance(value, list) else [value]:
            if isinstance(member, bool | int | float | str):
                yield _equal(name, member)
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            yield f"r{name}={json.dumps(value)}"


class FilterTerms:
    """Makes queries of filters.

    Args:
        schema: Of the index.
        searcher: Over its terms.
        field: Holds terms of `fact_terms`, each whole.
    """

    def __init__(self, schema: tantivy.Schema, searcher: tantivy.Searcher, field: str) -> None:
        self._schema = schema
        self._searcher = searcher
        self._field = field

    def query(self, wanted: Filter) -> Query:
        """Chunks whose facts match."""
        match wanted:
            case And(filters):
                return Query.boolean_query([(Occur.Must, self.query(one)) for one in filters])
            case Or(filters):
                return Query.boolean_query([(Occur.Should, self.query(one)) for one in filters])
            case Not(one):
                return _but(self.query(one))
            case Compare():
                return self._compare(wanted)

    def _compare(self, wanted: Compare) -> Query:
        name = json.dumps(wanted.key)
        values = wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)
        match wanted.operator:
            case "exists":
                there = self._among([f"x{name}"])
                return there if wanted.value else _but(there)
            case "eq" | "in":
                return self._among([_equal(name, value) for value in values])
            case "ne" | "nin":
                return _but(self._among([_equal(name, value) for value in values]))
        begin = f"r{name}="
        terms = [term for term, _ in self._searcher.terms_with_prefix(self._field, begin)]
        return self._among([term for term in terms if matches(wanted, {wanted.key: json.loads(term[len(begin) :])})])

    def _among(self, terms: list[str]) -> Query:
        return Query.term_set_query(self._schema, self._field, terms) if terms else Query.empty_query()


def _but(query: Query) -> Query:
    return Query.boolean_query([(Occur.Must, Query.all_query()), (Occur.MustNot, query)])


def _equal(name: str, value: bool | float | str) -> str:  # noqa: FBT001 (a value)
    whole = not isinstance(value, bool | str) and float(value) == value
    text = json.dumps(float(value) if whole else value)
    return f"e{name}={text}" if len(text) <= LONGEST else f"h{name}={hashlib.sha256(text.encode()).hexdigest()}"

"""Metadata filters over tantivy's index of `fact_terms`; of what lies between two values, the terms are asked."""

import json

import tantivy
from tantivy import Occur, Query

from services.memory.filters import And, Compare, Filter, Not, Or, matches
from services.memory.indexes.fact_terms import equal_term, key_term, order_prefix


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
        values = wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)
        match wanted.operator:
            case "exists":
                there = self._among([key_term(wanted.key)])
                return there if wanted.value else _but(there)
            case "eq" | "in":
                return self._among([equal_term(wanted.key, value) for value in values])
            case "ne" | "nin":
                return _but(self._among([equal_term(wanted.key, value) for value in values]))
        begin = order_prefix(wanted.key)
        terms = [term for term, _ in self._searcher.terms_with_prefix(self._field, begin)]
        return self._among([term for term in terms if matches(wanted, {wanted.key: json.loads(term[len(begin) :])})])

    def _among(self, terms: list[str]) -> Query:
        return Query.term_set_query(self._schema, self._field, terms) if terms else Query.empty_query()


def _but(query: Query) -> Query:
    return Query.boolean_query([(Occur.Must, Query.all_query()), (Occur.MustNot, query)])

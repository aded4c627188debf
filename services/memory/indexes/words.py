"""A search by words, analysed: what must match, what is scored, and by which formula.

The formula is that of `index`. Whatever an engine counts by itself is used to find candidates; scores are always
computed here, from exact counts, so that all engines give the same.
"""

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from services.memory.analysis import Analyser, Token
from services.memory.bank import Bank
from services.memory.chunks import IndexedChunk, KeywordQuery
from stack_client.errors import InvalidArgumentError

K1, B = 1.2, 0.75
MOST_WORDS = 64
"""Words of a query that are scored: the rarest."""
COUNTED = 10_000
"""Matches are counted up to here."""
MOST_FIELD_WORDS = 16_000
"""Words of a field that are searched, its first ones; chunks are far shorter."""
Number = TypeVar("Number", float, npt.NDArray[np.float64])
Fields: TypeAlias = Sequence[int]
"""Places of fields in the bank's order."""


class Term(NamedTuple):
    """A word or the beginning of one."""

    text: str
    """Stem of a word; form of a beginning."""
    prefix: bool = False
    """A beginning: counts as one word that occurs once."""


class PhrasePlan(NamedTuple):
    """Words in order."""

    stems: Sequence[str]
    """At least one."""
    slop: int
    """Other words between them."""
    fields: Fields
    """It must occur in one of them."""


class PrefixPlan(NamedTuple):
    """A beginning of a word; where it was given with whole words before it, they must occur in the same field."""

    words: Sequence[str]
    """Stems."""
    text: str
    """Form of the beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A search by words of one bank."""

    boosts: Sequence[float]
    """Of each field of the bank."""
    searched: Fields
    """Fields of words, prefixes, required and excluded words."""
    optional: Sequence[str]
    """Stems of the text's words, in their order."""
    phrases: Sequence[PhrasePlan]
    """All must occur."""
    prefixes: Sequence[PrefixPlan]
    """One must occur."""
    required: Sequence[str]
    """Stems that must all occur."""
    excluded: Sequence[str]
    """Stems of which none may occur."""
    scored: Mapping[Term, Fields]
    """What adds to the score, and in which fields."""
    written: Mapping[Term, str]
    """How the caller wrote it."""

    @property
    def demanding(self) -> bool:
        """Something must match beside the words of the text, which only add to the score then."""
        return bool(self.phrases or self.prefixes or self.required)

    @property
    def empty(self) -> bool:
        """Nothing can match."""
        return not (self.demanding or self.optional)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What scores depend on beside the chunk."""

    chunks: int
    """Of the bank, also those without words."""
    average: Sequence[float]
    """Words of a chunk, by field."""
    holding: Mapping[tuple[Term, int], int]
    """Chunks that hold a term, by field."""


FieldTokens: TypeAlias = Sequence[tuple[Sequence[str], frozenset[str] | set[str]]]
"""Of each field of a chunk: its stems in order, its forms."""


def field_names(bank: Bank) -> Sequence[str]:
    """Fields that are searched, in their order."""
    return list(bank.keyword_fields)


def field_tokens(bank: Bank, chunk: IndexedChunk, analyser: Analyser) -> list[list[Token]]:
    """The words of each field."""
    texts = (chunk.text if name == "content" else chunk.fields.get(name, "") for name in field_names(bank))
    return [analyser.tokens(text)[:MOST_FIELD_WORDS] for text in texts]


def plan(query: KeywordQuery, bank: Bank, analyser: Analyser) -> Plan:
    """A search as this bank understands it.

    Raises:
        InvalidArgumentError: If it names a field that the bank does not search.
    """
    names = field_names(bank)
    for field in (*query.fields, *(phrase.field for phrase in query.phrases if phrase.field)):
        if field not in names:
            message = f"fields: the bank searches no field {field!r}; it has {', '.join(names)}"
            raise InvalidArgumentError(message, field="fields")
    searched = [names.index(field) for field in query.fields] or list(range(len(names)))
    boosts = [query.fields.get(name, bank.keyword_fields[name]) for name in names]
    scored: dict[Term, set[int]] = {}
    written: dict[Term, str] = {}
    stops: set[Term] = set()

    def score(text: str, fields: Fields) -> list[str]:
        tokens = analyser.tokens(text)
        for token in tokens:
            term = Term(token.stem)
            scored.setdefault(term, set()).update(fields)
            written.setdefault(term, text[token.start : token.stop])
            if analyser.is_stop_word(token.form):
                stops.add(term)
        return [token.stem for token in tokens]

    optional = score(query.text, searched)
    required = [stem for text in query.required for stem in score(text, searched)]
    phrases = []
    for one in query.phrases:
        fields = [names.index(one.field)] if one.field else searched
        if stems := score(one.text, fields):
            phrases.append(PhrasePlan(stems, one.slop, fields))
    prefixes = []
    for text in query.prefixes:
        if tokens := analyser.tokens(text):
            term = Term(tokens[-1].form, prefix=True)
            scored.setdefault(term, set()).update(searched)
            written.setdefault(term, text)
            prefixes.append(PrefixPlan([token.stem for token in tokens[:-1]], term.text))
    telling = [term for term in scored if term not in stops] or list(scored)
    return Plan(
        boosts=boosts,
        searched=searched,
        optional=list(dict.fromkeys(stem for stem in optional if Term(stem) in telling)),
        phrases=phrases,
        prefixes=prefixes,
        required=list(dict.fromkeys(required)),
        excluded=list({token.stem: None for text in query.excluded for token in analyser.tokens(text)}),
        scored={term: sorted(scored[term]) for term in telling},
        written=written,
    )


def rarest(wanted: Plan, holding: Mapping[tuple[Term, int], int]) -> Plan:
    """The same with only the rarest of many words scored; words that nothing holds do not count among them."""
    counts = {term: sum(holding.get((term, field), 0) for field in fields) for term, fields in wanted.scored.items()}
    kept = sorted((term for term in counts if counts[term]), key=lambda term: counts[term])[:MOST_WORDS]
    return replaced(wanted, kept)


def replaced(wanted: Plan, kept: Sequence[Term]) -> Plan:
    """The same with only some terms scored, and only those of the text's words looked for."""
    chosen = set(kept)
    return Plan(
        boosts=wanted.boosts,
        searched=wanted.searched,
        optional=[stem for stem in wanted.optional if Term(stem) in chosen],
        phrases=wanted.phrases,
        prefixes=wanted.prefixes,
        required=wanted.required,
        excluded=wanted.excluded,
        scored={term: wanted.scored[term] for term in wanted.scored if term in chosen},
        written=wanted.written,
    )


def rarity(chunks: int, holding: int) -> float:
    """Weight of a term, greater than 0."""
    return math.log(1 + (chunks - holding + 0.5) / (holding + 0.5))


def saturation(times: Number, length: Number, average: float) -> Number:
    """What occurrences in a field of so many words are worth, 0 to 1 + K1."""
    return times * (K1 + 1) / (times + K1 * (1 - B + B * length / max(average, 1e-9)))


def shares(wanted: Plan, statistics: Statistics, tokens: FieldTokens) -> dict[Term, float]:
    """What each scored term adds to the score of one chunk."""
    counts = [Counter(stems) for stems, _ in tokens]
    result = {}
    for term, fields in wanted.scored.items():
        total = 0.0
        for field in fields:
            stems, forms = tokens[field]
            times = float(
                any(form.startswith(term.text) for form in forms) if term.prefix else counts[field][term.text]
            )
            if times:
                weight = wanted.boosts[field] * rarity(statistics.chunks, statistics.holding.get((term, field), 0))
                total += weight * saturation(times, float(len(stems)), statistics.average[field])
        if total:
            result[term] = total
    return result


def satisfied(wanted: Plan, tokens: FieldTokens) -> bool:
    """Whether a chunk matches."""
    everywhere = {stem for field in wanted.searched for stem in tokens[field][0]}
    if not everywhere.isdisjoint(wanted.excluded) or not everywhere.issuperset(wanted.required):
        return False
    if not all(any(has_phrase(tokens[field][0], one) for field in one.fields) for one in wanted.phrases):
        return False
    if wanted.prefixes and not any(
        _has_prefix(tokens[field], one) for one in wanted.prefixes for field in wanted.searched
    ):
        return False
    return wanted.demanding or not everywhere.isdisjoint(wanted.optional)


def has_phrase(stems: Sequence[str], phrase: PhrasePlan) -> bool:
    """Whether the words stand in order, with at most `slop` others between them in all."""
    places: dict[str, list[int]] = {stem: [] for stem in phrase.stems}
    for place, stem in enumerate(stems):
        if stem in places:
            places[stem].append(place)
    return any(_ends(places, phrase, first) is not None for first in places[phrase.stems[0]])


def phrase_places(stems: Sequence[str], phrase: PhrasePlan) -> Iterable[tuple[int, int]]:
    """First and last word of each occurrence that begins at a place of its own."""
    places: dict[str, list[int]] = {stem: [] for stem in phrase.stems}
    for place, stem in enumerate(stems):
        if stem in places:
            places[stem].append(place)
    for first in places[phrase.stems[0]]:
        last = _ends(places, phrase, first)
        if last is not None:
            yield first, last


def _ends(places: Mapping[str, Sequence[int]], phrase: PhrasePlan, first: int) -> int | None:
    """Where an occurrence from here ends at the earliest; None where it has too many other words in it."""
    last, furthest = first, first + len(phrase.stems) - 1 + phrase.slop
    for stem in phrase.stems[1:]:
        following = bisect.bisect_right(places[stem], last)
        if following == len(places[stem]) or places[stem][following] > furthest:
            return None
        last = places[stem][following]
    return last


def _has_prefix(tokens: tuple[Sequence[str], Any], wanted: PrefixPlan) -> bool:
    stems, forms = tokens
    return any(form.startswith(wanted.text) for form in forms) and set(stems).issuperset(wanted.words)

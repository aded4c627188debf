"""Words in tantivy: an index in a folder, for large banks.

tantivy finds the best candidates by its own BM25, which rounds lengths of fields down and still counts removed chunks
until it merges. Its weights are corrected to exact counts, so that its score is never less than the exact one.
Candidates are scored again by their words, and more are fetched until no other chunk can be better.

Facts are terms too: `fact_terms` says how.
"""

import asyncio
import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import tantivy
from tantivy import Occur, Query

from services.memory import analysis
from services.memory.chunks import Changes, Found, IndexedChunk, KeywordQuery
from services.memory.filters import Filter
from services.memory.index import LocalIndex
from services.memory.indexes.context import IndexBrokenError, IndexContext
from services.memory.indexes.fact_terms import fact_terms
from services.memory.indexes.filter_terms import FilterTerms
from services.memory.indexes.words import (
    COUNTED,
    FieldTokens,
    PhrasePlan,
    Plan,
    Statistics,
    Term,
    field_names,
    field_tokens,
    plan,
    rarest,
    rarity,
    satisfied,
    saturation,
    shares,
)

VERSION = 1
HEAP = 64_000_000
"""Bytes of the writer while it takes changes in."""
CANDIDATES = 64
"""Chunks scored again at least."""
MOST_CANDIDATES = 5000
"""Beyond so many that rounding cannot tell apart, the order among the rest is left as it is."""
LONGEST_PHRASE = 32
"""Words of a phrase that tantivy looks for; longer ones are looked at word by word."""
ROUNDING = 1e-4
"""Relative error of its 32-bit scores, and far more."""
STATE = 0
"""Number of the document that holds the position; chunks are counted from 1."""


class TantivyIndex(LocalIndex):
    """Words of a bank in a folder of its own."""

    name: ClassVar[str] = "tantivy"

    def __init__(self, context: IndexContext) -> None:
        self._bank = context.bank
        self._analyser = analysis.analyser(self._bank.language)
        self._fields = range(len(field_names(self._bank)))
        self._folder = context.folder
        self._lock = asyncio.Lock()
        self._schema = self._made_schema()
        self._index: tantivy.Index | None = None
        self._state: Mapping[str, Any] = {}

    async def open(self) -> None:
        """See `Index.open`."""
        async with self._lock:
            await asyncio.to_thread(self._open)

    async def close(self) -> None:
        """See `Index.close`."""
        async with self._lock:
            self._index = None

    async def drop(self) -> None:
        """See `Index.drop`."""
        async with self._lock:
            await asyncio.to_thread(self._drop)

    async def position(self) -> int:
        """See `LocalIndex.position`."""
        return int(self._state.get("position", 0))

    async def apply(self, changes: Changes) -> None:
        """See `LocalIndex.apply`."""
        async with self._lock:
            await asyncio.to_thread(self._apply, changes)

    async def query(
        self, query: KeywordQuery, *, limit: int, where: Filter | None, now: int
    ) -> tuple[list[Found], int]:
        """See `KeywordIndex.query`."""
        return await asyncio.to_thread(self._query, query, limit=limit, where=where, now=now)

    async def terms(self, query: KeywordQuery, number: int) -> dict[str, float]:
        """See `KeywordIndex.terms`."""
        return await asyncio.to_thread(self._terms, query, number)

    def _made_schema(self) -> tantivy.Schema:
        builder = tantivy.SchemaBuilder()
        builder.add_unsigned_field("number", indexed=True, fast=True)
        builder.add_integer_field("expires", indexed=True, fast=True)
        builder.add_text_field("facts", tokenizer_name="whole", index_option="basic")
        builder.add_text_field("state", stored=True, tokenizer_name="whole", index_option="basic")
        for field in self._fields:
            builder.add_text_field(f"s{field}", stored=True, tokenizer_name="spaces", index_option="position")
            builder.add_text_field(f"f{field}", stored=True, tokenizer_name="spaces", index_option="basic")
            builder.add_unsigned_field(f"l{field}", fast=True)
        return builder.build()

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        mark = f"{VERSION} {analysis.VERSION} {self._bank.language} {len(self._fields)}"
        try:
            with _translated():
                self._index = self._opened()
                found = self._reload().search(Query.term_query(self._schema, "number", STATE), limit=1)
                if found.hits:
                    self._state = json.loads(self._index.searcher().doc(found.hits[0][1])["state"][0])
        except IndexBrokenError:
            self._state = {}
        if self._state.get("mark", mark) != mark or (not self._state and any(self._folder.iterdir())):
            self._drop()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._index = self._opened()
        self._state = {"words": [0 for _ in self._fields], "position": 0, **self._state, "mark": mark}

    def _opened(self) -> tantivy.Index:
        index = tantivy.Index(self._schema, path=str(self._folder), reuse=True)
        whole, spaces = tantivy.Tokenizer.raw(), tantivy.Tokenizer.whitespace()
        index.register_tokenizer("whole", tantivy.TextAnalyzerBuilder(whole).build())
        index.register_tokenizer("spaces", tantivy.TextAnalyzerBuilder(spaces).build())
        index.config_reader("manual", 0)
        return index

    def _drop(self) -> None:
        self._index, self._state = None, {}
        shutil.rmtree(self._folder, ignore_errors=True)

    def _reload(self) -> tantivy.Searcher:
        assert self._index is not None
        self._index.reload()
        return self._index.searcher()

    def _apply(self, changes: Changes) -> None:
        if self._index is None:
            self._open()
        assert self._index is not None
        removed = set(changes.removed)
        added = [one for one in changes.added if one.number not in removed]
        with self._broken_when_it_fails(), _translated():
            gone, lengths = self._lengths([*changes.removed, *(one.number for one in added)])
            words = [have - less for have, less in zip(self._state["words"], lengths, strict=True)]
            documents = [self._document(one, words) for one in added]
            state = {**self._state, "words": words, "position": changes.revision}
            writer = self._index.writer(HEAP, 1)
            writer.delete_documents_by_query(Query.term_set_query(self._schema, "number", [STATE, *gone]))
            for document in documents:
                writer.add_document(document)
            writer.add_document(_state_document(state))
            writer.commit()
            writer.wait_merging_threads()
            self._reload()
            self._state = state

    def _lengths(self, numbers: Sequence[int]) -> tuple[list[int], list[int]]:
        """Which of some chunks are in, and the words in each field of them all."""
        assert self._index is not None
        if not numbers:
            return [], [0 for _ in self._fields]
        searcher = self._index.searcher()
        wanted = Query.term_set_query(self._schema, "number", list(numbers))
        addresses = [address for _, address in searcher.search(wanted, limit=len(numbers), count=False).hits]
        gone = [int(number or 0) for number in searcher.fast_field_values("number", addresses)]
        lengths = [
            sum(int(n or 0) for n in searcher.fast_field_values(f"l{field}", addresses)) for field in self._fields
        ]
        return gone, lengths

    def _document(self, chunk: IndexedChunk, words: list[int]) -> tantivy.Document:
        """A chunk as tantivy keeps it; its words are added to the sums."""
        document = tantivy.Document()
        document.add_unsigned("number", chunk.number)
        if chunk.expires_at is not None:
            document.add_integer("expires", chunk.expires_at)
        for term in fact_terms(chunk.facts):
            document.add_text("facts", term)
        for field, tokens in enumerate(field_tokens(self._bank, chunk, self._analyser)):
            words[field] += len(tokens)
            document.add_unsigned(f"l{field}", len(tokens))
            document.add_text(f"s{field}", " ".join(token.stem for token in tokens))
            document.add_text(f"f{field}", " ".join(sorted({token.form for token in tokens})))
        return document

    @contextlib.contextmanager
    def _broken_when_it_fails(self) -> Iterator[None]:
        try:
            yield
        except IndexBrokenError:
            self._state = {**self._state, "position": 0}
            self._index = None
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _query(self, query: KeywordQuery, *, limit: int, where: Filter | None, now: int) -> tuple[list[Found], int]:
        wanted = plan(query, self._bank, self._analyser)
        if wanted.empty:
            return [], 0
        with self._broken_when_it_fails(), _translated():
            search = _Search(self._index, self._schema, wanted, self._state["words"])
            return search.run(limit=limit, where=where, now=now)

    def _terms(self, query: KeywordQuery, number: int) -> dict[str, float]:
        wanted = plan(query, self._bank, self._analyser)
        with self._broken_when_it_fails(), _translated():
            search = _Search(self._index, self._schema, wanted, self._state["words"])
            found = search.searcher.search(Query.term_query(self._schema, "number", number), limit=1, count=False)
            if not found.hits or number == STATE:
                return {}
            parts = shares(search.wanted, search.statistics, search.tokens(found.hits[0][1]))
        return {wanted.written[term]: share for term, share in parts.items()}


class _Search:
    """One query over one state of the index."""

    def __init__(self, index: tantivy.Index | None, schema: tantivy.Schema, wanted: Plan, words: Sequence[int]) -> None:
        if index is None:
            raise IndexBrokenError("the index of words is being made again; ask once more")
        self.searcher = index.searcher()
        self._schema = schema
        chunks = max(self.searcher.num_docs - 1, 0)
        found = {(term, field): self._counted(term, field) for term in wanted.scored for field in wanted.scored[term]}
        self.wanted = rarest(wanted, {key: count for key, (count, _) in found.items()})
        average = [count / max(chunks, 1) for count in words]
        self.statistics = Statistics(chunks, average, {key: count for key, (count, _) in found.items()})
        self._best = {key: address for key, (_, address) in found.items()}

    def run(self, *, limit: int, where: Filter | None, now: int) -> tuple[list[Found], int]:
        """The best, and how many match."""
        wanted = self.wanted
        if wanted.empty:
            return [], 0
        query = self._whole(where, now)
        rough = any(phrase.slop or len(phrase.stems) > LONGEST_PHRASE for phrase in wanted.phrases)
        found: dict[int, float] = {}
        start, stop = 0, max(4 * limit, CANDIDATES)
        while True:
            result: Any = self.searcher.search(query, limit=stop, count=True)
            fresh = result.hits[start:]
            numbers = self.searcher.fast_field_values("number", [address for _, address in fresh])
            for number, (_, address) in zip(numbers, fresh, strict=True):
                tokens = self.tokens(address)
                if not rough or satisfied(wanted, tokens):
                    found[int(number or 0)] = sum(shares(wanted, self.statistics, tokens).values())
            best = sorted((Found(number, score) for number, score in found.items()), key=_order)[:limit]
            if len(result.hits) < stop:
                break
            others = result.hits[-1][0] * (1 + ROUNDING)
            settled = len(best) == limit and others < best[-1].score
            if not rough and (settled or stop >= max(MOST_CANDIDATES, 4 * limit)):
                break
            if rough and settled and len(found) >= COUNTED:
                break
            start, stop = stop, 4 * stop
        return best, min(len(found) if rough else result.count, COUNTED)

    def tokens(self, address: tantivy.DocAddress) -> FieldTokens:
        """The words of a chunk."""
        document = self.searcher.doc(address).to_dict()
        fields = range(len(self.wanted.boosts))
        return [(document[f"s{field}"][0].split(), set(document[f"f{field}"][0].split())) for field in fields]

    def _counted(self, term: Term, field: int) -> tuple[int, tantivy.DocAddress | None]:
        """How many chunks hold a term, and one of them."""
        result: Any = self.searcher.search(self._holding(term, field), limit=1, count=True)
        return result.count, result.hits[0][1] if result.hits else None

    def _holding(self, term: Term, field: int) -> Query:
        if term.prefix:  # of letters, digits and marks: none is special in a pattern
            return Query.regex_query(self._schema, f"f{field}", f"{term.text}.*")
        return Query.term_query(self._schema, f"s{field}", term.text)

    def _whole(self, where: Filter | None, now: int) -> Query:
        wanted = self.wanted
        parts = [(Occur.Must, Query.const_score_query(query, 0.0)) for query in self._demands()]
        scored = [
            (Occur.Should, self._weighted(term, field))
            for term, fields in wanted.scored.items()
            for field in fields
            if self.statistics.holding[term, field]
        ]
        if wanted.demanding:
            parts += scored
        else:
            parts.append((Occur.Must, Query.boolean_query(scored)))
        parts += [(Occur.MustNot, self._anywhere(stem)) for stem in wanted.excluded]
        ended = Query.range_query(self._schema, "expires", tantivy.FieldType.Integer, upper_bound=now)
        parts.append((Occur.MustNot, ended))
        if where is not None:
            matching = FilterTerms(self._schema, self.searcher, "facts").query(where)
            parts.append((Occur.Must, Query.const_score_query(matching, 0.0)))
        return Query.boolean_query(parts)

    def _weighted(self, term: Term, field: int) -> Query:
        """A term that scores at least what it is worth: see the head of this file."""
        weight = self.wanted.boosts[field] * rarity(self.statistics.chunks, self.statistics.holding[term, field])
        query = self._holding(term, field)
        if term.prefix:
            return Query.const_score_query(query, weight * saturation(1.0, 0.0, 1.0))
        address = self._best[term, field]
        assert address is not None
        theirs = _numbers(json.loads(query.explain(self.searcher, address).to_json()))
        longer = max(1.0, self.statistics.average[field] / theirs["avgdl"])
        return Query.boost_query(query, weight / rarity(int(theirs["N"]), int(theirs["n"])) * longer)

    def _demands(self) -> Iterator[Query]:
        """What must match, beside the words of the text."""
        wanted = self.wanted
        for stem in wanted.required:
            yield self._anywhere(stem)
        for phrase in wanted.phrases:
            yield _any([self._phrase(phrase, field) for field in phrase.fields])
        if wanted.prefixes:
            yield _any(
                [
                    _all(
                        [self._holding(Term(one.text, prefix=True), field), *(self._word(s, field) for s in one.words)]
                    )
                    for one in wanted.prefixes
                    for field in wanted.searched
                ]
            )

    def _phrase(self, phrase: PhrasePlan, field: int) -> Query:
        if phrase.slop or len(phrase.stems) > LONGEST_PHRASE or len(phrase.stems) == 1:
            return _all([self._word(stem, field) for stem in list(dict.fromkeys(phrase.stems))[:LONGEST_PHRASE]])
        return Query.phrase_query(self._schema, f"s{field}", list(phrase.stems))

    def _anywhere(self, stem: str) -> Query:
        return _any([self._word(stem, field) for field in self.wanted.searched])

    def _word(self, stem: str, field: int) -> Query:
        return self._holding(Term(stem), field)


def _state_document(state: Mapping[str, Any]) -> tantivy.Document:
    document = tantivy.Document()
    document.add_unsigned("number", STATE)
    document.add_text("state", json.dumps(state))
    return document


def _any(queries: Sequence[Query]) -> Query:
    return Query.boolean_query([(Occur.Should, query) for query in queries])


def _all(queries: Sequence[Query]) -> Query:
    return Query.boolean_query([(Occur.Must, query) for query in queries])


def _order(found: Found) -> tuple[float, int]:
    return -found.score, found.number


def _numbers(explanation: Mapping[str, Any]) -> dict[str, float]:
    """The named numbers of an explanation: `N, total number of docs` and the like."""
    result = {explanation["description"].split(",")[0]: float(explanation["value"])}
    for detail in explanation.get("details", []):
        result |= _numbers(detail)
    return result


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """What tantivy raises, also where it panics, as our own error."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise IndexBrokenError(f"tantivy failed: {error}") from error
    except BaseException as error:
        if type(error).__module__ == "pyo3_runtime":  # its panics are no Exceptions
            raise IndexBrokenError(f"tantivy failed: {error}") from error
        raise

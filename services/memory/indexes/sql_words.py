"""What the two indexes of words in the database share: they find who holds a term, and scores are computed here.

Each term is looked up once: the chunks that hold it and how often. Everything else, what must match and the scores, is
arithmetic on arrays of chunk numbers.
"""

import abc
import asyncio
import functools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory import analysis
from services.memory.chunks import Found, IndexedChunk, KeywordQuery
from services.memory.filters import Filter
from services.memory.indexes.context import IndexContext
from services.memory.indexes.filter_sql import sql_filter
from services.memory.indexes.transactional import TransactionalIndex
from services.memory.indexes.upkeep import revision_of
from services.memory.indexes.words import (
    COUNTED,
    MOST_WORDS,
    FieldTokens,
    Plan,
    Statistics,
    Term,
    field_names,
    field_tokens,
    plan,
    rarest,
    rarity,
    saturation,
    shares,
)
from services.memory.tables import Json, bank_indexes
from services.runtime.offload import offload

VERSION = 1
MOST_REMEMBERED = 4_000_000
"""Chunks in the lists of who holds a term that are kept between two changes of a bank: 64 MB."""
FILTERS_REMEMBERED = 16
SPARSE = 64
"""Numbers from the first to the last of a list for each that is in it, above which lists are sorted instead."""
NEVER = np.iinfo(np.int64).max
Numbers = npt.NDArray[np.int64]


class Postings(NamedTuple):
    """Who holds a term in a field."""

    numbers: Numbers
    """Chunks, ascending."""
    times: npt.NDArray[np.int64]
    """How often each does."""


class AnalysedChunk(NamedTuple):
    """A chunk and the words of its fields."""

    chunk: IndexedChunk
    fields: Sequence[Sequence[analysis.Token]]


class _Remembered:
    """What was read at one revision of the bank, so that the next queries need not."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.postings: dict[tuple[Term, int], Postings] = {}
        self.rows: _Rows | None = None
        self.matching: dict[Filter, Numbers] = {}
        self._size = 0

    def keep(self, key: tuple[Term, int], found: Postings) -> Postings:
        """Remember who holds a term, where there is room."""
        if self._size + len(found.numbers) <= MOST_REMEMBERED and key not in self.postings:
            self._size += len(found.numbers)
            self.postings[key] = found
        return found


class _Rows(NamedTuple):
    """Of all chunks, by number."""

    numbers: Numbers
    expires: Numbers
    lengths: Sequence[Numbers]


class SqlWords(TransactionalIndex):
    """An index of words in tables of the database, beside one with number, facts, expiry and lengths."""

    def __init__(self, context: IndexContext) -> None:
        super().__init__(context)
        self.words = f"index_words_{self._bank.number}"
        """Name of the table of words."""
        self._analyser = analysis.analyser(self._bank.language)
        self._fields = range(len(field_names(self._bank)))
        self._remembered = _Remembered(-1)

    @property
    @abc.abstractmethod
    def facts_name(self) -> str:
        """Table with number, facts, expires_at and l0, l1, ...: words of each field."""

    @abc.abstractmethod
    async def insert(self, connection: AsyncConnection, added: Sequence[AnalysedChunk]) -> None:
        """Insert chunks that are not in."""

    @abc.abstractmethod
    async def delete(self, connection: AsyncConnection, numbers: Sequence[int]) -> None:
        """Delete chunks."""

    @abc.abstractmethod
    async def postings(self, connection: AsyncConnection, term: Term, field: int) -> Postings:
        """Who holds a term."""

    @abc.abstractmethod
    async def phrase(self, connection: AsyncConnection, stems: Sequence[str], slop: int, field: int) -> Numbers:
        """Who holds a phrase of at least two words."""

    @abc.abstractmethod
    async def holding(self, connection: AsyncConnection, stems: Sequence[str], field: int) -> Mapping[str, int]:
        """How many chunks hold each of many words."""

    @abc.abstractmethod
    async def tokens(self, connection: AsyncConnection, number: int) -> FieldTokens | None:
        """The words of one chunk; None where it is not in."""

    @property
    def mark(self) -> str:
        """Of the analysis and the fields."""
        return f"{VERSION} {analysis.VERSION} {self._bank.language} {len(self._fields)}"

    async def query(
        self, query: KeywordQuery, *, limit: int, where: Filter | None, now: int
    ) -> tuple[list[Found], int]:
        """See `KeywordIndex.query`."""
        wanted = await offload(_characters(query), plan, query, self._bank, self._analyser)
        if wanted.empty:
            return [], 0
        async with self._database.read() as connection:
            memory = await self._memory(connection)
            totals = await self._totals(connection)
            wanted = await self._bounded(connection, wanted)
            postings = await self._postings(connection, memory, wanted)
            numbers = await _Matching(self, connection, wanted, memory).numbers()
            numbers, lengths = await self._alive(connection, memory, numbers, where, now)
        statistics = self._statistics(totals, postings)
        found = await asyncio.to_thread(
            _ranked, wanted, statistics, postings, numbers=numbers, lengths=lengths, limit=limit
        )
        return found, min(len(numbers), COUNTED)

    async def terms(self, query: KeywordQuery, number: int) -> dict[str, float]:
        """See `KeywordIndex.terms`."""
        wanted = await offload(_characters(query), plan, query, self._bank, self._analyser)
        async with self._database.read() as connection:
            wanted = await self._bounded(connection, wanted)
            tokens = await self.tokens(connection, number)
            if tokens is None:
                return {}
            postings = await self._postings(connection, await self._memory(connection), wanted)
            statistics = self._statistics(await self._totals(connection), postings)
        return {wanted.written[term]: share for term, share in shares(wanted, statistics, tokens).items()}

    async def put(self, connection: AsyncConnection, added: Sequence[IndexedChunk]) -> None:
        """See `TransactionalIndex.put`."""
        if not added:
            return
        analysed = await asyncio.to_thread(self._analysed, added)
        await self.insert(connection, analysed)
        lengths = [sum(len(one.fields[field]) for one in analysed) for field in self._fields]
        await self._count(connection, len(analysed), lengths)

    async def take(self, connection: AsyncConnection, numbers: Sequence[int]) -> None:
        """See `TransactionalIndex.take`."""
        if not numbers:
            return
        columns = await self.arrays(connection, self.facts_columns().where(self._among(numbers)))
        if len(columns[0]):
            await self.delete(connection, columns[0].tolist())
            await self._count(connection, -len(columns[0]), [-int(lengths.sum()) for lengths in columns[1:]])

    @functools.cached_property
    def facts(self) -> sa.TableClause:
        """The table of facts."""
        lengths = [sa.column(f"l{field}", sa.Integer) for field in self._fields]
        facts, expires_at = sa.column("facts", Json), sa.column("expires_at", sa.BigInteger)
        return sa.table(self.facts_name, sa.column("number", sa.BigInteger), facts, expires_at, *lengths)

    def facts_columns(self) -> sa.Select[Any]:
        """Numbers and lengths."""
        table = self.facts
        return sa.select(table.c.number, *(table.c[f"l{field}"] for field in self._fields))

    async def arrays(self, connection: AsyncConnection, query: sa.Select[Any]) -> list[Numbers]:
        """The columns of a query, which are whole numbers: one text each is read faster than rows are."""
        inner = query.subquery()
        if self._database.dialect == "sqlite":
            joined = [sa.func.group_concat(column) for column in inner.c]
        else:
            joined = [sa.func.string_agg(sa.cast(column, sa.Text), ",") for column in inner.c]
        row = (await connection.execute(sa.select(*joined))).one()
        return [await offload(len(text or ""), _parsed, text or "") for text in row]

    def _analysed(self, added: Sequence[IndexedChunk]) -> list[AnalysedChunk]:
        return [AnalysedChunk(one, field_tokens(self._bank, one, self._analyser)) for one in added]

    def _among(self, numbers: Iterable[int]) -> sa.ColumnElement[bool]:
        number = self.facts.c.number
        if self._database.dialect == "sqlite":
            listed = "[" + ",".join(map(str, numbers)) + "]"
            wanted = sa.func.json_each(listed).table_valued("value").alias()
            return number.in_(sa.select(wanted.c.value))
        return number == sa.any_(sa.literal(list(numbers), sa.ARRAY(sa.BigInteger)))

    async def recall(self, connection: AsyncConnection, memory: _Remembered, term: Term, field: int) -> Postings:
        """Who holds a term, from memory where it is known."""
        known = memory.postings.get((term, field))
        return known or memory.keep((term, field), await self.postings(connection, term, field))

    async def _postings(
        self, connection: AsyncConnection, memory: _Remembered, wanted: Plan
    ) -> Mapping[tuple[Term, int], Postings]:
        return {
            (term, field): await self.recall(connection, memory, term, field)
            for term, fields in wanted.scored.items()
            for field in fields
        }

    async def _memory(self, connection: AsyncConnection) -> _Remembered:
        """What is remembered of the revision that the connection sees."""
        revision = await revision_of(connection, self._bank)
        if self._remembered.revision == revision:
            return self._remembered
        fresh = _Remembered(revision)
        if revision > self._remembered.revision:
            self._remembered = fresh
        return fresh

    async def _alive(
        self, connection: AsyncConnection, memory: _Remembered, numbers: Numbers, where: Filter | None, now: int
    ) -> tuple[Numbers, Sequence[Numbers]]:
        """Those of some chunks that live and match, ascending, with their lengths."""
        if not len(numbers):
            return numbers, [numbers for _ in self._fields]
        rows = await self._rows(connection, memory)
        places = await asyncio.to_thread(np.searchsorted, rows.numbers, numbers)
        places = places[rows.expires[places] > now]
        if where is not None:
            matching = await self._matching(connection, memory, where, rows.numbers[places])
            places = places[await asyncio.to_thread(np.isin, rows.numbers[places], matching, assume_unique=True)]
        return rows.numbers[places], [lengths[places] for lengths in rows.lengths]

    async def _matching(
        self, connection: AsyncConnection, memory: _Remembered, where: Filter, among: Numbers
    ) -> Numbers:
        """Chunks that match a filter; all of the bank where many are asked for, to be remembered."""
        if where in memory.matching:
            return memory.matching[where]
        table, every = self.facts, memory.rows is None or len(among) > len(memory.rows.numbers) / 4
        query = sa.select(table.c.number).where(sql_filter(where, table.c.facts, self._database.dialect))
        if not every:
            query = query.where(self._among(among.tolist()))
        matching = np.sort((await self.arrays(connection, query))[0])
        if every and len(memory.matching) < FILTERS_REMEMBERED:
            memory.matching[where] = matching
        return matching

    async def _rows(self, connection: AsyncConnection, memory: _Remembered) -> _Rows:
        if memory.rows is None:
            expires = sa.func.coalesce(self.facts.c.expires_at, NEVER).label("expires")
            numbers, *lengths, ends = await self.arrays(connection, self.facts_columns().add_columns(expires))
            order = np.argsort(numbers)
            memory.rows = _Rows(numbers[order], ends[order], [length[order] for length in lengths])
        return memory.rows

    async def _bounded(self, connection: AsyncConnection, wanted: Plan) -> Plan:
        """The same with the rarest words only, where there are many."""
        if len(wanted.scored) <= MOST_WORDS:
            return wanted
        words = [term.text for term in wanted.scored if not term.prefix]
        counts: dict[tuple[Term, int], int] = {}
        for field in {field for fields in wanted.scored.values() for field in fields}:
            for stem, count in (await self.holding(connection, words, field)).items():
                counts[Term(stem), field] = count
            for term in (term for term in wanted.scored if term.prefix):
                counts[term, field] = len((await self.postings(connection, term, field)).numbers)
        return rarest(wanted, counts)

    async def _totals(self, connection: AsyncConnection) -> Mapping[str, Any]:
        query = sa.select(bank_indexes.c.totals).where(self._mine())
        found: Mapping[str, Any] | None = (await connection.execute(query)).scalar_one_or_none()
        return found or {"chunks": 0, "words": [0 for _ in self._fields]}

    async def _count(self, connection: AsyncConnection, chunks: int, lengths: Sequence[int]) -> None:
        before = await self._totals(connection)
        words = [have + more for have, more in zip(before["words"], lengths, strict=True)]
        totals = {"chunks": before["chunks"] + chunks, "words": words}
        await connection.execute(sa.update(bank_indexes).where(self._mine()).values(totals=totals))

    def _statistics(self, totals: Mapping[str, Any], postings: Mapping[tuple[Term, int], Postings]) -> Statistics:
        average = [words / max(totals["chunks"], 1) for words in totals["words"]]
        holding = {key: len(found.numbers) for key, found in postings.items()}
        return Statistics(totals["chunks"], average, holding)


class _Matching:
    """Which chunks match, by arithmetic on who holds what."""

    def __init__(
        self,
        index: SqlWords,
        connection: AsyncConnection,
        wanted: Plan,
        memory: _Remembered,
    ) -> None:
        self._index = index
        self._connection = connection
        self._wanted = wanted
        self._memory = memory

    async def numbers(self) -> Numbers:
        """Ascending."""
        wanted, result = self._wanted, None
        async for demand in self._demands():
            result = demand if result is None else np.intersect1d(result, demand, assume_unique=True)
            if not len(result):
                return result
        assert result is not None
        for stem in wanted.excluded:
            result = np.setdiff1d(result, await self._anywhere(Term(stem)), assume_unique=True)
        return result

    async def _demands(self) -> AsyncIterator[Numbers]:
        """What each thing that must match is held by."""
        wanted = self._wanted
        if not wanted.demanding:
            yield union([await self._anywhere(Term(stem)) for stem in wanted.optional])
        for phrase in wanted.phrases:
            yield union([await self._phrase(phrase.stems, phrase.slop, field) for field in phrase.fields])
        if wanted.prefixes:
            begun = [(one, field) for one in wanted.prefixes for field in wanted.searched]
            yield union([await self._prefix(one.words, one.text, field) for one, field in begun])
        for stem in wanted.required:
            yield await self._anywhere(Term(stem))

    async def _holders(self, term: Term, field: int) -> Numbers:
        return (await self._index.recall(self._connection, self._memory, term, field)).numbers

    async def _anywhere(self, term: Term) -> Numbers:
        return union([await self._holders(term, field) for field in self._wanted.searched])

    async def _phrase(self, stems: Sequence[str], slop: int, field: int) -> Numbers:
        if len(stems) == 1:
            return await self._holders(Term(stems[0]), field)
        return await self._index.phrase(self._connection, stems, slop, field)

    async def _prefix(self, words: Sequence[str], text: str, field: int) -> Numbers:
        result = await self._holders(Term(text, prefix=True), field)
        for stem in words:
            result = np.intersect1d(result, await self._holders(Term(stem), field), assume_unique=True)
        return result


def _ranked(
    wanted: Plan,
    statistics: Statistics,
    postings: Mapping[tuple[Term, int], Postings],
    *,
    numbers: Numbers,
    lengths: Sequence[Numbers],
    limit: int,
) -> list[Found]:
    """The best of the chunks that match."""
    scores = np.zeros(len(numbers))
    for (_, field), found in postings.items():
        places = np.searchsorted(numbers, found.numbers)
        inside = places < len(numbers)
        inside[inside] = numbers[places[inside]] == found.numbers[inside]
        places, times = places[inside], found.times[inside].astype(np.float64)
        weight = wanted.boosts[field] * rarity(statistics.chunks, len(found.numbers))
        length = lengths[field][places].astype(np.float64)
        scores[places] += weight * saturation(times, length, statistics.average[field])
    if limit < len(scores):
        least = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        chosen = np.flatnonzero(scores >= least)
    else:
        chosen = np.arange(len(scores))
    best = chosen[np.lexsort((numbers[chosen], -scores[chosen]))][:limit]
    return [Found(int(numbers[place]), float(scores[place])) for place in best]


def union(some: Sequence[Numbers]) -> Numbers:
    """The numbers of several lists, ascending, each once."""
    filled = [one for one in some if len(one)]
    if len(filled) <= 1:
        return filled[0] if filled else np.zeros(0, np.int64)
    low, high = min(one[0] for one in filled), max(one[-1] for one in filled)
    if high - low > SPARSE * sum(map(len, filled)):
        return np.unique(np.concatenate(filled))
    present = np.zeros(high - low + 1, np.bool_)  # far faster than sorting
    for one in filled:
        present[one - low] = True
    result: Numbers = np.flatnonzero(present) + low
    return result


def counted(some: Numbers) -> Postings:
    """Each number once, ascending, with how often it occurs."""
    if not len(some):
        return Postings(some, some)
    if np.any(some[1:] < some[:-1]):
        some = np.sort(some)
    starts = np.flatnonzero(np.concatenate([[True], some[1:] != some[:-1]]))
    return Postings(some[starts], np.diff(starts, append=len(some)))


def _parsed(text: str) -> Numbers:
    return np.fromstring(text, np.int64, sep=",") if text else np.zeros(0, np.int64)


def _characters(query: KeywordQuery) -> int:
    return sum(map(len, [query.text, *query.required, *query.excluded, *(phrase.text for phrase in query.phrases)]))

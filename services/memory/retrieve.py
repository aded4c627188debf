"""Finding chunks: legs over banks, joined, reranked, and explained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import sqlalchemy as sa

from services.memory.bank import Bank
from services.memory.catalog import Catalog
from services.memory.chunk_rows import searched
from services.memory.chunks import Found, KeywordQuery, Vector
from services.memory.database import Database
from services.memory.embedder import Embedder
from services.memory.filters import Filter, matches
from services.memory.fusion import ByRank, ByScoreOnly, Fusion, Joined, Ranked, diversify, fed_back, join
from services.memory.rerank import Reranker
from services.memory.tables import chunks, documents
from services.runtime.moments import now
from services.runtime.together import together

MIN_DEPTH = 50
DEPTH_FACTOR = 5
MAX_DEPTH = 1000
RERANK_DEPTH = 50
LOAD_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One way of finding in one bank."""

    name: str
    """In weights and explanations."""
    bank: Bank
    """Where it looks."""
    vector: Vector | None = None
    """Of the question, when it searches by embedding; normalised."""
    words: KeywordQuery | None = None
    """When it searches by words."""
    found: Sequence[Found] | None = None
    """What was found already in another way; its numbers are keys of `Spec.rows`."""
    where: Filter | None = None
    """Only chunks that match; as the leg's bank declares its fields."""
    group: str = ""
    """Legs of one group count as one, ordered by their scores; empty = a leg for itself."""
    depth: int | None = None
    """Candidates at most; None = the greater of 50 and five times the limit."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A search."""

    legs: Sequence[Leg]
    """At least one."""
    limit: int
    """Hits at most."""
    fusion: Fusion = field(default_factory=ByRank)
    """How several legs are joined; a single one keeps its own scores."""
    diversity: float | None = None
    """Share of diversity in the choice, 0 to 1; None = by relevance alone."""
    rerank: str | None = None
    """The rerank model, "" for the default one; None = none."""
    question: str = ""
    """What a rerank model compares with."""
    threshold: float = 0.0
    """Hits that score less are left out; at 0 or below, none is."""
    rows: Mapping[int, Mapping[Any, Any]] = field(default_factory=dict)
    """Chunks that are in no table, by numbers below 0."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A chunk that was found."""

    bank: Bank
    """The bank it is in."""
    chunk: Mapping[Any, Any]
    """Its row, with `document_id`, `source` and `mime_type` of its document."""
    score: float
    """Greater is better; comparable only inside one answer, but for single legs."""
    ranks: Mapping[str, int]
    """Rank in each leg that found it, from 1."""


@dataclass(frozen=True, kw_only=True)
class LegView:
    """What one leg says of one chunk."""

    leg: str
    rank: int | None
    score: float | None
    share: float
    terms: Mapping[str, float]
    filtered: bool


@dataclass(frozen=True, kw_only=True)
class ChunkView:
    """Why a chunk stands where it does."""

    score: float
    """The legs' joined score; 0 = none of them found it."""
    reranked: float | None
    """The rerank model's score; None = it was not asked about the chunk."""
    place: int | None
    """In the answer, from 1; None = the chunk is not in it."""
    legs: Sequence[LegView]


class Retriever:
    """Searches banks.

    Args:
        database: Where chunks are.
        catalog: Their indexes.
        embedder: Makes vectors of questions.
        reranker: Orders by a model.
    """

    def __init__(self, database: Database, catalog: Catalog, embedder: Embedder, reranker: Reranker) -> None:
        self._database = database
        self._catalog = catalog
        self._embedder = embedder
        self._reranker = reranker

    async def vector_leg(self, bank: Bank, question: str, *, name: str = "vector") -> Leg:
        """A leg that searches a bank by a question's embedding.

        Raises:
            StackError: If the embedding model fails.
        """
        model = await self._embedder.model(bank.embedding_model)
        (vector,) = await self._embedder.embed(model, [question], query=True)
        return Leg(name=name, bank=bank, vector=vector)

    async def search(self, spec: Spec) -> list[Hit]:
        """The best chunks, best first.

        Raises:
            StackError: If a rerank model fails.
        """
        ranked, _ = await self._run(spec)
        joined, _ = await self._order(spec, ranked)
        if spec.threshold > 0:
            joined = [(number, score) for number, score in joined if score >= spec.threshold]
        return await self._hits(spec, ranked, joined[: spec.limit])

    async def explain(self, spec: Spec, chunk_ids: Sequence[str]) -> dict[str, ChunkView]:
        """Why chunks stand where they do, by chunk id, of those that exist."""
        ranked, alias = await self._run(spec)
        fusion = _fusion(spec)
        scores = dict(join(ranked, fusion))
        ordered, reranked = await self._order(spec, ranked)
        places = {number: place for place, (number, _) in enumerate(ordered, 1)}
        rows = await self._named({leg.bank.number for leg in spec.legs}, chunk_ids)
        views: dict[str, ChunkView] = {}
        for row in rows:
            number = alias.get(row["number"], row["number"])
            legs = [
                await self._view(leg, one, fusion, row=row, number=number)
                for leg, one in zip(spec.legs, ranked, strict=True)
            ]
            views[row["chunk_id"]] = ChunkView(
                score=scores.get(number, 0.0), reranked=reranked.get(number), place=places.get(number), legs=legs
            )
        return views

    async def load(self, numbers: Sequence[int]) -> dict[int, Mapping[Any, Any]]:
        """Chunk rows with their documents' `document_id`, `source` and `mime_type`, by number."""
        of = documents.c
        query = sa.select(chunks, of.document_id, of.source, of.mime_type, of.file_id).join(
            documents, of.number == chunks.c.document
        )
        found: dict[int, Mapping[Any, Any]] = {}
        async with self._database.read() as connection:
            for start in range(0, len(numbers), LOAD_BATCH):
                some = query.where(chunks.c.number.in_(numbers[start : start + LOAD_BATCH]))
                found.update({row["number"]: row for row in (await connection.execute(some)).mappings()})
        return found

    async def vectors(self, numbers: Sequence[int]) -> dict[int, Vector]:
        """Embeddings of chunks that have one, by number."""
        c, found = chunks.c, {}
        async with self._database.read() as connection:
            for start in range(0, len(numbers), LOAD_BATCH):
                some = sa.select(c.number, c.embedding).where(c.number.in_(numbers[start : start + LOAD_BATCH]))
                for number, blob in await connection.execute(some):
                    if blob is not None:
                        found[number] = np.frombuffer(blob, "<f4")
        return found

    async def _run(self, spec: Spec) -> tuple[list[Ranked], Mapping[int, int]]:
        """What each leg found, and under which number a chunk stands that several banks hold."""
        moment = now()
        ranked = await together(self._leg(leg, spec, moment) for leg in spec.legs)
        fusion = _fusion(spec)
        if isinstance(fusion, ByRank) and fusion.feedback:
            ranked = await self._second_round(spec, ranked, fusion, moment)
        if len({leg.bank.number for leg in spec.legs}) == 1:
            return _grouped(spec, ranked), {}
        alias = await self._same(ranked)
        return _grouped(spec, [_renumbered(one, alias) for one in ranked]), alias

    async def _same(self, ranked: Sequence[Ranked]) -> Mapping[int, int]:
        """Chunks of the same identifier and content in several banks are one: the first leg's that found it."""
        numbers = list(dict.fromkeys(found.number for one in ranked for found in one.found))
        c, keys = chunks.c, {}
        first: dict[tuple[str, str], int] = {}
        alias: dict[int, int] = {}
        async with self._database.read() as connection:
            for start in range(0, len(numbers), LOAD_BATCH):
                some = numbers[start : start + LOAD_BATCH]
                query = sa.select(c.number, c.chunk_id, c.content_hash).where(c.number.in_(some))
                keys.update({row[0]: (row[1], row[2]) for row in await connection.execute(query)})
        for number in numbers:
            if number in keys:
                alias[number] = first.setdefault(keys[number], number)
        return alias

    async def _leg(self, leg: Leg, spec: Spec, moment: int) -> Ranked:
        depth = _depth(leg, spec)
        found: Sequence[Found]
        if leg.found is not None:
            found = leg.found[:depth]
        elif leg.vector is not None:
            index = await self._catalog.vector(leg.bank)
            found = await index.query(leg.vector, limit=depth, where=leg.where, now=moment)
        else:
            words = await self._catalog.keyword(leg.bank)
            found, _ = await words.query(leg.words or KeywordQuery(), limit=depth, where=leg.where, now=moment)
        return Ranked(name=leg.name, by_vector=leg.vector is not None, found=found)

    async def _second_round(self, spec: Spec, ranked: list[Ranked], fusion: ByRank, moment: int) -> list[Ranked]:
        """Search by embedding again, with the query moved towards the best chunks of the first round.

        Only where there is more to find than a leg takes: a small bank is ranked whole by the question itself.
        """
        kinds = {one.by_vector for one in ranked if one.found}
        if len(kinds) < 2:
            return ranked
        best = [number for number, _ in join(_grouped(spec, ranked), fusion)[: fusion.feedback]]
        nearest = await self.vectors(best)
        result = []
        for leg, one in zip(spec.legs, ranked, strict=True):
            alike = [vector for vector in nearest.values() if leg.vector is not None and len(vector) == len(leg.vector)]
            if leg.vector is None or not alike or len(one.found) < _depth(leg, spec):
                result.append(one)
            else:
                result.append(await self._leg(replace(leg, vector=fed_back(leg.vector, alike)), spec, moment))
        return result

    async def _order(self, spec: Spec, ranked: Sequence[Ranked]) -> tuple[Joined, Mapping[int, float]]:
        """The order of the answer, and the rerank model's scores of all that it was asked about."""
        joined = join(ranked, _fusion(spec))
        reranked: Mapping[int, float] = {}
        if spec.rerank is not None:
            joined = await self._rerank(spec, joined)
            reranked = dict(joined)
        if spec.diversity is not None:
            depth = max(MIN_DEPTH, DEPTH_FACTOR * spec.limit)
            vectors = await self.vectors([number for number, _ in joined[:depth]])
            joined = diversify(joined[:depth], vectors, diversity=spec.diversity, limit=spec.limit)
        return joined, reranked

    async def _rerank(self, spec: Spec, joined: Joined) -> Joined:
        depth = max(RERANK_DEPTH, spec.limit)
        rows = {**await self.load([number for number, _ in joined[:depth]]), **spec.rows}
        numbers = [number for number, _ in joined[:depth] if number in rows]
        scores = await self._reranker.score(
            spec.rerank or "", spec.question, [searched(rows[number]) for number in numbers]
        )
        place = {number: index for index, number in enumerate(numbers)}
        order = sorted(zip(numbers, scores, strict=True), key=lambda item: (-item[1], place[item[0]]))
        return [(number, float(score)) for number, score in order]

    async def _hits(self, spec: Spec, ranked: Sequence[Ranked], joined: Joined) -> list[Hit]:
        rows = {**await self.load([number for number, _ in joined]), **spec.rows}
        banks = {leg.bank.number: leg.bank for leg in spec.legs}
        return [
            Hit(
                bank=banks[rows[number]["bank"]],
                chunk=rows[number],
                score=score,
                ranks={leg.name: leg.ranks[number] for leg in ranked if number in leg.ranks},
            )
            for number, score in joined
            if number in rows  # deleted meanwhile
        ]

    async def _view(self, leg: Leg, ranked: Ranked, fusion: Fusion, *, row: Mapping[Any, Any], number: int) -> LegView:
        rank = ranked.ranks.get(number)
        terms: Mapping[str, float] = {}
        if leg.words is not None and rank is not None:
            terms = await (await self._catalog.keyword(leg.bank)).terms(leg.words, row["number"])
        return LegView(
            leg=leg.name,
            rank=rank,
            score=None if rank is None else ranked.found[rank - 1].score,
            share=fusion.shares(ranked).get(number, 0.0),
            terms=terms,
            filtered=leg.bank.number == row["bank"] and not matches(leg.where, row["facts"]),
        )

    async def _named(self, banks: set[int], chunk_ids: Sequence[str]) -> list[Mapping[Any, Any]]:
        query = sa.select(chunks).where(chunks.c.bank.in_(banks), chunks.c.chunk_id.in_(chunk_ids))
        async with self._database.read() as connection:
            return list((await connection.execute(query)).mappings())


def _renumbered(ranked: Ranked, alias: Mapping[int, int]) -> Ranked:
    found = [Found(alias.get(one.number, one.number), one.score) for one in ranked.found]
    return Ranked(name=ranked.name, by_vector=ranked.by_vector, found=found)


def _grouped(spec: Spec, ranked: Sequence[Ranked]) -> list[Ranked]:
    """Legs of one group as one, ordered by score; a chunk that several of them found stands where it is best."""
    groups: dict[str, list[Ranked]] = {}
    for leg, one in zip(spec.legs, ranked, strict=True):
        groups.setdefault(leg.group or leg.name, []).append(one)
    return [
        members[0] if len(members) == 1 and members[0].name == name else _merged(name, members)
        for name, members in groups.items()
    ]


def _merged(name: str, members: Sequence[Ranked]) -> Ranked:
    best: dict[int, float] = {}
    for one in members:
        for found in one.found:
            best[found.number] = max(found.score, best.get(found.number, found.score))
    order = sorted(best, key=lambda number: (-best[number], number))
    return Ranked(name=name, by_vector=members[0].by_vector, found=[Found(number, best[number]) for number in order])


def _fusion(spec: Spec) -> Fusion:
    groups = {leg.group or leg.name for leg in spec.legs}
    return spec.fusion if len(groups) > 1 else ByScoreOnly()


def _depth(leg: Leg, spec: Spec) -> int:
    if leg.depth:
        return leg.depth
    reordered = len(spec.legs) > 1 or spec.diversity is not None or spec.rerank is not None
    return min(max(MIN_DEPTH, DEPTH_FACTOR * spec.limit), MAX_DEPTH) if reordered else spec.limit

"""Search calls of the memory service: documents, words, several legs, explanations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llamastack import v1
from services.memory import analysis
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.catalog import Catalog
from services.memory.chunk_rows import words
from services.memory.chunks import KeywordQuery, Phrase
from services.memory.embedder import Embedder, normalised
from services.memory.filters import parse
from services.memory.fusion import DEFAULT_FEEDBACK, ByRank, ByScore
from services.memory.graph_legs import GraphLegs
from services.memory.highlight import highlight
from services.memory.hits import bank_chunk
from services.memory.registry_service import check_keyword_fields
from services.memory.retrieve import ChunkView, Leg, LegView, Retriever, Spec
from services.memory.searches import (
    Ranking,
    by_rank,
    check_question,
    diversity_of,
    limit_of,
    question_of,
    ranking_of,
    search_spec,
)
from services.runtime.calls import current_tenant
from services.runtime.moments import now
from services.runtime.stream import RpcContext
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

DEFAULT_CHUNKS = 3
DEFAULT_HITS = 10
MAX_LEGS = 8
MAX_SLOP = 16
MAX_EXPLAINED = 100
DEFAULT_SPANS, MAX_SPANS = 10, 100
COUNTED = 10_000


class QueryCalls:
    """Part of `MemoryBanksService`.

    Args:
        rest: Of the other parts.
        retriever: Finds chunks.
        catalog: Indexes, for searches by words alone.
        graphs: Legs over graph banks, and key-value banks as chunks.
        named: Of the other parts.
    """

    _banks: BankStore
    _embedder: Embedder

    def __init__(
        self,
        *rest: Any,  # noqa: ANN401 (of the other parts)
        retriever: Retriever,
        catalog: Catalog,
        graphs: GraphLegs,
        **named: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*rest, **named)
        self._retriever = retriever
        self._catalog = catalog
        self._graphs = graphs

    async def QueryDocuments(self, request: v1.QueryDocumentsRequest, context: RpcContext) -> v1.QueryDocumentsResponse:
        """Find chunks in one bank."""
        bank = await self._banks.get(request.bank_id, tenant=current_tenant())
        params = request.params
        limit = limit_of(
            params.max_chunks if params.HasField("max_chunks") else None,
            default=DEFAULT_CHUNKS,
            field="params.max_chunks",
        )
        question = question_of(request.query, field="query")
        if not bank.holds_documents:
            found = await self._graphs.as_chunks(bank, request, question=question, limit=limit)
            return v1.QueryDocumentsResponse(chunks=[one for one, _ in found], scores=[score for _, score in found])
        for name in ("keys", "entities"):
            if getattr(request, name):
                message = f"{name}: bank {bank.identifier!r} is of kind {bank.kind}; ask with a query"
                raise FailedPreconditionError(message, field=name)
        if bank.revision == 0:
            raise FailedPreconditionError(f"bank {bank.identifier!r} has no documents; insert some first")
        spec = await search_spec(
            self._retriever,
            bank,
            question,
            mode=params.mode,
            ranking=ranking_of(params.ranker, field="params.ranker"),
            filters=params.filters,
            limit=limit,
            threshold=params.score_threshold,
        )
        hits = await self._retriever.search(spec)
        chunks = [bank_chunk(bank, hit.chunk) for hit in hits]
        if params.HasField("highlight"):
            marks = _Marks(params.highlight)
            for chunk, hit in zip(chunks, hits, strict=True):
                chunk.highlights.extend(marks.of(bank, KeywordQuery(text=question), hit.chunk))
        return v1.QueryDocumentsResponse(chunks=chunks, scores=[hit.score for hit in hits])

    async def QueryKeyword(self, request: v1.QueryKeywordRequest, context: RpcContext) -> v1.QueryKeywordResponse:
        """Find chunks by words."""
        bank = await self._banks.require(request.bank_id, "keyword", "vector", tenant=current_tenant())
        fields = request.fields
        check_keyword_fields(fields, field="fields")
        check_question(request.text)
        query = KeywordQuery(
            text=request.text,
            fields=_boosts(bank, fields),
            phrases=_phrases(bank, request.phrases),
            prefixes=_prefixes(request.prefixes),
            required=list(request.required_terms),
            excluded=list(request.excluded_terms),
        )
        limit = limit_of(
            request.max_results if request.HasField("max_results") else None, default=DEFAULT_HITS, field="max_results"
        )
        where = parse(request.filter, fields=bank.fields, field="filter")
        index = await self._catalog.keyword(bank)
        found, total = await index.query(query, limit=limit, where=where, now=now())
        rows = await self._retriever.load([one.number for one in found])
        marks = _Marks(request.highlight) if request.HasField("highlight") else None
        hits = [
            v1.KeywordHit(
                chunk=bank_chunk(bank, rows[one.number]),
                score=one.score,
                highlights=marks.of(bank, query, rows[one.number]) if marks else (),
            )
            for one in found
            if one.number in rows
        ]
        return v1.QueryKeywordResponse(hits=hits, total_matches=min(total, COUNTED))

    async def QueryHybrid(self, request: v1.QueryHybridRequest, context: RpcContext) -> v1.QueryHybridResponse:
        """Search several legs."""
        spec = await self._spec(request)
        hits = await self._retriever.search(spec)
        return v1.QueryHybridResponse(
            hits=[v1.HybridHit(chunk=bank_chunk(hit.bank, hit.chunk), score=hit.score, ranks=hit.ranks) for hit in hits]
        )

    async def ExplainQuery(self, request: v1.ExplainQueryRequest, context: RpcContext) -> v1.ExplainQueryResponse:
        """Say why chunks stand where they do."""
        if not 1 <= len(request.chunk_ids) <= MAX_EXPLAINED:
            message = f"chunk_ids has {len(request.chunk_ids)}; allowed: 1 to {MAX_EXPLAINED}"
            raise InvalidArgumentError(message, field="chunk_ids")
        spec = await self._spec(request.request)
        views = await self._retriever.explain(spec, request.chunk_ids)
        missing = [chunk_id for chunk_id in request.chunk_ids if chunk_id not in views]
        if missing:
            raise NotFoundError(f"no chunk {missing[0]!r} in the banks of the legs", field="chunk_ids")
        return v1.ExplainQueryResponse(
            explanations=[_explanation(chunk_id, views[chunk_id]) for chunk_id in request.chunk_ids]
        )

    async def _spec(self, request: v1.QueryHybridRequest) -> Spec:
        if not 1 <= len(request.legs) <= MAX_LEGS:
            message = f"legs has {len(request.legs)}; allowed: 1 to {MAX_LEGS}"
            raise InvalidArgumentError(message, reason="" if request.legs else "MISSING_FIELD", field="legs")
        limit = limit_of(request.limit if request.HasField("limit") else None, default=DEFAULT_HITS, field="limit")
        legs: list[Leg] = []
        rows: dict[int, Mapping[Any, Any]] = {}
        for index, asked in enumerate(request.legs):
            field = f"legs[{index}]"
            bank = await self._banks.get(asked.bank_id, tenant=current_tenant(), field=f"{field}.bank_id")
            leg = await self._leg(bank, asked, index=index, field=field)
            if leg.found is not None:
                found, texts = await self._graphs.leg(bank, asked.graph, first=-1 - len(rows), limit=leg.depth or limit)
                rows.update(texts)
                leg = Leg(name=leg.name, bank=bank, found=found, depth=leg.depth)
            elif request.HasField("filter"):
                leg = replace(leg, where=parse(request.filter, fields=bank.fields, field="filter"))
            legs.append(leg)
        names = [leg.name for leg in legs]
        if len(set(names)) < len(names):
            raise InvalidArgumentError(f"two legs have the same name: {', '.join(names)}", field="legs")
        ranking = _ranking(request.fusion, names)
        question = next((_question(leg) for leg in request.legs if _question(leg)), "")
        return Spec(
            legs=legs,
            limit=limit,
            fusion=ranking.fusion,
            diversity=ranking.diversity,
            rerank=request.rerank.model if request.HasField("rerank") else None,
            question=question,
            rows=rows,
        )

    async def _leg(self, bank: Bank, message: v1.QueryLeg, *, index: int, field: str) -> Leg:
        kind = message.WhichOneof("leg")
        name = message.name or f"{kind}{index}"
        depth = (
            limit_of(message.depth if message.HasField("depth") else None, default=0, field=f"{field}.depth") or None
        )
        match kind:
            case "vector" if bank.kind == "vector":
                return await self._vector_leg(bank, message.vector, name=name, depth=depth, field=f"{field}.vector")
            case "keyword" if bank.holds_documents:
                check_keyword_fields(message.keyword.fields, field=f"{field}.keyword.fields")
                check_question(message.keyword.text)
                words = KeywordQuery(
                    text=message.keyword.text,
                    fields=_boosts(bank, message.keyword.fields),
                    phrases=_phrases(bank, message.keyword.phrases),
                )
                return Leg(name=name, bank=bank, words=words, depth=depth)
            case "graph" if bank.kind == "graph":
                return Leg(name=name, bank=bank, found=[], depth=depth)
            case None:
                raise InvalidArgumentError(
                    f"{field}: give vector, keyword or graph", reason="MISSING_FIELD", field=field
                )
        message_ = f"{field}: bank {bank.identifier!r} is of kind {bank.kind}; a {kind} leg does not fit it"
        raise InvalidArgumentError(message_, field=field)

    async def _vector_leg(self, bank: Bank, leg: v1.VectorLeg, *, name: str, depth: int | None, field: str) -> Leg:
        if leg.embedding:
            if leg.HasField("query"):
                raise InvalidArgumentError(f"{field}: give query or embedding, not both", field=field)
            model = await self._embedder.model(bank.embedding_model)
            vector = normalised(leg.embedding, model=model, field=f"{field}.embedding")
            return Leg(name=name, bank=bank, vector=np.ascontiguousarray(vector), depth=depth)
        question = question_of(leg.query, field=f"{field}.query")
        check_question(question)
        made = await self._retriever.vector_leg(bank, question, name=name)
        return Leg(name=name, bank=bank, vector=made.vector, depth=depth)


class _Marks:
    """Marking what was found."""

    def __init__(self, options: v1.HighlightOptions) -> None:
        self._spans = limit_of(
            options.max_spans or None, default=DEFAULT_SPANS, field="highlight.max_spans", most=MAX_SPANS
        )
        self._characters = options.fragment_characters

    def of(self, bank: Bank, query: KeywordQuery, row: Mapping[Any, Any]) -> list[v1.FieldHighlight]:
        """Marked places of a chunk."""
        analyser = analysis.analyser(bank.language)
        fields = {
            name: str(row["text"]) if name == "content" else words(row["metadata"].get(name))
            for name in bank.keyword_fields
        }
        found = (
            highlight(
                text,
                query,
                analyser=analyser,
                field=name,
                max_spans=self._spans,
                fragment_characters=self._characters,
            )
            for name, text in fields.items()
        )
        return [one for one in found if one is not None]


def _ranking(fusion: v1.QueryFusion, names: Sequence[str]) -> Ranking:
    match fusion.WhichOneof("fusion"):
        case "weighted":
            for name, weight in fusion.weighted.weights.items():
                if name not in names or not 0 <= weight < float("inf"):
                    known = ", ".join(names)
                    message = f"fusion.weighted.weights: {name!r}: {weight:g}; give 0 or more to legs of {known}"
                    raise InvalidArgumentError(message, field="fusion.weighted.weights")
            return Ranking(fusion=ByScore(weights=dict(fusion.weighted.weights)))
        case "mmr":
            diversity = diversity_of(fusion.mmr, field="fusion.mmr")
            return Ranking(fusion=ByRank(feedback=DEFAULT_FEEDBACK), diversity=diversity)
        case _:
            return Ranking(fusion=by_rank(fusion.rrf, field="fusion.rrf"))


def _question(leg: v1.QueryLeg) -> str:
    match leg.WhichOneof("leg"):
        case "vector":
            return question_of(leg.vector.query, field="query")
        case "keyword":
            return leg.keyword.text
        case _:
            return leg.graph.text


def _boosts(bank: Bank, fields: Sequence[v1.KeywordField]) -> dict[str, float]:
    for index, one in enumerate(fields):
        if one.name not in bank.keyword_fields:
            known = ", ".join(bank.keyword_fields)
            message = f"fields[{index}].name: bank {bank.identifier!r} does not search {one.name!r}; it has {known}"
            raise InvalidArgumentError(message, field=f"fields[{index}].name")
    return {one.name: one.boost if one.HasField("boost") else bank.keyword_fields[one.name] for one in fields}


def _phrases(bank: Bank, phrases: Sequence[v1.PhraseQuery]) -> list[Phrase]:
    for index, one in enumerate(phrases):
        if one.slop > MAX_SLOP:
            field = f"phrases[{index}].slop"
            raise InvalidArgumentError(f"{field} is {one.slop}; allowed: 0 to {MAX_SLOP}", field=field)
        if one.field and one.field not in bank.keyword_fields:
            field = f"phrases[{index}].field"
            known = ", ".join(bank.keyword_fields)
            raise InvalidArgumentError(f"{field}: {one.field!r} is not searched; the bank has {known}", field=field)
    return [Phrase(text=one.text, slop=one.slop, field=one.field) for one in phrases]


def _prefixes(prefixes: Sequence[str]) -> list[str]:
    for index, one in enumerate(prefixes):
        if len(one) < 2:
            field = f"prefixes[{index}]"
            raise InvalidArgumentError(f"{field} is {one!r}; give at least 2 characters", field=field)
    return list(prefixes)


def _explanation(chunk_id: str, view: ChunkView) -> v1.ChunkExplanation:
    return v1.ChunkExplanation(
        chunk_id=chunk_id,
        score=view.score,
        rank=view.place,
        legs=[_leg_explanation(leg) for leg in view.legs],
        rerank_score=view.reranked,
    )


def _leg_explanation(view: LegView) -> v1.LegExplanation:
    return v1.LegExplanation(
        leg=view.leg,
        rank=view.rank,
        score=view.score,
        terms=view.terms,
        contribution=view.share,
        filtered=view.filtered,
    )

"""Searching a vector store as OpenAI clients do: several queries, ranking options, scores from 0 to 1."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llamastack import v1
from services.memory.bank import Bank
from services.memory.filters import parse
from services.memory.fusion import DEFAULT_IMPACT, ByRank, ByScore, Ranked
from services.memory.retrieve import Hit, Retriever
from services.memory.searches import Ranking, check_share, search_spec
from services.runtime.together import together
from stack_client.errors import InvalidArgumentError

MAX_QUERIES = 16
POOL = 200
"""Results of a search whose order depends on how many are looked at: the same for all its pages."""
_RANKERS = ("none", "auto", "default-2024-11-15", "rrf", "weighted", "neural")

Scale = Callable[[Sequence[float]], list[float]]
"""Brings the scores of one answer to 0 to 1, keeping their order."""


@dataclass(frozen=True, kw_only=True)
class SharedByRank(ByRank):
    """Reciprocal rank fusion with shares of the legs."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """By leg name; a leg without one has 1."""

    def shares(self, leg: Ranked) -> Mapping[int, float]:
        """See `Fusion`."""
        weight = self.weights.get(leg.name, 1.0)
        return {number: weight * share for number, share in super().shares(leg).items()}


@dataclass(frozen=True, kw_only=True)
class StoreSearch:
    """A search of a store."""

    queries: Sequence[str]
    """Texts."""
    mode: int
    """A `SearchMode`."""
    filters: v1.MetadataFilter
    """Only chunks that match."""
    ranking: Ranking
    """How legs are joined."""
    threshold: float
    """Results below are left out."""


def ranking_of(options: v1.RankingOptions, *, field: str = "ranking_options") -> Ranking:
    """What ranking options mean.

    Raises:
        InvalidArgumentError: If a value is out of range, or belongs to another ranker.
    """
    ranker = options.ranker if options.HasField("ranker") else "auto"
    if ranker not in _RANKERS:
        message = f"{field}.ranker is {ranker[:40]!r}; allowed: {', '.join(_RANKERS)}"
        raise InvalidArgumentError(message, field=f"{field}.ranker")
    belongs = {
        "alpha": (options.HasField("alpha"), {"weighted"}),
        "weights": (bool(options.weights), {"weighted"}),
        "model": (options.HasField("model"), {"neural"}),
        "impact_factor": (options.HasField("impact_factor"), {"rrf", "auto", "default-2024-11-15"}),
        "hybrid_search": (options.HasField("hybrid_search"), set(_RANKERS) - {"weighted", "none"}),
    }
    for name, (given, rankers) in belongs.items():
        if given and ranker not in rankers:
            message = f"{field}.{name} belongs to ranker {' or '.join(sorted(rankers))}, not to {ranker}"
            raise InvalidArgumentError(message, field=f"{field}.{name}")
    if ranker == "weighted":
        return Ranking(fusion=ByScore(weights=_weights(options, field=field)))
    impact = options.impact_factor if options.HasField("impact_factor") else DEFAULT_IMPACT
    if not 0 < impact < math.inf:
        name = f"{field}.impact_factor"
        raise InvalidArgumentError(f"{name} is {impact:g}; it must be above 0", field=name)
    fusion = SharedByRank(impact=impact, weights=_hybrid_weights(options, field=field))
    return Ranking(fusion=fusion, rerank=options.model if ranker == "neural" else None)


def threshold_of(options: v1.RankingOptions, *, field: str = "ranking_options") -> float:
    """Below which score results are left out.

    Raises:
        InvalidArgumentError: If it is out of range.
    """
    check_share(options.score_threshold, field=f"{field}.score_threshold")
    return options.score_threshold


async def search(
    retriever: Retriever, bank: Bank, wanted: StoreSearch, *, offset: int, size: int
) -> tuple[list[tuple[Hit, float]], bool]:
    """A page of a search, best first, with scores from 0 to 1, and whether another follows.

    Raises:
        InvalidArgumentError: If the filter does not fit the store.
        StackError: If a model or index fails.
    """
    where = parse(wanted.filters, fields=bank.fields, field="filters")
    alone = len(wanted.queries) == 1
    reordered = wanted.mode == v1.SEARCH_MODE_HYBRID or wanted.ranking.rerank is not None or not alone
    limit = POOL if reordered else offset + size + 1

    async def one(query: str) -> list[tuple[Hit, float]]:
        spec = await search_spec(
            retriever, bank, query, mode=wanted.mode, ranking=wanted.ranking, limit=limit, field="search"
        )
        hits = await retriever.search(replace(spec, legs=[replace(leg, where=where) for leg in spec.legs]))
        scale = _scale(wanted, legs=[leg.name for leg in spec.legs])
        return list(zip(hits, scale([hit.score for hit in hits]), strict=True))

    found = await together(one(query) for query in wanted.queries)
    scored = found[0] if alone else _joined(found)
    scored = [(hit, score) for hit, score in scored if score >= wanted.threshold]
    return scored[offset : offset + size], len(scored) > offset + size


def _joined(found: Sequence[Sequence[tuple[Hit, float]]]) -> list[tuple[Hit, float]]:
    """The results of several queries by rank; one that is first in all has 1."""
    scores: dict[int, float] = {}
    hits: dict[int, Hit] = {}
    for one in found:
        for rank, (hit, _score) in enumerate(one, 1):
            number = hit.chunk["number"]
            hits.setdefault(number, hit)
            scores[number] = scores.get(number, 0.0) + 1 / (DEFAULT_IMPACT + rank)
    most = len(found) / (DEFAULT_IMPACT + 1)
    order = sorted(scores, key=lambda number: (-scores[number], number))
    return [(hits[number], min(1.0, scores[number] / most)) for number in order]


def _scale(wanted: StoreSearch, *, legs: Sequence[str]) -> Scale:
    fusion = wanted.ranking.fusion
    if wanted.ranking.rerank is not None:
        return _logistic
    if len(legs) == 1:
        return _saturating if legs[0] == "keyword" else _clipped
    if isinstance(fusion, SharedByRank):
        most = sum(fusion.weights.get(leg, 1.0) for leg in legs) / (fusion.impact + 1)
        return lambda scores: [min(1.0, score / most) for score in scores]
    return _clipped


def _clipped(scores: Sequence[float]) -> list[float]:
    """Cosines and weighted sums: from 0 to 1 but for what points away from the question, and rounding."""
    return [min(1.0, max(0.0, score)) for score in scores]


def _saturating(scores: Sequence[float]) -> list[float]:
    """Scores of BM25, which have no upper end."""
    return [max(0.0, score) / (1.0 + max(0.0, score)) for score in scores]


def _logistic(scores: Sequence[float]) -> list[float]:
    """Scores of a rerank model: some answer from 0 to 1, others logits."""
    if all(0 <= score <= 1 for score in scores):
        return list(scores)
    return [1 / (1 + math.exp(-max(-50.0, min(50.0, score)))) for score in scores]


def _weights(options: v1.RankingOptions, *, field: str) -> dict[str, float]:
    """Weights of both legs that sum up to 1."""
    if not options.weights:
        alpha = options.alpha if options.HasField("alpha") else 0.5
        check_share(alpha, field=f"{field}.alpha")
        return {"vector": alpha, "keyword": 1 - alpha}
    if options.HasField("alpha"):
        raise InvalidArgumentError(f"{field}: give alpha or weights, one of them", field=f"{field}.weights")
    unknown = sorted(set(options.weights) - {"vector", "keyword"})
    if unknown:
        message = f"{field}.weights: there is no leg {unknown[0][:40]!r}; the legs are vector and keyword"
        raise InvalidArgumentError(message, field=f"{field}.weights")
    weights = {name: options.weights.get(name, 0.0) for name in ("vector", "keyword")}
    return _shares(weights, field=f"{field}.weights")


def _hybrid_weights(options: v1.RankingOptions, *, field: str) -> dict[str, float]:
    if not options.HasField("hybrid_search"):
        return {}
    given = options.hybrid_search
    weights = {
        "vector": given.embedding_weight if given.HasField("embedding_weight") else 1.0,
        "keyword": given.text_weight if given.HasField("text_weight") else 1.0,
    }
    return _shares(weights, field=f"{field}.hybrid_search")


def _shares(weights: Mapping[str, float], *, field: str) -> dict[str, float]:
    total = sum(weights.values())
    if any(not 0 <= weight < math.inf for weight in weights.values()) or not 0 < total < math.inf:
        raise InvalidArgumentError(f"{field}: weights must be at least 0, and one above 0", field=field)
    return {name: weight / total for name, weight in weights.items()}

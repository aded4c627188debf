"""Searches of one bank as callers ask for them: mode, ranker, filter, limit."""

import math
from dataclasses import dataclass, replace

from llamastack import v1
from services.memory.bank import Bank
from services.memory.chunks import KeywordQuery
from services.memory.filters import parse
from services.memory.fusion import (
    DEFAULT_DIVERSITY,
    DEFAULT_FEEDBACK,
    DEFAULT_IMPACT,
    ByRank,
    ByScore,
    Fusion,
)
from services.memory.retrieve import Leg, Retriever, Spec
from stack_client.content import text_of
from stack_client.errors import InvalidArgumentError, UnsupportedError

MAX_RESULTS = 1000
MAX_FEEDBACK = 20
MAX_QUESTION = 32_768
"""Characters."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How legs are joined and the list is ordered."""

    fusion: Fusion
    """Of several legs."""
    diversity: float | None = None
    """See `Spec.diversity`."""
    rerank: str | None = None
    """See `Spec.rerank`."""


async def search_spec(
    retriever: Retriever,
    bank: Bank,
    question: str,
    *,
    mode: int = v1.SEARCH_MODE_UNSPECIFIED,
    ranking: Ranking | None = None,
    filters: v1.MetadataFilter | None = None,
    limit: int,
    threshold: float = 0.0,
    field: str = "params",
) -> Spec:
    """A search of one bank.

    Args:
        retriever: Makes the vector of the question.
        bank: A bank of documents.
        question: Any text; one without words finds nothing by words.
        mode: A `SearchMode`; unspecified is by vector where the bank has them, else by words.
        ranking: How legs are joined; None is by rank.
        filters: Only chunks that match.
        limit: Hits at most.
        threshold: Hits that score less are left out.
        field: Of the request, for errors.

    Raises:
        UnsupportedError: If the bank has no vectors and the mode needs them.
        InvalidArgumentError: If the filter does not fit the bank, or mode or threshold cannot be.
        StackError: If the embedding model fails.
    """
    if mode not in v1.SearchMode.values():
        raise InvalidArgumentError(f"{field}.mode: {mode} is no search mode", field=f"{field}.mode")
    if not math.isfinite(threshold):
        name = f"{field}.score_threshold"
        raise InvalidArgumentError(f"{name} is {threshold:g}; give a finite number", field=name)
    mode = mode or (v1.SEARCH_MODE_VECTOR if bank.kind == "vector" else v1.SEARCH_MODE_KEYWORD)
    if mode != v1.SEARCH_MODE_KEYWORD and bank.kind != "vector":
        message = f"{field}.mode: bank {bank.identifier!r} holds words without vectors; search it in mode keyword"
        raise UnsupportedError(message, field=f"{field}.mode")
    where = parse(filters, fields=bank.fields, field=f"{field}.filters")
    check_question(question)
    legs = []
    if mode != v1.SEARCH_MODE_KEYWORD:
        legs.append(replace(await retriever.vector_leg(bank, question), where=where))
    if mode != v1.SEARCH_MODE_VECTOR:
        legs.append(Leg(name="keyword", bank=bank, words=KeywordQuery(text=question), where=where))
    ranking = ranking or Ranking(fusion=ByRank())
    return Spec(
        legs=legs,
        limit=limit,
        fusion=ranking.fusion,
        diversity=ranking.diversity,
        rerank=ranking.rerank,
        question=question,
        threshold=threshold,
    )


def ranking_of(ranker: v1.Ranker, *, field: str) -> Ranking:
    """What a request's ranker means.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """
    match ranker.WhichOneof("ranker"):
        case "weighted":
            alpha = ranker.weighted.alpha if ranker.weighted.HasField("alpha") else 0.5
            check_share(alpha, field=f"{field}.weighted.alpha")
            return Ranking(fusion=ByScore(weights={"vector": alpha, "keyword": 1 - alpha}))
        case "neural":
            return Ranking(fusion=ByRank(), rerank=ranker.neural.model)
        case "mmr":
            return Ranking(fusion=ByRank(), diversity=diversity_of(ranker.mmr, field=f"{field}.mmr"))
        case _:
            return Ranking(fusion=by_rank(ranker.rrf, field=f"{field}.rrf"))


def by_rank(ranker: v1.RRFRanker, *, field: str) -> ByRank:
    """Reciprocal rank fusion as asked for.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """
    impact = ranker.impact_factor if ranker.HasField("impact_factor") else DEFAULT_IMPACT
    feedback = ranker.feedback if ranker.HasField("feedback") else DEFAULT_FEEDBACK
    if not 0 < impact < float("inf"):
        name = f"{field}.impact_factor"
        raise InvalidArgumentError(f"{name} is {impact:g}; it must be above 0", field=name)
    if feedback > MAX_FEEDBACK:
        name = f"{field}.feedback"
        raise InvalidArgumentError(f"{name} is {feedback}; allowed: 0 to {MAX_FEEDBACK}", field=name)
    return ByRank(impact=impact, feedback=feedback)


def diversity_of(ranker: v1.MMRRanker, *, field: str) -> float:
    """Share of diversity as asked for.

    Raises:
        InvalidArgumentError: If it is out of range.
    """
    diversity = ranker.diversity if ranker.HasField("diversity") else DEFAULT_DIVERSITY
    check_share(diversity, field=f"{field}.diversity")
    return diversity


def check_share(value: float, *, field: str) -> None:
    """Refuse what is not from 0 to 1.

    Raises:
        InvalidArgumentError: If it is not.
    """
    if not 0 <= value <= 1:
        raise InvalidArgumentError(f"{field} is {value:g}; allowed: 0 to 1", field=field)


def limit_of(value: int | None, *, default: int, field: str, most: int = MAX_RESULTS) -> int:
    """A number of results as asked for.

    Raises:
        InvalidArgumentError: If it is out of range.
    """
    if value is None:
        return default
    if not 1 <= value <= most:
        raise InvalidArgumentError(f"{field} is {value}; allowed: 1 to {most}", field=field)
    return value


def check_question(question: str) -> None:
    """Refuse a question that is a document.

    Raises:
        InvalidArgumentError: If it is too long.
    """
    if len(question) > MAX_QUESTION:
        message = f"the question has {len(question)} characters; at most {MAX_QUESTION} are allowed"
        raise InvalidArgumentError(message, field="query")


def question_of(content: v1.InterleavedContent, *, field: str) -> str:
    """The text of a question.

    Raises:
        UnsupportedError: If it holds an image.
    """
    if any(item.WhichOneof("item") == "image" for item in content.items):
        raise UnsupportedError(f"{field}: images cannot be searched for; ask with text", field=field)
    return text_of(content)

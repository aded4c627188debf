"""Joining what several legs found: by rank, by score, and with diversity."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np

from services.memory.chunks import Found, Vector

DEFAULT_IMPACT = 60.0
"""Cormack, Clarke, Buettcher: Reciprocal Rank Fusion (SIGIR 2009)."""
DEFAULT_FEEDBACK = 3
DEFAULT_DIVERSITY = 0.3

Joined: TypeAlias = list[tuple[int, float]]
"""Chunk numbers with their joined scores, best first."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What one leg found."""

    name: str
    """The leg's name."""
    by_vector: bool
    """Whether it searched by embedding; such legs settle ties."""
    found: Sequence[Found]
    """Best first, each chunk once."""
    ranks: Mapping[int, int] = field(init=False)
    """Rank of each chunk, from 1."""

    def __post_init__(self) -> None:
        """Count the ranks."""
        object.__setattr__(self, "ranks", {one.number: rank for rank, one in enumerate(self.found, 1)})


class Fusion(Protocol):
    """A way of joining legs."""

    def shares(self, leg: Ranked) -> Mapping[int, float]:
        """What a leg adds to the joined score of each chunk that it found."""


@dataclass(frozen=True, kw_only=True)
class ByRank:
    """Reciprocal rank fusion: a leg adds `1 / (impact + rank)`."""

    impact: float = DEFAULT_IMPACT
    """Constant k."""
    feedback: int = DEFAULT_FEEDBACK
    """Chunks of the first round that the second one learns from; 0 = one round."""

    def shares(self, leg: Ranked) -> Mapping[int, float]:
        """See `Fusion`."""
        return {number: 1.0 / (self.impact + rank) for number, rank in leg.ranks.items()}


@dataclass(frozen=True, kw_only=True)
class ByScore:
    """Weighted sum of scores, each leg's scaled so that its worst is 0 and its best 1; of a single score, 1."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """By leg name; a leg without one has 1."""

    def shares(self, leg: Ranked) -> Mapping[int, float]:
        """See `Fusion`."""
        if not leg.found:
            return {}
        worst, best = min(one.score for one in leg.found), max(one.score for one in leg.found)
        weight = self.weights.get(leg.name, 1.0)
        span = best - worst
        return {one.number: weight * ((one.score - worst) / span if span else 1.0) for one in leg.found}


@dataclass(frozen=True, kw_only=True)
class ByScoreOnly:
    """One leg alone: its own scores."""

    def shares(self, leg: Ranked) -> Mapping[int, float]:
        """See `Fusion`."""
        return {one.number: one.score for one in leg.found}


def join(legs: Sequence[Ranked], fusion: Fusion) -> Joined:
    """Everything that the legs found, best first; equal scores by vector rank, then number."""
    scores: dict[int, float] = {}
    for leg in legs:
        for number, share in fusion.shares(leg).items():
            scores[number] = scores.get(number, 0.0) + share
    nearest: dict[int, float] = {}
    for leg in legs:
        if leg.by_vector:
            for number, rank in leg.ranks.items():
                nearest[number] = min(rank, nearest.get(number, math.inf))
    order = sorted(scores, key=lambda number: (-scores[number], nearest.get(number, math.inf), number))
    return [(number, scores[number]) for number in order]


def diversify(joined: Joined, vectors: Mapping[int, Vector], *, diversity: float, limit: int) -> Joined:
    """Choose chunks that answer and are unlike those already chosen: maximal marginal relevance.

    Each step takes the chunk with the greatest `(1 - diversity) * relevance - diversity * likeness`, where relevance is
    the joined score scaled to 0 to 1 and likeness the greatest cosine to a chosen chunk (Carbonell, Goldstein, 1998).
    Scores stay the joined ones; chunks without a vector are like nothing.
    """
    if not joined:
        return []
    scores = np.array([score for _, score in joined])
    span = scores.max() - scores.min()
    relevance = (scores - scores.min()) / span if span else np.ones_like(scores)
    size = next((len(vector) for vector in vectors.values()), 1)
    matrix = np.array([vectors.get(number, np.zeros(size, np.float32)) for number, _ in joined])
    likeness, left, chosen = np.zeros(len(joined)), np.ones(len(joined), bool), []
    for _ in range(min(limit, len(joined))):
        worth = np.where(left, (1 - diversity) * relevance - diversity * likeness, -np.inf)
        best = int(worth.argmax())
        chosen.append(joined[best])
        left[best] = False
        likeness = np.maximum(likeness, matrix @ matrix[best])
    return chosen


def fed_back(query: Vector, nearest: Sequence[Vector]) -> Vector:
    """A query moved towards what a first round found: Rocchio's feedback with equal weights, of length 1."""
    moved = query + np.mean(nearest, axis=0)
    length = float(np.linalg.norm(moved))
    return (moved / length).astype(np.float32) if length else query

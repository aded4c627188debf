"""Figures of a detector, each with its interval: shares by Wilson, areas and recalls by bootstrap."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

SUPPORTED_NEGATIVES = 300
"""Negatives below which a false positive rate of 1 % is three texts or fewer, and no figure."""
_Z = 1.959963984540054
_ROUNDS = 500


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share with its 95 % interval after Wilson (JASA 22, 1927)."""

    value: float
    low: float
    high: float
    n: int
    """Texts that it is a share of; 0 makes the value 0 and the interval 0 to 1."""

    @classmethod
    def of(cls, count: int, n: int) -> "Share":
        """`count` of `n`."""
        if not n:
            return cls(value=0.0, low=0.0, high=1.0, n=0)
        p = count / n
        centre = p + _Z**2 / (2 * n)
        half = _Z * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
        scale = 1 + _Z**2 / n
        low, high = (centre - half) / scale, (centre + half) / scale
        return cls(value=p, low=float(max(0.0, low)), high=float(min(1.0, high)), n=n)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"

    def json(self) -> dict[str, float]:
        """As numbers, rounded."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def json(self) -> dict[str, float]:
        """As numbers, rounded."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


def roc_auc(positives: Scores, negatives: Scores) -> float:
    """Chance that a positive scores above a negative, ties counted half (Mann-Whitney); 0.5 when a side is empty."""
    if not len(positives) or not len(negatives):
        return 0.5
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    equal = np.searchsorted(ordered, positives, side="right") - below
    return float((below + equal / 2).mean() / len(negatives))


def pr_auc(positives: Scores, negatives: Scores) -> float:
    """Average precision: the mean precision at each positive, ties taken together; 0 when there is no positive."""
    if not len(positives):
        return 0.0
    recall, precision = pr_curve(positives, negatives)
    return float(np.sum(np.diff(recall) * precision[1:]))


def roc_curve(positives: Scores, negatives: Scores) -> tuple[Scores, Scores]:
    """False and true positive rates from the strictest threshold to none."""
    true, false = _counts(positives, negatives)
    return false / max(1, len(negatives)), true / max(1, len(positives))


def pr_curve(positives: Scores, negatives: Scores) -> tuple[Scores, Scores]:
    """Recall and precision from the strictest threshold to none; the first point is recall 0 at precision 1."""
    true, false = _counts(positives, negatives)
    found = true + false
    precision = np.where(found > 0, true / np.maximum(found, 1), 1.0)
    return true / max(1, len(positives)), precision


def threshold_at(negatives: Scores, rate: float) -> float:
    """The lowest threshold at which at most this share of negatives is at or above it."""
    if not len(negatives):
        return 1.0
    allowed = int(np.floor(rate * len(negatives)))
    ordered = np.sort(negatives)[::-1]
    # Just above the first negative that must not be flagged.
    return float(np.nextafter(ordered[allowed], np.inf)) if allowed < len(ordered) else float(ordered[-1])


def recall_at(positives: Scores, negatives: Scores, rate: float) -> float:
    """Share of positives found at the threshold that flags at most `rate` of these negatives."""
    if not len(positives) or not len(negatives):
        return 0.0
    return float((positives >= threshold_at(negatives, rate)).mean())


def bootstrap(
    figure: Callable[[Scores, Scores], float],
    positives: Scores,
    negatives: Scores,
    *,
    seed: int = 0,
    rounds: int = _ROUNDS,
) -> Interval:
    """A figure and its percentile interval over resampled positives and negatives."""
    value = figure(positives, negatives)
    if not len(positives) or not len(negatives):
        return Interval(value=value, low=0.0, high=1.0)
    random = np.random.default_rng(seed)
    values = [
        figure(
            positives[random.integers(0, len(positives), len(positives))],
            negatives[random.integers(0, len(negatives), len(negatives))],
        )
        for _ in range(rounds)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(value=value, low=float(low), high=float(high))


def calibration_error(positives: Scores, negatives: Scores, *, bins: int = 10) -> float:
    """Expected calibration error over bins of equal width: mean distance of score and share of positives."""
    scores = np.concatenate([positives, negatives])
    labels = np.concatenate([np.ones(len(positives)), np.zeros(len(negatives))])
    if not len(scores):
        return 0.0
    places = np.minimum((scores * bins).astype(int), bins - 1)
    error = 0.0
    for place in range(bins):
        inside = places == place
        if inside.any():
            error += inside.mean() * abs(scores[inside].mean() - labels[inside].mean())
    return float(error)


def _counts(positives: Scores, negatives: Scores) -> tuple[Scores, Scores]:
    """Positives and negatives at or above each distinct score, from the highest score down, after a first (0, 0)."""
    cuts = np.unique(np.concatenate([positives, negatives]))[::-1]
    true = len(positives) - np.searchsorted(np.sort(positives), cuts, side="left")
    false = len(negatives) - np.searchsorted(np.sort(negatives), cuts, side="left")
    return np.concatenate([[0.0], true]), np.concatenate([[0.0], false])

"""From log probabilities to scores. Sums are float64 of the float32 values that the engine reports."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

OUTSIDE_LIMIT = 0.1
"""More probability than this outside the two words means a wrong template or model: the words then say nothing."""


class NumbersError(ValueError):
    """A model's numbers are none that anything can be concluded from, such as NaN."""


@dataclass(frozen=True)
class WordScore:
    """What the model says between its two words."""

    p_unsafe: float
    """Probability of `unsafe` among the two words, 0 to 1."""
    outside_mass: float
    """Probability of everything else, 0 to 1."""


def word_score(*, safe: float, unsafe: float) -> WordScore:
    """The softmax over two words, as the model cards define the score.

    Args:
        safe: Natural log probability of `safe` among the whole vocabulary.
        unsafe: The same of `unsafe`.

    Raises:
        NumbersError: If one is no log probability, or infinite, which no softmax of a sound model gives.
    """
    if not math.isfinite(safe) or not math.isfinite(unsafe) or max(safe, unsafe) > 1e-3:
        raise NumbersError(f"{safe} and {unsafe} are no log probabilities of its two words")
    inside = math.exp(safe) + math.exp(unsafe)
    # Through the difference, so that two very unlikely words do not become 0 / 0.
    p_unsafe = 1 / (1 + math.exp(min(safe - unsafe, 700.0)))
    return WordScore(p_unsafe, min(1.0, max(0.0, 1 - inside)))


def shares(logprobs: Mapping[str, float]) -> dict[str, float]:
    """Softmax over the given log probabilities; empty when there are none.

    Raises:
        NumbersError: If one is not finite.
    """
    if not all(map(math.isfinite, logprobs.values())):
        raise NumbersError("log probabilities of its categories are not finite")
    highest = max(logprobs.values(), default=0.0)
    weights = {key: math.exp(value - highest) for key, value in logprobs.items()}
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}

"""OpenAI's moderation answers: its categories, and what they are among the common codes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CODES: Mapping[str, str] = {
    "harassment/threatening": "S1",
    "hate": "S10",
    "hate/threatening": "S10",
    "illicit": "S2",
    "illicit/violent": "S1",
    "self-harm": "S11",
    "self-harm/intent": "S11",
    "self-harm/instructions": "S11",
    "sexual": "S12",
    "sexual/minors": "S4",
    "violence": "S1",
}
"""Common code by OpenAI's name, where there is one; `harassment` and `violence/graphic` keep their names."""


@dataclass(frozen=True, kw_only=True)
class Moderation:
    """One result, understood."""

    flagged: bool
    """The endpoint's own verdict."""
    categories: tuple[str, ...]
    """Names that the endpoint flagged."""
    scores: Mapping[str, float]
    """Score by name, 0 to 1; empty where the endpoint gives none."""


def read_moderation(answer: object) -> Moderation:
    """The one result of an answer to one text.

    Raises:
        ValueError: If the answer has another shape, or scores outside 0 to 1.
    """
    results = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(results, list) or len(results) != 1 or not isinstance(results[0], dict):
        raise ValueError("the answer holds no list of one result")
    result: dict[str, Any] = results[0]
    flagged, categories = result.get("flagged"), result.get("categories", {})
    scores = result.get("category_scores") or {}
    if not isinstance(flagged, bool) or not isinstance(categories, dict) or not isinstance(scores, dict):
        raise ValueError("the result lacks `flagged`, `categories` or `category_scores`")  # noqa: TRY004 (its contents)
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise ValueError(f"the score of {name!r} is no number from 0 to 1")
    named = tuple(str(name) for name, found in categories.items() if found is True)
    return Moderation(flagged=flagged, categories=named, scores={str(name): float(s) for name, s in scores.items()})


def code_of(name: str) -> str:
    """The common code of an OpenAI category, or its own name."""
    return CODES.get(name, name)

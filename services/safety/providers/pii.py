"""The shield for personal data: found by grammar and check digits, off the network and without a model.

Parameters: `entities` (kinds wanted; unset: all), `action` (`detect`, or `redact`: spans name their placeholder),
`score_threshold` (least confidence of a finding, 0 to 1), `language` (how phone numbers without a country code are
read). Verdicts have in their metadata: `action`, `entities` (how many of each kind) and `confidences` by kind.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from llamastack import v1
from services.safety import params as read
from services.safety.guard import personal
from services.safety.shield import Judgement, ProviderContext, Shield, Span, Subject, Surface

MAX_CHARS = 100_000
"""Characters that are searched; what lies behind them lowers the coverage."""


class PiiProvider:
    """Makes shields for personal data; the shield's provider id has no meaning for them."""

    provider_type = "inline::pii"

    def __init__(self, context: ProviderContext) -> None:
        """Takes nothing from the mesh."""

    async def create(self, shield: v1.Shield, params: Mapping[str, Any]) -> Shield:  # noqa: ARG002 (one rule set)
        """A shield for the entities asked for."""
        read.refuse_unknown(params, ("entities", "action", "score_threshold", "language"))
        entities = read.texts(params, "entities") or personal.ENTITIES
        for entity in entities:
            if entity not in personal.ENTITIES:
                known = ", ".join(personal.ENTITIES)
                raise read.refusal("entities", f"holds {entity!r}; found are {known} (names and places take a model)")
        return PiiShield(
            entities=frozenset(entities),
            redact=read.choice(params, "action", ("detect", "redact"), default="detect") == "redact",
            least=read.number(params, "score_threshold", default=0.5, low=0, high=1),
            language=read.choice(params, "language", personal.REGIONS, default="en"),
        )


class PiiShield:
    """Finds personal data."""

    baseline = False
    streams = True
    every_message = False

    def __init__(self, *, entities: frozenset[str], redact: bool, least: float, language: str) -> None:
        self._entities = entities
        self._redact = redact
        self._least = least
        self._language = language

    def default_threshold(self, surface: Surface) -> float:  # noqa: ARG002 (the same everywhere)
        """0.5: a finding is 1."""
        return 0.5

    async def judge(self, subject: Subject) -> Judgement:
        """Search the text in a thread."""
        text = subject.text[:MAX_CHARS]
        found = await asyncio.to_thread(
            personal.find, text, entities=self._entities, language=self._language, least=self._least
        )
        counts = Counter(one.entity for one in found)
        confidences: dict[str, float] = {}
        for one in found:
            confidences[one.entity] = max(confidences.get(one.entity, 0.0), one.confidence)
        return Judgement(
            codes=tuple(counts),
            score=1.0 if found else 0.0,
            score_kind=v1.SCORE_KIND_RULE,
            category_scores=dict.fromkeys(counts, 1.0),
            spans=tuple(
                Span(
                    start=one.start,
                    end=one.end,
                    code=one.entity,
                    replacement=f"[{one.entity}]" if self._redact else None,
                )
                for one in found
            ),
            coverage=len(text) / len(subject.text),
            metadata={
                "action": "redact" if self._redact else "detect",
                **({"entities": dict(counts), "confidences": confidences} if found else {}),
            },
        )

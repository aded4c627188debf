"""The Prompt Guard shields: injections and jailbreaks, by a classifier of two or three classes that reads everything.

Parameters: `guard_type` (jailbreak or injection, for the same score on every surface; unset: by surface), `temperature`
of the softmax, `max_windows` of one text. The classes are taken by their index: 0 benign, then either 1 malicious
(Prompt Guard 2) or 1 injection, 2 jailbreak (Prompt Guard 1). Verdicts have in their metadata: `classes`, `windows`,
`scores` of the worst window by class, and `violation_type` in the classic form.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llamastack import v1
from services.safety import params as read
from services.safety.guard.target import PACKAGED
from services.safety.guards import Guards
from services.safety.shield import Judgement, ProviderContext, Shield, Span, Subject, Surface
from stack_client.errors import InvalidArgumentError

INJECTION = "prompt_injection"
JAILBREAK = "jailbreak"
Mode = Literal["", "injection", "jailbreak"]
THRESHOLD = 0.9
UNTRUSTED = (
    v1.SAFETY_SURFACE_TOOL_RESULT,
    v1.SAFETY_SURFACE_RETRIEVED,
    v1.SAFETY_SURFACE_MEMORY_WRITE,
    v1.SAFETY_SURFACE_FILE,
)
"""Surfaces on which any command is out of place; elsewhere commands are what dialogs are made of."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One window of a text."""

    start: int
    end: int
    classes: tuple[float, ...]
    """Probability by index of the class."""
    score: float
    """Probability of an attack on this surface."""


class PromptGuardProvider:
    """Makes Prompt Guard shields."""

    provider_type = "inline::prompt-guard"

    def __init__(self, context: ProviderContext) -> None:
        self._guards = context.guards

    async def create(self, shield: v1.Shield, params: Mapping[str, Any]) -> Shield:
        """A shield; `provider_resource_id` is the classifier's identifier at the inference service."""
        read.refuse_unknown(params, ("guard_type", "temperature", "max_windows"))
        kind: Any = read.choice(params, "guard_type", ("injection", "jailbreak"), default="")
        temperature = read.number(params, "temperature", default=1.0, low=0.01, high=100)
        max_windows = read.whole(params, "max_windows", default=64, low=1, high=1024)
        model = await self._guards.model(shield.provider_resource_id)
        if model.model_type != v1.MODEL_TYPE_CLASSIFIER:
            message = f"model {model.identifier!r} is no classifier; register it with model_type classifier"
            raise InvalidArgumentError(message, field="provider_shield_id")
        if model.provider_resource_id.startswith(PACKAGED):
            message = f"model {model.identifier!r} is packaged and no Prompt Guard: its outputs mean other things"
            raise InvalidArgumentError(message, field="provider_shield_id")
        return PromptGuardShield(
            self._guards, model.identifier, mode=kind, temperature=temperature, max_windows=max_windows
        )


class PromptGuardShield:
    """One classifier."""

    baseline = False
    streams = True
    every_message = True  # an injection may stand in any message that a call brings

    def __init__(self, guards: Guards, model_id: str, *, mode: Mode, temperature: float, max_windows: int) -> None:
        self._guards = guards
        self._model_id = model_id
        self._mode = mode
        self._temperature = temperature
        self._max_windows = max_windows

    def default_threshold(self, surface: Surface) -> float:  # noqa: ARG002 (the same everywhere)
        """0.9 on every surface, where the authors' own stacks block."""
        return THRESHOLD

    async def judge(self, subject: Subject) -> Judgement:
        """Classify every window of the text; the strongest probability counts."""
        response = await self._guards.classify(
            v1.ClassifyRequest(
                model_id=self._model_id,
                texts=[subject.text],
                windows=v1.ClassifyWindows(max_windows=self._max_windows),
            )
        )
        tokens, size = response.usage.prompt_tokens, len(subject.text.encode())
        try:
            found = self._read(response, subject.surface)
        except ValueError as error:
            return Judgement(
                failure=str(error), model=self._model_id, guard_calls=1, guard_tokens=tokens, guard_bytes=size
            )
        worst = max(found, key=lambda window: window.score)
        code = JAILBREAK if self._wanted(subject.surface) == "jailbreak" else INJECTION
        flagged = worst.score >= subject.threshold
        metadata: dict[str, Any] = {
            "classes": len(worst.classes),
            "windows": len(found),
            "scores": list(worst.classes),
        }
        if flagged:
            metadata["violation_type"] = violation_type(worst.classes)
        return Judgement(
            codes=(code,) if flagged else (),
            score=worst.score,
            score_kind=v1.SCORE_KIND_MODEL_PROBABILITY,
            category_scores={code: worst.score},
            spans=(Span(start=worst.start, end=worst.end, code=code),) if flagged else (),
            coverage=response.results[0].coverage,
            model=self._model_id,
            guard_calls=1,
            guard_tokens=tokens,
            guard_bytes=size,
            metadata=metadata,
        )

    def _wanted(self, surface: Surface) -> Mode:
        return self._mode or ("injection" if surface in UNTRUSTED else "jailbreak")

    def _read(self, response: v1.ClassifyResponse, surface: Surface) -> list[Scored]:
        """The windows with their scores.

        Raises:
            ValueError: If the answer is none of a Prompt Guard.
        """
        if len(response.results) != 1 or not response.results[0].windows:
            raise ValueError(f"the classifier {self._model_id!r} answered without windows")
        if not 0 <= response.results[0].coverage <= 1:
            raise ValueError(f"the classifier {self._model_id!r} answered with no share of the text that it read")
        scored = []
        for window in response.results[0].windows:
            classes = softmax(window.logits, self._temperature)
            if self._mode == "injection" and len(classes) == 2:
                raise ValueError(
                    f"params.guard_type is injection, but {self._model_id!r} has no such class; leave guard_type unset"
                )
            score = attack_score(classes, injection=self._wanted(surface) == "injection")
            scored.append(Scored(start=window.start, end=window.end, classes=classes, score=score))
        return scored


def softmax(logits: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Probabilities of the two or three classes of a Prompt Guard.

    Raises:
        ValueError: If there are other numbers of classes, or an output is not finite.
    """
    if len(logits) not in {2, 3}:
        raise ValueError(f"a Prompt Guard has 2 or 3 classes, this classifier has {len(logits)}")
    if not all(math.isfinite(logit) for logit in logits):
        raise ValueError("the classifier's outputs are not finite")
    highest = max(logits)
    weights = [math.exp((logit - highest) / temperature) for logit in logits]
    return tuple(weight / sum(weights) for weight in weights)


def attack_score(classes: Sequence[float], *, injection: bool) -> float:
    """Probability of an attack: Prompt Guard 2 has one class of it; 1 counts its injections only where asked for.

    Args:
        classes: Probabilities by index.
        injection: Whether an instruction that is out of place counts, as in text from tools and documents.
    """
    if len(classes) == 2:
        return classes[1]
    return min(1.0, classes[1] + classes[2]) if injection else classes[2]


def violation_type(classes: Sequence[float]) -> str:
    """The classic form: `prompt_injection:embedded=0.10,malicious=0.85`, or without the class that 2 does not have."""
    if len(classes) == 2:
        return f"{INJECTION}:malicious={classes[1]:.2f}"
    return f"{INJECTION}:embedded={classes[1]:.2f},malicious={classes[2]:.2f}"

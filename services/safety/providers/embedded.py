"""Provider `embedded`: the default without a guard model. Rules, a packaged detector, small heads; always `baseline`.

What is judged by what: text from tools, stores and files by rules and the detector; a user's turn by rules, heads and
the detector; what a model writes by the head of harmful content, and by rules where a tool or interpreter gets it.
Without the head of harmful content (`heads: {"content": false}`) what a model writes is therefore not judged, and the
judgement fails, unless a rule finds something. A user's turn without heads is judged by rules.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llamastack import v1
from services.runtime.offload import offload
from services.safety.baseline import phrases
from services.safety.baseline.content_labels import CONTENT_CODES
from services.safety.baseline.heads import detector_score, load_card, load_heads
from services.safety.baseline.reading import Part, Reading, Window, read
from services.safety.guards import Guards
from services.safety.shield import Judgement, ProviderContext, Shield, Span, Subject, Surface, surface_name
from stack_client.errors import InvalidArgumentError, NotFoundError, UnsupportedError

Vectors: TypeAlias = NDArray[np.float64]

EMBEDDER = "all-minilm-l6-v2"
DETECTOR = "tool-text-detector"
_UNTRUSTED = frozenset({"tool_result", "retrieved", "file", "memory_write"})
_CONTENT = frozenset({"user", "assistant", "tool_arguments", "code"})
_RULED = _UNTRUSTED | {"user", "tool_arguments", "code"}
_PARAMS = ("detector", "heads", "max_windows", "model")
_MAX_WINDOWS = 1024
# A class beside the strongest is named when it takes at least this part of what was found.
_SECOND_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Parameters of a registration."""

    model: str = EMBEDDER
    """Sentence encoder under the heads; another one than the heads were trained on makes them useless."""
    detector: str = DETECTOR
    """Detector of injections in text from tools."""
    injection: bool = True
    """Run the injection head."""
    content: bool = True
    """Run the head of harmful content."""
    max_windows: int = 64
    """Windows of about 250 tokens read of a text by each model; text behind them lowers the coverage."""


@dataclass(kw_only=True)
class _Evidence:
    """What was found so far."""

    scores: dict[str, float] = field(default_factory=dict)
    """By code."""
    content: float = 0.0
    """Score of harmful content as a whole, of which the codes have shares."""
    spans: list[Span] = field(default_factory=list)
    coverage: float = 1.0
    failure: str = ""
    calls: int = 0
    tokens: int = 0
    sent: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


class EmbeddedShield(Shield):
    """The embedded default, as registered."""

    baseline = True
    streams = True
    every_message = False

    def __init__(self, guards: Guards, settings: Settings) -> None:
        self._guards = guards
        self._settings = settings

    def default_threshold(self, surface: Surface) -> float:
        """The score that 1 % of the harmless dev texts of this surface reach."""
        return load_card().threshold(surface_name(surface))

    async def judge(self, subject: Subject) -> Judgement:
        """Look at one text.

        Raises:
            StackError: If a model that the surface needs cannot be asked, or the encoder is not served.
        """
        surface = surface_name(subject.surface)
        reading = await offload(len(subject.text), read, subject.text)
        evidence = _Evidence(coverage=reading.coverage)
        if reading.normalised.changes:
            evidence.metadata["disguises"] = sorted(reading.normalised.changes)
        if surface in _RULED:
            await offload(len(subject.text), _apply_rules, evidence, subject.text, reading, surface)
        if surface in _UNTRUSTED:
            await self._judge_untrusted(evidence, reading)
        else:
            await self._judge_dialog(evidence, subject, reading, surface)
        return self._judgement(evidence, subject)

    async def _judge_untrusted(self, evidence: _Evidence, reading: Reading) -> None:
        try:
            best = await self._detect(evidence, reading.parts)
        except (NotFoundError, UnsupportedError) as error:
            evidence.failure = (
                f"the detector {self._settings.detector!r} is not served, so text from tools cannot be "
                f"judged ({error.message}); install stackone-defender where the inference service runs, "
                "and add it to its models"
            )
            return
        if best is not None:
            _note(evidence, "prompt_injection", detector_score(best[0], best[1]), best[2])
            evidence.metadata["detector"] = {"main": round(best[0], 3), "aux": round(best[1], 3)}

    async def _judge_dialog(self, evidence: _Evidence, subject: Subject, reading: Reading, surface: str) -> None:
        settings = self._settings
        windows = await offload(len(subject.text), reading.windows)
        windows = [window for window in windows if window.end > subject.settled]
        kept = windows[: settings.max_windows]
        if len(kept) < len(windows):
            evidence.coverage = min(evidence.coverage, kept[-1].end / len(subject.text.rstrip()))
        user = surface == "user"
        wants_injection = user and settings.injection
        wants_content = surface in _CONTENT and settings.content
        if kept and not user and not wants_content:
            evidence.failure = (
                f"heads.content is off, and nothing else of this shield judges text of surface {surface}; "
                "switch it on, or use another shield there"
            )
        if not kept or not (wants_injection or wants_content):
            return
        try:
            vectors, detected = await asyncio.gather(
                self._embed(evidence, kept),
                self._detect_if_served(evidence, reading) if wants_injection else _nothing(),
            )
        except NotFoundError as error:
            evidence.failure = (
                f"the baseline's encoder {settings.model!r} is not served ({error.message}); add it to "
                "inference.models, use other shields, or switch the baseline off (safety.baseline: false)"
            )
            return
        if not _usable(vectors, len(kept)):
            evidence.failure = f"the encoder {settings.model!r} answered with numbers that are not finite, or too few"
            return
        if wants_injection:
            _add_injection(evidence, vectors, kept, detected=detected)
        if wants_content:
            _add_content(evidence, vectors, kept, task="content_user" if user else "content_assistant")

    async def _embed(self, evidence: _Evidence, windows: Sequence[Window]) -> Vectors:
        vectors = await self._guards.embed(self._settings.model, [window.text for window in windows])
        evidence.calls += 1
        evidence.sent += sum(len(window.text.encode()) for window in windows)
        return np.asarray(vectors, np.float64)

    async def _detect_if_served(self, evidence: _Evidence, reading: Reading) -> tuple[float, float, Span] | None:
        """The detector's answer for a user's turn, which can be judged without it."""
        try:
            return await self._detect(evidence, reading.parts)
        except (NotFoundError, UnsupportedError):
            evidence.metadata["detector"] = "not_served"
            return None

    async def _detect(self, evidence: _Evidence, parts: Sequence[Part]) -> tuple[float, float, Span] | None:
        """Main and auxiliary logit and place of the strongest window; None when there is nothing to read."""
        if not parts:
            return None
        request = v1.ClassifyRequest(
            model_id=self._settings.detector,
            texts=[part.text for part in parts],
            windows=v1.ClassifyWindows(overlap=48, max_windows=self._settings.max_windows),
        )
        response = await self._guards.classify(request)
        evidence.calls += 1
        evidence.sent += sum(len(part.text.encode()) for part in parts)
        evidence.tokens += sum(result.tokens for result in response.results)
        if not _sound(response):
            evidence.failure = f"the detector {self._settings.detector!r} answered with numbers that are not finite"
            return None
        found = [
            (window.logits[0], window.logits[1], Span(start=start, end=end, code="prompt_injection"))
            for part, result in zip(parts, response.results, strict=True)
            for window in result.windows
            for start, end in [part.raw_span(window.start, window.end)]
        ]
        evidence.coverage = min([evidence.coverage, *(result.coverage for result in response.results)])
        return max(found, key=lambda item: item[0]) if found else None

    def _judgement(self, evidence: _Evidence, subject: Subject) -> Judgement:
        if not all(map(math.isfinite, (evidence.content, *evidence.scores.values()))):
            evidence.failure = "the models' numbers are too large to be scored"
            evidence.content = 0.0
            evidence.scores = {code: value for code, value in evidence.scores.items() if math.isfinite(value)}
        score = max([evidence.content, *evidence.scores.values()], default=0.0)
        codes = [code for code, value in evidence.scores.items() if value >= subject.threshold and code not in _SHARED]
        shares = {code: value for code, value in evidence.scores.items() if code in _SHARED}
        if shares and evidence.content >= subject.threshold:
            shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
            most = max(shares.values())
            codes += [
                code for code, value in shares.items() if value == most or value >= _SECOND_SHARE * evidence.content
            ]
        certain = bool(codes) and evidence.scores.get(codes[0]) == 1.0
        failure = "" if certain else evidence.failure
        return Judgement(
            codes=tuple(codes),
            score=None if failure else score,
            score_kind=v1.SCORE_KIND_MODEL_PROBABILITY,
            category_scores=evidence.scores,
            spans=tuple(span for span in evidence.spans if span.code in codes),
            coverage=evidence.coverage,
            failure=failure,
            model=self._settings.model,
            model_hash=load_heads()[1],
            baseline=True,
            guard_calls=evidence.calls,
            guard_tokens=evidence.tokens,
            guard_bytes=evidence.sent,
            metadata=evidence.metadata,
        )


class EmbeddedProvider:
    """Makes the embedded default.

    Parameters: `model` (sentence encoder), `detector` (classifier of text from tools), `heads` (object with `injection`
    and `content`, true or false; without `content` nothing that a model writes is judged, which is a failure there),
    `max_windows` (windows read of one text, 1 to 1024).
    """

    provider_type = "inline::embedded"

    def __init__(self, context: ProviderContext) -> None:
        self._guards = context.guards

    async def create(self, shield: v1.Shield, params: Mapping[str, Any]) -> EmbeddedShield:
        """A shield from its registration; see `ShieldProvider.create`.

        The models are looked for at the first judgement: the default is there before the inference service is.
        """
        unknown = sorted(set(params) - set(_PARAMS))
        if unknown:
            raise _wrong(unknown[0], f"shield {shield.identifier!r}: the embedded default knows no parameter "
                                     f"{unknown[0]!r}; there are: {', '.join(_PARAMS)}")  # fmt: skip
        names = {name: params.get(name, default) for name, default in (("model", EMBEDDER), ("detector", DETECTOR))}
        for name, value in names.items():
            if not isinstance(value, str) or not value:
                raise _wrong(name, f"{name} is the name of a model, not {value!r}")
        settings = Settings(
            **names, **_heads(params.get("heads", {})), max_windows=_windows(params.get("max_windows", 64))
        )
        return EmbeddedShield(self._guards, settings)


_SHARED = frozenset(CONTENT_CODES.values())
"""Codes that share one score of harmful content."""


def _apply_rules(evidence: _Evidence, text: str, reading: Reading, surface: str) -> None:
    """Rules of phrases, and text that no reader sees; a finding counts as certain."""
    searched = phrases.builtin().find(text, reading.normalised, surface=surface)
    evidence.coverage = min(evidence.coverage, searched.coverage)
    found = searched.matches
    for match in found:
        _note(evidence, match.rule.code, 1.0, match.span)
    for hidden in reading.normalised.hidden:
        _note(evidence, phrases.HIDDEN, 1.0, Span(start=hidden.start, end=hidden.end, code=phrases.HIDDEN))
    names = dict.fromkeys(
        [match.rule.rule_id for match in found] + ["hidden-characters"] * bool(reading.normalised.hidden)
    )
    if names:
        evidence.metadata["rules"] = list(names)


def _add_injection(
    evidence: _Evidence,
    vectors: Vectors,
    windows: Sequence[Window],
    *,
    detected: tuple[float, float, Span] | None,
) -> None:
    card, (heads, _) = load_card(), load_heads()
    logits = heads.injection_logits(vectors)
    best = int(logits.argmax())
    if detected is None:
        score = card.score("injection_alone", float(logits[best]))
    else:
        score = card.score("injection", card.injection_logit(float(logits[best]), detected[0]))
        evidence.metadata["detector"] = {"main": round(detected[0], 3), "aux": round(detected[1], 3)}
    place = Span(start=windows[best].start, end=windows[best].end, code=phrases.INJECTION)
    _note(evidence, phrases.INJECTION, score, place)


def _add_content(
    evidence: _Evidence,
    vectors: Vectors,
    windows: Sequence[Window],
    *,
    task: str,
) -> None:
    card, (heads, _) = load_card(), load_heads()
    logits = heads.content_logits(vectors)
    best = int(logits.argmax())
    evidence.content = card.score(task, float(logits[best]))
    for name, share in heads.shares(vectors[best]).items():
        code = CONTENT_CODES[name]
        place = Span(start=windows[best].start, end=windows[best].end, code=code)
        _note(evidence, code, evidence.content * share, place)


def _note(evidence: _Evidence, code: str, score: float, span: Span) -> None:
    evidence.scores[code] = max(evidence.scores.get(code, 0.0), score)
    evidence.spans.append(span)


def _usable(vectors: Vectors, windows: int) -> bool:
    return len(vectors) == windows and bool(np.isfinite(vectors).all())


def _sound(response: v1.ClassifyResponse) -> bool:
    return all(
        0 <= result.coverage <= 1 and all(math.isfinite(logit) for window in result.windows for logit in window.logits)
        for result in response.results
    )


async def _nothing() -> None:
    return None


def _heads(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not set(value) <= {"injection", "content"}:
        raise _wrong("heads", f"heads is an object with injection and content, not {value!r}")
    for name, wanted in value.items():
        if not isinstance(wanted, bool):
            raise _wrong("heads", f"heads.{name} is true or false, not {wanted!r}")
    return dict(value)


def _windows(value: object) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != int(value)
        or not 1 <= value <= _MAX_WINDOWS
    ):
        raise _wrong("max_windows", f"max_windows is a whole number from 1 to {_MAX_WINDOWS}, not {value!r}")
    return int(value)


def _wrong(name: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, field=f"params.{name}")

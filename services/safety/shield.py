"""What a shield is: it looks at one text in its dialog and says what it found. What follows is the policy's business.

An implementation is one file in `providers/` with one line in `PROVIDERS`. A provider makes shields from registrations
and refuses parameters that it does not know. A shield never answers "nothing found" without having looked: what it
cannot judge it reports as not judged (`Judgement.failure`, or a `coverage` below 1), or it raises a `StackError`; the
service turns both into the policy's decision, which is to block unless the policy says otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from llamastack import v1
from services.safety.guards import Guards

Surface: TypeAlias = "v1.SafetySurface.ValueType"
ScoreKind: TypeAlias = "v1.ScoreKind.ValueType"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One text to be judged."""

    text: str
    """The text; never empty."""
    surface: Surface
    """Where it stands in the dialog; never unspecified."""
    dialog: Sequence[v1.Message] = ()
    """The dialog before it, oldest first; without the text itself."""
    threshold: float
    """Score from which the policy acts on this surface. Shields for which a closer look costs more (codes of a
    Llama Guard) take it only from there on."""
    settled: int = 0
    """Characters at the start of `text` that were judged before and are here as context, as in a moderated stream."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of the text that caused a finding."""

    start: int
    """First character, in Unicode code points."""
    end: int
    """One past the last."""
    code: str
    """What was found there, for example `S7`, `EMAIL_ADDRESS` or a rule's id."""
    replacement: str | None = None
    """What redaction puts in its place; None means `[CODE]`."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a shield found in one text: scores as they are, before any threshold of a policy."""

    codes: tuple[str, ...] = ()
    """Codes found: category codes such as `S1`, `prompt_injection`, rule ids. Empty where nothing was found, and also
    where a shield with scores took no closer look below the threshold."""
    score: float | None = None
    """Strength of the strongest finding, 0 to 1. None only with `failure`: rules answer 1 or 0."""
    score_kind: ScoreKind = v1.SCORE_KIND_UNSPECIFIED
    """What the scores mean."""
    category_scores: Mapping[str, float] = field(default_factory=dict)
    """Score by code; categories that were not scored are left out."""
    spans: tuple[Span, ...] = ()
    """Where the findings are; empty when the shield judges whole texts only."""
    coverage: float = 1.0
    """Share of the text that was judged; below 1 the text counts as not judged."""
    failure: str = ""
    """Why no judgement was possible, such as an answer of the guard that means nothing; empty when there is one."""
    language: str = ""
    """BCP 47 tag of the language, where the shield looked."""
    model: str = ""
    """The guard model; empty for rules."""
    model_hash: str = ""
    """SHA-256 of its weights, where known."""
    baseline: bool = False
    """The embedded default, no full guard model."""
    guard_calls: int = 0
    """Calls of guard models that it took."""
    guard_tokens: int = 0
    """Tokens that these read."""
    guard_bytes: int = 0
    """Bytes of text sent to guard models, context included."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Further facts, as JSON; `violation_type` overrides the comma-joined codes."""


class Shield(Protocol):
    """A registered guard, ready to judge."""

    baseline: bool
    """The embedded default, no full guard model."""
    streams: bool
    """Whether it can judge a growing text window by window; else a stream is judged once, at its end."""
    every_message: bool
    """Whether it judges every message of users and tools that a call brings, where its parameters do not say."""

    def default_threshold(self, surface: Surface) -> float:
        """Score from which a finding counts where neither registration nor policy says."""

    async def judge(self, subject: Subject) -> Judgement:
        """Look at one text. Called for several texts at once.

        Raises:
            StackError: If a guard model cannot be reached or refuses.
        """


class ShieldProvider(Protocol):
    """Makes shields of one kind."""

    provider_type: str
    """Its type as Llama Stack names it, for example `inline::llama-guard`."""

    async def create(self, shield: v1.Shield, params: Mapping[str, Any]) -> Shield:
        """A shield from its registration.

        The guard model need not be ready yet, and nothing big is loaded before the first judgement.

        Args:
            shield: As registered; `provider_resource_id` names the guard model or rule set.
            params: Its parameters as plain JSON. Keys `threshold` and `thresholds` (by surface name) are the service's
                own and are taken out before.

        Raises:
            InvalidArgumentError: If a parameter is unknown or has a wrong value; `field` is `params.<name>`.
            NotFoundError: If the guard model is not registered (reason MODEL_NOT_FOUND).
        """


@dataclass(frozen=True, kw_only=True)
class ProviderContext:
    """What the service gives to every provider."""

    guards: Guards
    """The models of the inference service."""


def surface_name(surface: Surface) -> str:
    """`user`, `assistant`, `tool_result`, ...: the name in policies, parameters and metrics."""
    return v1.SafetySurface.Name(surface).removeprefix("SAFETY_SURFACE_").lower()

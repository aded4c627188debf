"""Configuration of the safety service, section `safety` of the stack's file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ShieldConfig:
    """A shield that is there from the start."""

    provider: str = ""
    """Provider, for example `llama-guard`; empty takes the one whose name the shield's begins with."""
    model: str = ""
    """The guard's weights: a folder, a file or a hub id, which is registered with the inference service; or the name of
    a model that is registered there. Empty means the shield's name."""
    params: dict[str, Any] = field(default_factory=dict)
    """Parameters of every run."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """The log of verdicts."""

    enabled: bool = True
    """Write every verdict to the log in the data folder."""
    required: bool = False
    """A verdict that cannot be written blocks."""
    text: bool = False
    """Keep the judged text too; otherwise only its keyed hash."""
    segment_bytes: int = 64 * 1024 * 1024
    """Size from which a new file of the chain is begun."""


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Shields, policy and bounds of the safety service."""

    shields: dict[str, str | ShieldConfig] = field(default_factory=dict)
    """Shields by name, beside the embedded `baseline`; `llama-guard-3: /models/Llama-Guard-3-8B` is a whole one."""
    baseline: bool = True
    """Have the embedded baseline as shield `baseline`."""
    policy: Path | None = None
    """YAML file of the policy, read again when it changes; unset binds every shield to the surfaces of its own."""
    moderation_shield: str = ""
    """Shield of moderation calls that name no model; empty means the policy's for the surface."""
    guard_seconds: float = 10.0
    """Time that one call of a guard model may take; what takes longer counts as not judged."""
    judge_seconds: float = 30.0
    """Time that one judgement may take in all."""
    running_judgements: int = 64
    """Judgements at once at most; more wait."""
    waiting_judgements: int = 4096
    """Judgements that run or wait at most; more are refused with RESOURCE_EXHAUSTED."""
    text_characters: int = 1_000_000
    """Longest text of one judgement or stream."""
    cached_verdicts: int = 10_000
    """Judgements kept; 0 keeps none."""
    cache_seconds: float = 300.0
    """How long one is kept."""
    audit: AuditConfig = AuditConfig()
    """The log of verdicts."""

    def __post_init__(self) -> None:
        """Refuse what could not judge anything."""
        bounds = ("running_judgements", "waiting_judgements", "text_characters")
        for name in ("guard_seconds", "judge_seconds", "cache_seconds", *bounds):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give more than 0")
        if self.cached_verdicts < 0:
            raise ValueError("cached_verdicts: give 0 (none) or more")


Mode = Literal["hold", "whole", "observe"]

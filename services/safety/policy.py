"""The policy: which shields judge which surface, from which score on, and what follows. Versions never change.

    policy: default
    on_error: closed                 # what a guard cannot judge is blocked; `open` lets it pass, and says so loudly
    surfaces:
      user:
        shields:
          - baseline                 # with its own threshold, action block
          - {shield: llama-guard-3, threshold: 0.5, warn: 0.3, action: block,
             categories: {S6: {action: warn, threshold: 0.8}}}
      assistant:
        shields: [llama-guard-3]
        stream: hold                 # hold | whole | observe
        on_error: open
    allow:
      - {surface: user, exact: "kill -9 1234", until: 2027-06-01, owner: sre}

Surfaces are user, assistant, tool_arguments, tool_result, retrieved, memory_write, file and code. A surface that the
file leaves out has no shields of its own; a shield that a caller names all the same blocks at its own threshold.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from services.runtime.config import ConfigError, read_config
from services.runtime.reader import load_yaml
from services.safety.config import Mode

Action = Literal["block", "warn", "redact", "log"]
OnError = Literal["closed", "open"]
SURFACES = ("user", "assistant", "tool_arguments", "tool_result", "retrieved", "memory_write", "file", "code")


@dataclass(frozen=True, kw_only=True)
class CategoryRule:
    """What one category of a shield means here."""

    action: Action | None = None
    """What follows when it is found; unset means the shield's."""
    threshold: float | None = None
    """Score from which it counts; unset means the shield's."""


@dataclass(frozen=True, kw_only=True)
class Binding:
    """One shield on one surface."""

    shield: str
    """Its name."""
    threshold: float | None = None
    """Score from which `action` follows, 0 to 1; unset means the shield's own."""
    warn: float | None = None
    """Score from which a finding is reported as a warning; unset means never below the threshold."""
    action: Action | None = None
    """What follows from the threshold on; unset means what the shield was registered with, else to block."""
    categories: dict[str, CategoryRule] = field(default_factory=dict)
    """Exceptions by category code. A finding of several categories takes the strictest of their actions."""

    def __post_init__(self) -> None:
        """Refuse scores that cannot be."""
        scores = {"threshold": self.threshold, "warn": self.warn}
        scores |= {f"categories.{code}.threshold": rule.threshold for code, rule in self.categories.items()}
        for name, score in scores.items():
            if score is not None and not 0 <= score <= 1:
                raise ValueError(f"{name}: {score:g} is no score; give 0 to 1")


@dataclass(frozen=True, kw_only=True)
class SurfacePolicy:
    """What happens on one surface."""

    shields: tuple[str | Binding, ...] = ()
    """The shields that judge it; a plain name blocks at the shield's own threshold."""
    on_error: OnError | None = None
    """What follows when a shield cannot judge; unset means the policy's."""
    stream: Mode = "hold"
    """When a moderated stream releases text."""


@dataclass(frozen=True, kw_only=True)
class AllowRule:
    """A text that is always allowed, for example a false alarm of a guard."""

    surface: str
    """Where."""
    exact: str
    """The whole text, without blanks at its ends."""
    until: dt.date
    """Last day."""
    owner: str
    """Who answers for it."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A policy as written."""

    policy: str = "default"
    """Its name."""
    on_error: OnError = "closed"
    """What follows when a shield cannot judge."""
    surfaces: dict[str, SurfacePolicy] = field(default_factory=dict)
    """By surface."""
    allow: tuple[AllowRule, ...] = ()
    """Texts that are always allowed; never where a finding is of category S4."""

    def __post_init__(self) -> None:
        """Refuse surfaces that do not exist and shields named twice."""
        for name in [*self.surfaces, *(rule.surface for rule in self.allow)]:
            if name not in SURFACES:
                raise ValueError(f"surfaces: there is no surface {name!r}; there are {', '.join(SURFACES)}")
        for name, surface in self.surfaces.items():
            names = [_binding(entry).shield for entry in surface.shields]
            for shield in names:
                if names.count(shield) > 1:
                    raise ValueError(f"surfaces.{name}.shields: {shield!r} is there twice")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One version of a policy."""

    version: str
    """SHA-256 of the canonical form, hexadecimal."""
    document: Document
    """As written, with defaults filled in."""
    loaded_at: dt.datetime
    """When it came into force."""

    @property
    def canonical(self) -> dict[str, Any]:
        """The document as JSON."""
        return _canonical(self.document)

    def bindings(self, surface: str) -> list[Binding]:
        """The shields of a surface."""
        found = self.document.surfaces.get(surface)
        return [_binding(entry) for entry in found.shields] if found else []

    def binding(self, surface: str, shield: str) -> Binding:
        """How one shield is bound to a surface; one that is not blocks at its own threshold."""
        bound = (one for one in self.bindings(surface) if one.shield == shield)
        return next(bound, Binding(shield=shield))

    def fails_open(self, surface: str) -> bool:
        """Whether what cannot be judged may pass there."""
        found = self.document.surfaces.get(surface)
        return (found.on_error if found and found.on_error else self.document.on_error) == "open"

    def stream_mode(self, surface: str) -> Mode:
        """When a moderated stream of that surface releases text."""
        found = self.document.surfaces.get(surface)
        return found.stream if found else "hold"

    def allows(self, surface: str, text: str, *, today: dt.date) -> AllowRule | None:
        """The rule that allows a text whatever shields say."""
        for rule in self.document.allow:
            if rule.surface == surface and rule.exact.strip() == text.strip() and today <= rule.until:
                return rule
        return None

    @property
    def shields(self) -> set[str]:
        """All shields that it names."""
        return {binding.shield for surface in self.document.surfaces for binding in self.bindings(surface)}


def make_policy(document: Document) -> Policy:
    """A version of a document."""
    canonical = json.dumps(_canonical(document), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    version = hashlib.sha256(canonical.encode()).hexdigest()
    return Policy(version=version, document=document, loaded_at=dt.datetime.now(tz=dt.UTC))


def read_policy(path: Path) -> Policy:
    """The policy of a file.

    Raises:
        ConfigError: If it cannot be read, or holds an unknown key or a wrong value; the message names file and key.
    """
    return make_policy(read_config(Document, load_yaml(path), file=path))


def built_in_policy(shields: Mapping[str, tuple[str, ...]]) -> Policy:
    """The policy where no file gives one: every shield blocks on the surfaces of its own."""
    surfaces = {
        surface: SurfacePolicy(shields=tuple(sorted(name for name, watched in shields.items() if surface in watched)))
        for surface in SURFACES
    }
    return make_policy(Document(surfaces=surfaces))


def check_shields(policy: Policy, known: set[str], *, file: object) -> None:
    """Refuse a policy that names shields which do not exist.

    Raises:
        ConfigError: The message names file, key and the shields that there are.
    """
    for surface in policy.document.surfaces:
        for binding in policy.bindings(surface):
            if binding.shield not in known:
                names = ", ".join(sorted(known)) or "none"
                message = f"surfaces.{surface}.shields: no shield {binding.shield!r}; there are: {names}"
                raise ConfigError(f"{file}: {message}")


def _binding(entry: Binding | str) -> Binding:
    return entry if isinstance(entry, Binding) else Binding(shield=entry)


def _canonical(document: Document) -> dict[str, Any]:
    """The document as JSON with every default written out, so that two ways to write one policy have one version."""
    surfaces = {
        name: {**asdict(surface), "shields": [asdict(_binding(entry)) for entry in surface.shields]}
        for name, surface in sorted(document.surfaces.items())
        if surface.shields or surface.on_error or surface.stream != "hold"
    }
    whole = {**asdict(document), "surfaces": surfaces}
    return dict(json.loads(json.dumps(whole, default=str)))

"""The shields of the service: registered at run time and kept, or there from the start by configuration."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from google.protobuf import json_format

from llamastack import v1
from services.safety.policy import SURFACES, Action
from services.safety.shield import Shield, ShieldProvider, Surface, surface_name
from stack_client.content import plain
from stack_client.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StackError,
    UnavailableError,
)
from stack_client.safety import POLICY

logger = logging.getLogger(__name__)

ACTIONS: Mapping[str, Action] = {
    "block": "block", "warn": "warn", "redact": "redact", "log": "log", "detect": "block",
}  # fmt: skip
OWN = ("threshold", "thresholds", "action", "messages", "surfaces")
MOST_VARIANTS = 64
RETRY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the service itself reads of a shield's parameters."""

    threshold: float | None = None
    """Score from which a finding counts, on every surface that `thresholds` leaves out."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """The same by surface."""
    action: Action = "block"
    """What follows where the policy does not say."""
    every_message: bool | None = None
    """Judge every message of users and tools that a call brings (`messages: all`), not only the last (`last`)."""
    surfaces: tuple[str, ...] = ()
    """Surfaces that it watches in the built-in policy."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registered shield, ready to judge."""

    shield: v1.Shield
    implementation: Shield
    settings: Settings
    tenant: str = ""
    """Whose it is; empty means everybody's."""
    kept: bool = False
    """Registered at run time and kept over restarts, not configured."""
    fingerprint: str = ""
    """Of everything that its judgements depend on, for the cache."""

    def threshold(self, surface: Surface) -> float:
        """Score from which a finding counts there, unless the policy says otherwise."""
        own = self.settings.thresholds.get(surface_name(surface), self.settings.threshold)
        return self.implementation.default_threshold(surface) if own is None else own

    @property
    def every_message(self) -> bool:
        """Whether earlier messages of users and tools are judged too."""
        chosen = self.settings.every_message
        return self.implementation.every_message if chosen is None else chosen


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A shield that cannot be made yet, for example because the inference service is not up; it judges nothing."""

    shield: v1.Shield
    settings: Settings
    tenant: str
    kept: bool
    why: str
    """Why not."""


class ShieldRegistry:
    """Shields by tenant and name.

    Args:
        providers: By provider id.
        file: Keeps what is registered at run time.
        on_change: Called when the set of shields changes.
    """

    def __init__(
        self, providers: Mapping[str, ShieldProvider], *, file: Path, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.providers = providers
        self._file = file
        self._on_change = on_change
        self._entries: dict[tuple[str, str], Entry] = {}
        self._pending: dict[tuple[str, str], Pending] = {}
        self._variants: dict[str, Entry] = {}
        self._registering = asyncio.Lock()
        self._writing = asyncio.Lock()

    async def open(self) -> None:
        """Read what was registered before; what cannot be made yet waits for `retry`."""
        if not self._file.exists():
            return
        for kept in json.loads(await asyncio.to_thread(self._file.read_text)):
            shield = json_format.ParseDict(kept["shield"], v1.Shield())
            try:
                await self._make(shield, tenant=kept["tenant"], kept=True)
            except StackError as error:
                # It stays pending and blocks where it is bound: to forget it would open what it guards.
                logger.error("shield %s cannot be made again: %s", shield.identifier, error.message)
                self._wait(shield, tenant=kept["tenant"], kept=True, why=error.message)

    async def configure(self, shield: v1.Shield) -> None:
        """Add a shield of the configuration; it takes the place of one that was registered under its name.

        Raises:
            InvalidArgumentError: If a parameter is wrong.
        """
        await self._make(shield, tenant="", kept=False)

    async def retry(self) -> None:
        """Make pending shields as soon as that is possible; runs until cancelled."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            for (tenant, name), pending in list(self._pending.items()):
                try:
                    await self._make(pending.shield, tenant=tenant, kept=pending.kept)
                    logger.info("shield %s is there now", name)
                except StackError as error:
                    self._wait(pending.shield, tenant=tenant, kept=pending.kept, why=error.message)

    async def _make(self, shield: v1.Shield, *, tenant: str, kept: bool) -> None:
        """Add a shield, or let it wait where its guard model is not to be had now.

        Raises:
            StackError: If it can never be made.
        """
        try:
            entry = await self._entry(shield, tenant=tenant, kept=kept)
        except (NotFoundError, UnavailableError, DeadlineExceededError) as error:
            self._wait(shield, tenant=tenant, kept=kept, why=error.message)
            return
        self._put(entry)

    def _wait(self, shield: v1.Shield, *, tenant: str, kept: bool, why: str) -> None:
        key = (tenant, shield.identifier)
        new = key not in self._pending
        settings = _settings(_plain(shield))
        self._pending[key] = Pending(shield=shield, settings=settings, tenant=tenant, kept=kept, why=why)
        if new:
            logger.warning("shield %s waits: %s", shield.identifier, why)
            self._on_change()

    async def register(self, request: v1.RegisterShieldRequest, *, tenant: str) -> v1.Shield:
        """Add a shield.

        Raises:
            AlreadyExistsError: If the name belongs to a shield with other content.
            InvalidArgumentError: If the provider is unknown or not named, or a parameter is wrong.
            NotFoundError: If the guard model is not registered.
        """
        shield = v1.Shield(
            identifier=_checked_name(request.shield_id),
            provider_resource_id=request.provider_shield_id or request.shield_id,
            provider_id=self._provider_id(request.provider_id),
            type=v1.RESOURCE_TYPE_SHIELD,
            params=request.params if request.HasField("params") else None,
        )
        known = self._entries.get((tenant, shield.identifier)) or self._entries.get(("", shield.identifier))
        if known is not None:
            if known.shield == shield:
                return known.shield
            message = (
                f"shield {shield.identifier!r} exists with other content; unregister it first or choose another id"
            )
            raise AlreadyExistsError(message, field="shield_id")
        entry = await self._entry(shield, tenant=tenant, kept=True)
        self._put(entry)
        await self._write()
        return entry.shield

    async def unregister(self, name: str, *, tenant: str, named: set[str]) -> None:
        """Remove a shield.

        Args:
            name: Its identifier.
            tenant: The caller's.
            named: Shields that the policy file in force names.

        Raises:
            NotFoundError: If there is none of the caller's.
            FailedPreconditionError: If the policy in force names it, or the configuration has it.
        """
        entry = self._known(tenant, name) or self._known("", name) or self.get(name, tenant=tenant, field="identifier")
        if entry.tenant != tenant:
            raise NotFoundError(f"shield {name!r} is everybody's, not this tenant's", field="identifier")
        if not entry.kept:
            message = f"shield {name!r} comes from the configuration; take it out there"
            raise FailedPreconditionError(message, field="identifier")
        if not tenant and name in named:
            message = f"the policy in force names shield {name!r}; take it out of the policy first"
            raise FailedPreconditionError(message, field="identifier")
        self._entries.pop((tenant, name), None)
        self._pending.pop((tenant, name), None)
        self._on_change()
        await self._write()

    def get(self, name: str, *, tenant: str = "", field: str = "shield_id") -> Entry:
        """A tenant's shield, else everybody's.

        Raises:
            NotFoundError: If there is none; the message lists those that there are.
            UnavailableError: If it waits for its guard model.
        """
        if not name:
            raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
        entry = self._known(tenant, name) or self._known("", name)
        if isinstance(entry, Pending):
            raise UnavailableError(f"shield {name!r} cannot judge yet: {entry.why}", retry_after=RETRY_SECONDS)
        if entry is None:
            known = ", ".join(sorted(shield.identifier for shield in self.shields(tenant))) or "none"
            message = f"no shield {name!r}; this stack has: {known}. Add one with `stack shield add`"
            raise NotFoundError(message, metadata={"shield": name}, field=field)
        return entry

    async def with_params(self, entry: Entry, params: Mapping[str, Any]) -> Entry:
        """A shield with other parameters for one call, laid over its own.

        Raises:
            InvalidArgumentError: If one is unknown or has a wrong value.
        """
        if not params:
            return entry
        shield = v1.Shield()
        shield.CopyFrom(entry.shield)
        shield.params.update({**_plain(shield), **params})
        key = _fingerprint(shield, entry.tenant)
        if key not in self._variants:
            if len(self._variants) >= MOST_VARIANTS:
                self._variants.pop(next(iter(self._variants)))
            self._variants[key] = await self._entry(shield, tenant=entry.tenant, kept=False)
        return self._variants[key]

    def shields(self, tenant: str = "") -> list[v1.Shield]:
        """The shields that a tenant can use, by name."""
        everything: list[Entry | Pending] = [*self._pending.values(), *self._entries.values()]
        found = {entry.shield.identifier: entry.shield for entry in everything if entry.tenant in {"", tenant}}
        return [found[name] for name in sorted(found)]

    @property
    def shared(self) -> dict[str, Settings]:
        """Everybody's shields, which policies can name; those that wait too, for what they guard stays guarded."""
        everything: list[Entry | Pending] = [*self._pending.values(), *self._entries.values()]
        return {entry.shield.identifier: entry.settings for entry in everything if not entry.tenant}

    @property
    def waiting(self) -> dict[str, str]:
        """Why each shield that waits does."""
        return {pending.shield.identifier: pending.why for pending in self._pending.values()}

    def _known(self, tenant: str, name: str) -> Entry | Pending | None:
        return self._entries.get((tenant, name)) or self._pending.get((tenant, name))

    async def _entry(self, shield: v1.Shield, *, tenant: str, kept: bool) -> Entry:
        params = _plain(shield)
        settings = _settings(params)
        provider = self.providers[self._provider_id(shield.provider_id)]
        theirs = {name: value for name, value in params.items() if name not in OWN}
        return Entry(
            shield=shield,
            implementation=await provider.create(shield, theirs),
            settings=settings,
            tenant=tenant,
            kept=kept,
            fingerprint=_fingerprint(shield, tenant),
        )

    def _put(self, entry: Entry) -> None:
        self._entries[entry.tenant, entry.shield.identifier] = entry
        self._pending.pop((entry.tenant, entry.shield.identifier), None)
        self._on_change()

    def _provider_id(self, name: str) -> str:
        """A provider by its id or its type, in any of the spellings that clients know.

        Raises:
            InvalidArgumentError: If there is none, or none is named.
        """
        known = ", ".join(sorted(self.providers))
        if not name:
            message = f"provider_id is empty and there are several: {known}"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field="provider_id")
        plain = name.rpartition("::")[2].replace("_", "-")
        plain = next((known for known, one in self.providers.items() if one.provider_type == name), plain)
        if plain not in self.providers:
            raise InvalidArgumentError(f"no provider {name!r}; this service has: {known}", field="provider_id")
        return plain

    async def _write(self) -> None:
        """Keep what was registered; the old file stays whole until the new one is."""
        async with self._writing:
            everything: list[Entry | Pending] = [*self._entries.values(), *self._pending.values()]
            kept = [
                {"tenant": entry.tenant, "shield": json_format.MessageToDict(entry.shield)}
                for entry in everything
                if entry.kept
            ]
            await asyncio.to_thread(_replace, self._file, json.dumps(kept, indent=1))


def _replace(file: Path, text: str) -> None:
    scratch = file.with_suffix(".new")
    scratch.write_text(text)
    scratch.replace(file)


def _plain(shield: v1.Shield) -> dict[str, Any]:
    """A shield's parameters as JSON."""
    return cast("dict[str, Any]", plain(json_format.MessageToDict(shield.params)))


def _settings(params: Mapping[str, Any]) -> Settings:
    """The service's own parameters.

    Raises:
        InvalidArgumentError: If one has a wrong value.
    """
    thresholds = params.get("thresholds", {})
    if not isinstance(thresholds, Mapping) or not set(thresholds) <= set(SURFACES):
        raise _wrong("thresholds", thresholds, f"a score for each of some surfaces: {', '.join(SURFACES)}")
    for name, score in [*thresholds.items(), *([("", params["threshold"])] if "threshold" in params else [])]:
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise _wrong(f"thresholds.{name}" if name else "threshold", score, "a score from 0 to 1")
    action = params.get("action", "block")
    if action not in ACTIONS:
        raise _wrong("action", action, f"one of {', '.join(ACTIONS)}")
    messages = params.get("messages")
    if messages not in {None, "all", "last"}:
        raise _wrong("messages", messages, "all or last")
    surfaces = params.get("surfaces", [])
    if not isinstance(surfaces, list) or not set(map(str, surfaces)) <= set(SURFACES):
        raise _wrong("surfaces", surfaces, f"a list of some of {', '.join(SURFACES)}")
    return Settings(
        threshold=params.get("threshold"),
        thresholds=thresholds,
        action=ACTIONS[action],
        every_message=None if messages is None else messages == "all",
        surfaces=tuple(surfaces),
    )


def _wrong(name: str, value: object, wanted: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"params.{name} is {value!r}; give {wanted}", field=f"params.{name}")


def _checked_name(name: str) -> str:
    allowed = "/:._-"
    if name == POLICY:
        message = f"shield_id {POLICY!r} stands for all shields of the policy; choose another"
        raise InvalidArgumentError(message, field="shield_id")
    if not name:
        raise InvalidArgumentError("shield_id is empty", reason="MISSING_FIELD", field="shield_id")
    if len(name) > 256 or not all(letter.isascii() and (letter.isalnum() or letter in allowed) for letter in name):
        message = f"shield_id is {name[:80]!r}; allowed: letters, digits, `/`, `:`, `.`, `_`, `-`, at most 256"
        raise InvalidArgumentError(message, field="shield_id")
    return name


def _fingerprint(shield: v1.Shield, tenant: str) -> str:
    return f"{tenant}\n{json_format.MessageToJson(shield, indent=None, sort_keys=True)}"

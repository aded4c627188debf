"""Where the policy in force comes from: a file that is read again when it changes, or the shields' own surfaces."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.runtime.config import ConfigError
from services.safety.policy import SURFACES, Policy, built_in_policy, check_shields, read_policy
from services.safety.registry import ShieldRegistry
from stack_client.errors import NotFoundError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
VERSION_LENGTH = 64


class Policies:
    """The policy in force, and the versions before it.

    Args:
        registry: The shields that policies name.
        file: YAML file; None means the built-in policy.
        folder: Keeps every version by its hash.
        on_trouble: Told why a changed file was not taken; "" when it was.
        on_change: Told of every policy that comes into force.
    """

    def __init__(
        self,
        registry: ShieldRegistry,
        *,
        file: Path | None,
        folder: Path,
        on_trouble: Callable[[str], None],
        on_change: Callable[[Policy], None],
    ) -> None:
        self._registry = registry
        self._file = file
        self._folder = folder
        self._on_trouble = on_trouble
        self._on_change = on_change
        self._stamp: tuple[int, int] | None = None
        self.current = built_in_policy({})
        """The policy in force; a request keeps the one it began with."""

    def open(self) -> None:
        """Load the policy.

        Raises:
            ConfigError: If the file cannot be used.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._file is None:
            self.rebuild()
            return
        self._stamp = _stamp(self._file)
        policy = read_policy(self._file)
        check_shields(policy, set(self._registry.shared), file=self._file)
        self._take(policy)

    def rebuild(self) -> None:
        """Make the built-in policy anew, for the shields have changed; a policy of a file stays."""
        if self._file is None:
            watched = {name: settings.surfaces for name, settings in self._registry.shared.items()}
            self._take(built_in_policy(watched))

    @property
    def named(self) -> set[str]:
        """Shields that the file in force names; the built-in policy follows the shields instead."""
        return self.current.shields if self._file is not None else set()

    async def watch(self) -> None:
        """Take the file again whenever it changes; runs until cancelled."""
        while self._file is not None:
            await asyncio.sleep(POLL_SECONDS)
            stamp = await asyncio.to_thread(_stamp, self._file)
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                policy = await asyncio.to_thread(read_policy, self._file)
                check_shields(policy, set(self._registry.shared), file=self._file)
            except ConfigError as error:
                logger.error("policy not reloaded, version %s stays in force: %s", self.current.version, error)
                self._on_trouble(str(error))
                continue
            self._take(policy)
            self._on_trouble("")

    def get(self, policy_id: str, version: str) -> dict[str, Any]:
        """A version as JSON: `policy_id`, `version`, `document`, `loaded_at`.

        Raises:
            NotFoundError: If there is none.
        """
        if not version:
            if policy_id not in {"", self.current.document.policy}:
                message = f"no policy {policy_id!r} is in force; it is {self.current.document.policy!r}"
                raise NotFoundError(message, field="policy_id")
            return _facts(self.current)
        file = self._folder / f"{version}.json"
        # A version is a file name: nothing but its own alphabet reaches the disk.
        if len(version) != VERSION_LENGTH or not version.isalnum() or not file.exists():
            raise NotFoundError(f"no policy has version {version[:80]!r}", field="version")
        facts: dict[str, Any] = json.loads(file.read_text())
        if policy_id not in {"", facts["policy_id"]}:
            raise NotFoundError(f"version {version} is of policy {facts['policy_id']!r}", field="policy_id")
        return facts

    def _take(self, policy: Policy) -> None:
        if policy.version == self.current.version and (self._folder / f"{policy.version}.json").exists():
            return
        facts = _facts(policy)
        file = self._folder / f"{policy.version}.json"
        if not file.exists():
            self._folder.mkdir(parents=True, exist_ok=True)  # shields of the configuration come before `open`
            file.write_text(json.dumps(facts, indent=1))
        self.current = policy
        logger.info("policy %s version %s is in force", policy.document.policy, policy.version)
        self._on_change(policy)
        for surface in SURFACES:
            if policy.fails_open(surface):
                logger.warning("policy %s fails OPEN on surface %s", policy.document.policy, surface)


def _facts(policy: Policy) -> dict[str, Any]:
    return {
        "policy_id": policy.document.policy,
        "version": policy.version,
        "document": policy.canonical,
        "loaded_at": policy.loaded_at.isoformat(),
    }


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size

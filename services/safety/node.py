"""Putting the safety service together: guards, shields, policy, audit log, RPC edge."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc

from llamastack import v1
from services.runtime.config import ConfigError
from services.runtime.service import ServiceContext
from services.safety.audit import AuditError, AuditLog
from services.safety.config import SafetyConfig
from services.safety.configured import add_configured
from services.safety.guards import Guards
from services.safety.judge import Bench
from services.safety.metrics import SafetyMetrics
from services.safety.policies import Policies
from services.safety.policy import SURFACES, Policy
from services.safety.providers import PROVIDERS
from services.safety.registry import ShieldRegistry
from services.safety.service import SafetyService
from services.safety.shield import ProviderContext, ShieldProvider
from services.safety.shields_service import ShieldsService

logger = logging.getLogger(__name__)

SERVICES = ("llamastack.v1.SafetyService", "llamastack.v1.ShieldsService")


class SafetyNode:
    """The safety service of one process."""

    name = "safety"

    def __init__(
        self,
        context: ServiceContext,
        *,
        providers: Mapping[str, Callable[[ProviderContext], ShieldProvider]] = PROVIDERS,
    ) -> None:
        self._providers = providers
        self.readiness = context.readiness
        self._context = context
        self._config = context.section(SafetyConfig)
        audit = self._config.audit
        self._audit = (
            AuditLog(context.data_dir / "audit", keep_text=audit.text, segment_bytes=audit.segment_bytes)
            if audit.enabled
            else None
        )
        self._tasks = asyncio.TaskGroup()
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open log, shields and policy; guard models may still be loading."""
        async with AsyncExitStack() as opening:
            if self._audit is not None:
                await asyncio.to_thread(self._open_audit, self._audit)
            channel = self._context.open_channel("inference")
            opening.push_async_callback(channel.close, None)
            guards = Guards(channel, seconds=self._config.guard_seconds)
            context = ProviderContext(guards=guards)
            metrics = SafetyMetrics(self._context.telemetry.registry)
            self._bench = Bench(self._config, guards=guards, audit=self._audit, metrics=metrics)
            self._registry = ShieldRegistry(
                {name: make(context) for name, make in self._providers.items()},
                file=self._context.data_dir / "shields.json",
                on_change=self._shields_changed,
            )
            self._policies = Policies(
                self._registry,
                file=self._config.policy,
                folder=self._context.data_dir / "policies",
                on_trouble=self._policy_trouble,
                on_change=self._policy_changed,
            )
            await self._registry.open()
            await opening.enter_async_context(self._tasks)
            waiting = await add_configured(self._config, self._registry, channel=channel)
            self._policies.open()
            watching = [
                self._tasks.create_task(work) for work in (self._policies.watch(), self._registry.retry(), *waiting)
            ]
            opening.callback(lambda: [task.cancel() for task in watching])
            self._resources = opening.pop_all()
        self.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching the policy."""
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add both services."""
        safety = SafetyService(
            self._bench,
            self._registry,
            self._policies,
            audit=self._audit,
            moderation_shield=self._config.moderation_shield,
            draining=self._context.draining,
            grace_seconds=self._context.runtime.drain_grace_seconds,
        )
        v1.add_SafetyServiceServicer_to_server(safety, server)
        v1.add_ShieldsServiceServicer_to_server(ShieldsService(self._registry, self._policies), server)
        return SERVICES

    def _open_audit(self, audit: AuditLog) -> None:
        """Go on with the log; a damaged one is kept aside, loudly, unless nothing may be judged without it."""
        try:
            audit.open()
        except AuditError as error:
            if self._config.audit.required:
                message = f"{error}; keep the folder elsewhere to begin another log, or set audit.required to false"
                raise ConfigError(message) from error
            aside = audit.set_aside()
            logger.error("%s; it is kept as %s, and a new log begins", error, aside)
            self.readiness.details["audit"] = f"DAMAGED, kept as {aside.name}"
            audit.open()

    def _shields_changed(self) -> None:
        """A shield came or went: judgements of its name are void, and the built-in policy follows."""
        self._bench.cache.clear()
        waiting = self._registry.waiting
        names = (
            f"{name} (waits: {waiting[name]})" if name in waiting else name for name in sorted(self._registry.shared)
        )
        self.readiness.details["shields"] = ", ".join(names) or "none"
        if hasattr(self, "_policies"):
            self._policies.rebuild()

    def _policy_changed(self, policy: Policy) -> None:
        """Say where what cannot be judged may pass; it shows in `stack status`."""
        open_surfaces = [surface for surface in SURFACES if policy.fails_open(surface)]
        self.readiness.details["fails_open"] = ", ".join(open_surfaces)
        if not open_surfaces:
            del self.readiness.details["fails_open"]

    def _policy_trouble(self, trouble: str) -> None:
        if trouble:
            self.readiness.details["policy"] = f"NOT RELOADED: {trouble}"
        else:
            self.readiness.details.pop("policy", None)


def build(context: ServiceContext) -> SafetyNode:
    """Make the safety service."""
    return SafetyNode(context)

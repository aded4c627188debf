"""Putting the tools service together: database, groups, providers, runtime, RPC edge."""

import asyncio
import logging
import secrets as random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc
import sqlalchemy as sa

from llamastack import v1
from services.runtime.background import background, repeat
from services.runtime.config import ConfigError
from services.runtime.database import Database
from services.runtime.database_url import database_url
from services.runtime.service import ServiceContext
from services.runtime.together import together
from services.tools.audit import Audit
from services.tools.config import ToolsConfig
from services.tools.execution import Execution
from services.tools.groups import Groups
from services.tools.groups_service import ToolGroupsService
from services.tools.invoke import Invoker
from services.tools.ledger import Ledger
from services.tools.listings import Listings
from services.tools.mcp.server.start import open_mcp, serve_mcp
from services.tools.metrics import ToolMetrics
from services.tools.migrations import upgrade
from services.tools.outputs import Outputs
from services.tools.planning import Planner
from services.tools.provider import ProviderContext, ToolProvider
from services.tools.providers import BUILTIN_GROUPS, PROVIDERS
from services.tools.runtime_service import ToolRuntimeService
from services.tools.secrets import Secrets
from services.tools.slots import Slots
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, StackError
from stack_client.files import Files

logger = logging.getLogger(__name__)

SERVICES = ("llamastack.v1.ToolGroupsService", "llamastack.v1.ToolRuntimeService")
CANCEL_SECONDS = 1.0
"""Pause between two looks for calls that another process was asked to stop."""
SWEEP_SECONDS = 600.0
CHECK_SECONDS = 3.0
"""For the server of a configured group, at the start."""
SLACK_BYTES = 64 * 1024
"""Of a message, beside the result in it."""

Providers = Mapping[str, Callable[[ProviderContext], ToolProvider]]


class ToolsNode:
    """The tools service of one process.

    Args:
        context: Of the process.
        providers: Builders by provider id.
        builtin: Provider by identifier of the groups that are there anyway.
    """

    name = "tools"

    def __init__(
        self, context: ServiceContext, *, providers: Providers = PROVIDERS, builtin: Mapping[str, str] = BUILTIN_GROUPS
    ) -> None:
        self.readiness = context.readiness
        self._context = context
        self._config = context.section(ToolsConfig)
        self._builtin = builtin
        unknown = sorted(set(self._config.providers) - set(providers))
        if unknown:
            known = ", ".join(sorted(providers))
            raise ConfigError(f"{context.config.file}: tools.providers.{unknown[0]}: no such provider; known: {known}")
        try:
            url = database_url("tools", self._config.database, self._config.database_password_file, context.data_dir)
            self._database = Database(url, owner="tools service", upgrade=upgrade)
        except (sa.exc.ArgumentError, OSError) as error:
            raise ConfigError(f"{context.config.file}: tools.database: {error}") from error
        self._providers = {name: self._make(name, make) for name, make in providers.items()}
        self._resources = AsyncExitStack()
        self.mcp_url = ""
        """Where tools are served to MCP clients; empty = nowhere."""

    async def __aenter__(self) -> Self:
        """Open the database and the providers; calls that the last process left are lost."""
        async with AsyncExitStack() as opening:
            self._mcp = await opening.enter_async_context(open_mcp(self._config, file=self._context.config.file))
            try:
                await opening.enter_async_context(self._database)
            except FailedPreconditionError as error:  # starting again cannot help
                raise ConfigError(error.message) from error
            await self._build(opening)
            self._resources = opening.pop_all()
        self.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop what runs and close what was opened."""
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add both services."""
        groups = ToolGroupsService(self._groups, self._listings, self._providers, self._secrets)
        v1.add_ToolGroupsServiceServicer_to_server(groups, server)
        runtime = ToolRuntimeService(
            groups=self._groups,
            listings=self._listings,
            invoker=self.invoker,
            providers=self._providers,
            draining=self._context.draining,
            grace_seconds=self._context.runtime.drain_grace_seconds,
        )
        v1.add_ToolRuntimeServiceServicer_to_server(runtime, server)
        return SERVICES

    async def _build(self, opening: AsyncExitStack) -> None:
        config, metrics = self._config, ToolMetrics(self._context.telemetry.registry)
        self._secrets = Secrets(config.secrets)
        self._groups = Groups(
            self._database, config, builtin=self._builtin, providers=sorted(self._providers), secrets=self._secrets
        )
        files = None
        if "memory" in self._context.addresses:
            channel = self._context.open_channel("memory")
            opening.push_async_callback(channel.close, None)
            files = Files(channel)
        self.audit = Audit(self._database)
        await self.audit.open()
        self._ledger = Ledger(
            self._database, self.audit, owner=f"tools-{random.token_hex(8)}", lease_seconds=config.lease_seconds
        )
        await self._ledger.show_life()
        await self._ledger.bury(alone=self._alone)
        opening.push_async_callback(self._ledger.leave)
        for provider in self._providers.values():
            await opening.enter_async_context(provider)
        await self._check_configured()
        self._listings = Listings(self._groups, self._providers, self._secrets, seconds=config.listing_seconds)
        outputs = Outputs(self._database, files, most=config.max_output_bytes, days=config.output_days, metrics=metrics)
        tasks = await opening.enter_async_context(asyncio.TaskGroup())
        execution = Execution(
            self._providers,
            ledger=self._ledger,
            outputs=outputs,
            metrics=metrics,
            slots=Slots(waiting=config.max_waiting),
            most=self._context.runtime.max_message_bytes - SLACK_BYTES,
        )
        self.invoker = Invoker(
            planner=Planner(self._listings, self._secrets, max_argument_bytes=config.max_argument_bytes),
            execution=execution,
            ledger=self._ledger,
            audit=self.audit,
            outputs=outputs,
            metrics=metrics,
            tasks=tasks,
        )
        opening.push_async_callback(self.invoker.stop)
        serving = serve_mcp(self._mcp, groups=self._groups, listings=self._listings, invoker=self.invoker)
        self.mcp_url = await opening.enter_async_context(serving)
        rounds = [self._sweep] if self._alone else [self._sweep, self._live, self._heed]
        works = [repeat(work, wake=asyncio.Event()) for work in rounds]
        await opening.enter_async_context(background(*works))

    @property
    def _alone(self) -> bool:
        """Whether no other process can use the database."""
        return self._database.dialect == "sqlite"

    def _make(self, name: str, make: Callable[[ProviderContext], ToolProvider]) -> ToolProvider:
        context = self._context
        folder, config = context.data_dir / "providers" / name, self._config.providers.get(name, {})
        try:
            return make(ProviderContext(service=context, config=config, data_dir=folder))
        except InvalidArgumentError as error:
            raise ConfigError(f"{context.config.file}: {error.message}") from error

    async def _check_configured(self) -> None:
        """Let providers look at the groups of the configuration; one whose server is away may come later."""
        await together(self._check(group) for group in self._groups.configured.values())

    async def _check(self, group: v1.ToolGroup) -> None:
        access = await self._secrets.access(group, tenant="")
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self._providers[group.provider_id].check(group, access)
        except TimeoutError:
            logger.warning("a tool group's server did not answer at the start", extra={"group": group.identifier})
        except StackError as error:
            if error.http_status < 500:
                message = f"{self._context.config.file}: tools.toolgroups: {group.identifier}: {error.message}"
                raise ConfigError(message) from error
            extra = {"group": group.identifier, "reason": error.reason}
            logger.warning("a tool group cannot be used yet", extra=extra)

    async def _live(self) -> float:
        await self._ledger.show_life()
        await self._ledger.bury(alone=False)
        return self._config.lease_seconds / 3

    async def _heed(self) -> float:
        await self.invoker.heed_cancels()
        return CANCEL_SECONDS

    async def _sweep(self) -> float:
        await self._ledger.sweep(output_days=self._config.output_days, audit_days=self._config.audit_days)
        return SWEEP_SECONDS


def build(context: ServiceContext) -> ToolsNode:
    """Make the tools service."""
    return ToolsNode(context)

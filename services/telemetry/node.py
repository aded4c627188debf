"""Putting the telemetry service together: database, writer, sweep, RPC edges."""

import asyncio
from collections.abc import Sequence
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
from services.telemetry import otlp_service
from services.telemetry.config import TelemetryServiceConfig
from services.telemetry.metric_queries import MetricQueries
from services.telemetry.migrations import upgrade
from services.telemetry.queries import Queries
from services.telemetry.saving import Saver
from services.telemetry.service import TelemetryService
from services.telemetry.store import Store
from services.telemetry.writer import Writer
from stack_client.errors import FailedPreconditionError

_DAY = 24 * 3600 * 1_000_000_000


class TelemetryNode:
    """The telemetry service of one process.

    Args:
        context: Of the process.
    """

    name = "telemetry"

    def __init__(self, context: ServiceContext) -> None:
        self.readiness = context.readiness
        self._context = context
        self._config = config = context.section(TelemetryServiceConfig)
        try:
            url = database_url("telemetry", config.database, config.database_password_file, context.data_dir)
            self._database = Database(url, owner="telemetry service", upgrade=upgrade)
        except (sa.exc.ArgumentError, OSError) as error:
            raise ConfigError(f"{context.config.file}: telemetry.database: {error}") from error
        self._store = Store(self._database)
        self._writer = Writer(self._store, max_waiting=config.max_waiting)
        self._evaluation: grpc.aio.Channel | None = None
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the database; write and sweep in the background."""
        async with AsyncExitStack() as opening:
            try:
                await opening.enter_async_context(self._database)
            except FailedPreconditionError as error:  # starting again cannot help
                raise ConfigError(error.message) from error
            sweeping = repeat(self._sweep, wake=asyncio.Event())
            await opening.enter_async_context(background(self._writer.run(), sweeping))
            if "evaluation" in self._context.addresses:
                self._evaluation = self._context.open_channel("evaluation")
                opening.push_async_callback(self._evaluation.close, None)
            self._resources = opening.pop_all()
        self.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop and close the database."""
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add our service and OpenTelemetry's collector."""
        queries = Queries(self._database)
        service = TelemetryService(
            writer=self._writer,
            queries=queries,
            metrics=MetricQueries(self._database),
            saver=Saver(queries, channel=self._evaluation),
        )
        v1.add_TelemetryServiceServicer_to_server(service, server)
        otlp_service.add_to(server, self._writer, keep_ns=int(self._config.days * _DAY))
        return ("llamastack.v1.TelemetryService", *otlp_service.NAMES)

    async def _sweep(self) -> float:
        more = await self._store.sweep(max_spans=self._config.max_spans)
        return 0.0 if more else self._config.sweep_seconds


def build(context: ServiceContext) -> TelemetryNode:
    """Make the telemetry service."""
    return TelemetryNode(context)

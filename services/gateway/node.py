"""Putting the gateway together: channels, table of routes, HTTP server, RPC edge."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc
import sqlalchemy as sa

from llamastack import v1
from services.gateway import batches
from services.gateway.app import App
from services.gateway.config import GatewayConfig
from services.gateway.cors import with_cors
from services.gateway.edge import Edge
from services.gateway.gate import KeyGate
from services.gateway.http import listen, serving
from services.gateway.jsonmap import STANDARD
from services.gateway.keys import (
    Keys,
    KeysService,
    keys_required,
    make_authenticator,
    make_rates,
    redis_address,
    upgrade,
)
from services.gateway.routes import all_routes
from services.gateway.routing import Router
from services.gateway.upstream import GATEWAY, HOSTS, KEEPS_FILES, Upstream
from services.runtime.config import ConfigError
from services.runtime.database import Database
from services.runtime.database_url import database_url
from services.runtime.listen import open_channel
from services.runtime.service import ServiceContext

SERVICES = ("llamastack.v1.KeysService",)
BATCHES = "llamastack.v1.BatchesService"


class GatewayNode:
    """The gateway as a service of the mesh.

    Args:
        context: Of the runtime.
    """

    name = "gateway"

    def __init__(self, context: ServiceContext) -> None:
        self.readiness = context.readiness
        self._context = context
        self._config = context.section(GatewayConfig)
        self._resources = AsyncExitStack()
        self._batches: batches.Batches | None = None
        self.url = ""
        """Where HTTP is served."""

    async def __aenter__(self) -> Self:
        """Open the channels and the HTTP port."""
        context, config = self._context, self._config
        async with AsyncExitStack() as opening:
            gate = await self._open_gate(opening)
            listening = opening.enter_context(listen(config, file=context.config.file))
            channels: dict[str, grpc.aio.Channel] = {}
            hosts = set(HOSTS.values()) & set(context.addresses)
            if KEEPS_FILES not in hosts:  # no batches then, which are all that the gateway hosts itself
                hosts.discard(GATEWAY)
            for name in sorted(hosts):
                # Without the runtime's interceptors: the gateway names request, tenant and trace itself.
                channels[name] = open_channel(context.addresses[name], config=context.runtime)
                opening.push_async_callback(channels[name].close, None)
            upstream = Upstream(channels, seconds=config.call_seconds)
            edge = Edge(upstream, codec=STANDARD, config=config)
            self.app = App(Router(all_routes(edge)), config=config, gate=gate, telemetry=context.telemetry)
            await self._open_batches(channels, opening)
            self.url = await opening.enter_async_context(
                serving(
                    with_cors(self.app, config),
                    config=config,
                    listening=listening,
                    grace_seconds=context.runtime.drain_grace_seconds,
                    break_off=upstream.break_off,
                )
            )
            self._resources = opening.pop_all()
        self.readiness.details["http"] = self.url
        self.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let requests end and close the port."""
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the RPC services."""
        v1.add_KeysServiceServicer_to_server(KeysService(self._keys), server)
        if self._batches is None:
            return SERVICES
        v1.add_BatchesServiceServicer_to_server(self._batches.service, server)
        return (*SERVICES, BATCHES)

    async def _open_batches(self, channels: Mapping[str, grpc.aio.Channel], opening: AsyncExitStack) -> None:
        """Take up the batches, where there is a service that keeps their files."""
        if KEEPS_FILES not in channels:
            return
        context = self._context
        inference = channels.get("inference")
        self._batches = batches.Batches(
            self._database,
            channels[KEEPS_FILES],
            self.app.execute,
            self._config.batches,
            draining=context.draining,
            grace_seconds=context.runtime.drain_grace_seconds,
            knows_model=batches.RegisteredModels(inference) if inference else None,
        )
        await opening.enter_async_context(self._batches)

    async def _open_gate(self, opening: AsyncExitStack) -> KeyGate:
        """Open the store of keys, and decide whether one is needed."""
        config, file = self._config, self._context.config.file
        try:
            url = database_url("gateway", config.database, config.database_password_file, self._context.data_dir)
            self._database = Database(url, owner="gateway", upgrade=_upgrade)
        except (sa.exc.ArgumentError, OSError) as error:
            raise ConfigError(f"{file}: gateway.database: {error}") from error
        await opening.enter_async_context(self._database)
        self._keys = Keys(self._database, cache_seconds=config.auth.cache_seconds, cached=config.auth.cached_keys)
        await opening.enter_async_context(self._keys.running())
        address = redis_address(config.redis, config.redis_password_file)
        rates = await opening.enter_async_context(make_rates(address))
        required = await keys_required(config.auth, host=config.http_host, keys=self._keys)
        return KeyGate(make_authenticator(config.auth, keys=self._keys, required=required), rates)


def _upgrade(connection: sa.Connection) -> None:
    """Bring the tables of keys and of batches up to date."""
    upgrade(connection)
    batches.upgrade(connection)


def build(context: ServiceContext) -> GatewayNode:
    """Make the gateway."""
    return GatewayNode(context)

"""Putting the gateway together: channels, table of routes, HTTP server, RPC edge."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc

from services.gateway.app import App
from services.gateway.config import GatewayConfig
from services.gateway.edge import Edge
from services.gateway.http import listen, serving
from services.gateway.jsonmap import STANDARD
from services.gateway.routes import all_routes
from services.gateway.routing import Router
from services.gateway.upstream import HOSTS, Upstream
from services.runtime.listen import open_channel
from services.runtime.service import ServiceContext


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
        self.url = ""
        """Where HTTP is served."""

    async def __aenter__(self) -> Self:
        """Open the channels and the HTTP port."""
        context, config = self._context, self._config
        async with AsyncExitStack() as opening:
            listening = opening.enter_context(listen(config, file=context.config.file))
            channels: dict[str, grpc.aio.Channel] = {}
            for name in sorted(set(HOSTS.values()) & set(context.addresses)):
                # Without the runtime's interceptors: the gateway names request, tenant and trace itself.
                channels[name] = open_channel(context.addresses[name], config=context.runtime)
                opening.push_async_callback(channels[name].close, None)
            upstream = Upstream(channels, seconds=config.call_seconds)
            edge = Edge(upstream, codec=STANDARD, config=config)
            self.app = App(Router(all_routes(edge)), config=config)
            self.url = await opening.enter_async_context(serving(self.app, config=config, listening=listening))
            self._resources = opening.pop_all()
        self.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let requests end and close the port."""
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:  # noqa: ARG002 - of the protocol
        """Add the RPC services."""
        return ()


def build(context: ServiceContext) -> GatewayNode:
    """Make the gateway."""
    return GatewayNode(context)

"""Putting the router together: the table of nodes, the forwarder, the RPC edges."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc

from llamastack import v1
from services.router.config import RouterConfig
from services.router.forward import Forwarder
from services.router.metrics import RouterMetrics
from services.router.models_service import ModelsService
from services.router.nodes import NodeTable
from services.router.nodes_service import NodesService
from services.router.service import InferenceService
from services.runtime.listen import open_channel
from services.runtime.service import ServiceContext

SERVICES = ("llamastack.v1.InferenceService", "llamastack.v1.ModelsService", "llamastack.v1.NodesService")
SWEEPS_PER_LEASE = 6


class Router:
    """One address in front of several inference nodes."""

    name = "router"

    def __init__(self, context: ServiceContext) -> None:
        self.readiness = context.readiness
        self._config = context.section(RouterConfig)
        self._draining = context.draining
        self._grace = context.runtime.drain_grace_seconds
        self._metrics = RouterMetrics(context.telemetry.registry)

        def to_node(address: str) -> grpc.aio.Channel:
            # A node that registers again is reached at once: its connection of before may be in its back-off.
            return open_channel(
                address,
                config=context.runtime,
                interceptors=context.client_interceptors,
                extra=[("grpc.use_local_subchannel_pool", 1)],
            )

        self.table = NodeTable(self._config, open_channel=to_node, on_change=self._show)
        self._forwarder = Forwarder(self.table, self._config, metrics=self._metrics)
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to watch leases; ready once a node serves."""
        async with AsyncExitStack() as opening:
            opening.push_async_callback(self.table.close)
            tasks = await opening.enter_async_context(asyncio.TaskGroup())
            opening.callback(tasks.create_task(self._watch()).cancel)
            self._resources = opening.pop_all()
        self._show()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching and close the channels."""
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the services of a node, and that of the nodes."""
        inference = InferenceService(self._forwarder, self._config, draining=self._draining, grace_seconds=self._grace)
        v1.add_InferenceServiceServicer_to_server(inference, server)
        v1.add_ModelsServiceServicer_to_server(ModelsService(self.table), server)
        v1.add_NodesServiceServicer_to_server(NodesService(self.table, self._config), server)
        return SERVICES

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._config.lease_seconds / SWEEPS_PER_LEASE)
            await self.table.sweep()

    def _show(self) -> None:
        """Ready while a living node serves a model."""
        self._metrics.show(self.table)
        named = [(v1.NodeState.Name(node.state).removeprefix("NODE_STATE_").lower(), node) for node in self.table.nodes]
        self.readiness.details["nodes"] = ", ".join(
            node.node_id if state == "ready" else f"{node.node_id} ({state})" for state, node in named
        )
        self.readiness.details["models"] = ", ".join(self.table.models)
        if any(model.state == v1.MODEL_STATE_READY for model in self.table.models.values()):
            self.readiness.ready()
        else:
            self.readiness.waiting("for an inference node with a ready model to register")


def build(context: ServiceContext) -> Router:
    """Make the router."""
    return Router(context)

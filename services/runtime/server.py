"""One service on one grpc server."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2_grpc

from llamastack import v1
from services.runtime import inspection
from services.runtime.health import Health
from services.runtime.interceptors import (
    AccessLog,
    Deadline,
    Drain,
    Errors,
    MessageSize,
    Metrics,
    RequestId,
    Tenant,
    TraceContext,
)
from services.runtime.listen import bind, server_options
from services.runtime.service import Service, ServiceContext

_log = logging.getLogger(__name__)
_HEALTH = "grpc.health.v1.Health"


class Hosted:
    """A service with its server: `async with hosted.running()`, then `drain`."""

    def __init__(self, *, context: ServiceContext, service: Service) -> None:
        runtime = context.runtime
        self.context = context
        self.addresses: list[str] = []
        """Targets to dial, once running."""
        self._service = service
        self._calls = Drain()
        self._server = grpc.aio.server(
            options=server_options(runtime),
            interceptors=[  # outermost first
                TraceContext(telemetry=context.telemetry),
                RequestId(),
                AccessLog(),
                Metrics(telemetry=context.telemetry),
                Errors(),
                Tenant(private_network=runtime.allow_insecure),
                self._calls,
                Deadline(default=runtime.default_deadline_seconds, by_method=runtime.deadline_seconds),
                MessageSize(limit=runtime.max_message_bytes),
            ],
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the service, then the door; on the way out the door is shut first, at once unless it was drained."""
        context = self.context
        with bind(
            self._server,
            name=context.name,
            config=context.runtime,
            address=context.addresses.get(context.name),
        ) as addresses:
            self.addresses = addresses
            async with self._service:
                self._add_services()
                await self._server.start()
                _log.info("service listens", extra={"service": context.name, "addresses": addresses})
                try:
                    yield
                finally:
                    await self._server.stop(0)

    async def drain(self) -> None:
        """Say NOT_SERVING, shut the door, let calls end within the grace, cut off the rest with DRAINING."""
        runtime = self.context.runtime
        self.context.readiness.draining()
        await asyncio.sleep(runtime.drain_notice_seconds)  # one round of health watchers
        self.context.draining.set()
        cut = asyncio.get_running_loop().call_later(runtime.drain_grace_seconds, self.cut)
        try:
            await self._server.stop(runtime.drain_grace_seconds + 1)
        finally:
            cut.cancel()
        _log.info("service drained", extra={"service": self.context.name})

    def cut(self) -> None:
        """End the calls in flight now."""
        _log.warning("cutting off calls", extra={"service": self.context.name, "calls": self._calls.in_flight})
        self._calls.expire()

    def _add_services(self) -> None:
        context = self.context
        names = [*self._service.add_to(self._server), inspection.NAME]
        health_pb2_grpc.add_HealthServicer_to_server(
            Health(readiness=context.readiness, names=[*names, _HEALTH]), self._server
        )
        v1.add_InspectServiceServicer_to_server(
            inspection.Inspect(
                readiness=context.readiness, calls=self._calls, names=[*names, _HEALTH], addresses=self.addresses
            ),
            self._server,
        )
        if context.runtime.reflection:
            _reflect([*names, _HEALTH], server=self._server)


def _reflect(names: Sequence[str], *, server: grpc.aio.Server) -> None:
    from grpc_reflection.v1alpha import reflection  # noqa: PLC0415 - rarely wanted, and it costs start time

    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)

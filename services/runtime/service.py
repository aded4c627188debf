"""What a service is to the runtime, and what the runtime gives to a service."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar, cast

import grpc

from services.runtime.config import ConfigError, RuntimeConfig, StackConfig
from services.runtime.listen import Option, channel_options, open_channel
from services.runtime.outgoing import client_interceptors
from services.runtime.readiness import Readiness
from services.runtime.telemetry import Telemetry

T = TypeVar("T")


class Service(Protocol):
    """One service of the mesh. `services.<name>.__main__.build(context)` makes it; nothing runs before `__aenter__`."""

    name: str
    """Its name in the mesh, for example `inference`."""
    readiness: Readiness
    """Usually `context.readiness`."""

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicers; returns the full gRPC service names, for health and reflection."""

    async def __aenter__(self) -> Self:
        """Open stores and start engines; may return before the service is ready."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop what was started; all calls have ended."""


@dataclass(frozen=True, kw_only=True)
class ServiceContext:
    """What the runtime gives to the builder of a service."""

    name: str
    """The service's name."""
    config: StackConfig
    """The whole configuration."""
    data_dir: Path
    """Folder for what the service must keep; exists."""
    cache_dir: Path
    """Folder for what can be made again, such as converted weights; exists and is shared by all services."""
    readiness: Readiness
    """The service tells here when it is ready."""
    draining: asyncio.Event
    """Set when the process is going away: streams send GoAway and end."""
    telemetry: Telemetry
    """The process's metrics registry."""

    @property
    def runtime(self) -> RuntimeConfig:
        """The runtime's settings."""
        return self.config.runtime

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where the other services are."""
        return self.config.addresses

    @property
    def client_interceptors(self) -> list[grpc.aio.ClientInterceptor]:
        """Interceptors that hand down deadline, request id and trace to outgoing calls."""
        return client_interceptors()

    @property
    def channel_options(self) -> list[Option]:
        """Settings of channels to other services."""
        return channel_options(self.runtime)

    def section(self, cls: type[T]) -> T:
        """The service's own section of the configuration as its dataclass."""
        return cast("T", self.config.section(cls, name=self.name))

    def open_channel(self, name: str) -> grpc.aio.Channel:
        """A channel to another service; call it on the event loop and close it in `__aexit__`."""
        if name not in self.addresses:
            known = ", ".join(sorted(self.addresses)) or "none"
            raise ConfigError(
                f'{self.config.file}: addresses.{name}: missing, but {self.name} needs it; set "{name}: host:port" '
                f"(configured: {known})"
            )
        return open_channel(self.addresses[name], config=self.runtime, interceptors=self.client_interceptors)

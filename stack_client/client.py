"""The client of a stack: one namespace per service."""

from collections.abc import Mapping
from functools import cached_property
from typing import Self

import grpc

from stack_client import addresses, channel
from stack_client.agents import Agents
from stack_client.errors import InvalidArgumentError
from stack_client.inference import Inference
from stack_client.models import Models


class StackClient:
    """A connection to the services of a stack, for one event loop.

    Nothing is connected before the first call. Use `async with`, or `await close()`.

    Args:
        target: Addresses by service; or a host, which means its default ports; or None: the stack that runs on this
            machine, else the default ports on this machine.
        tls: Certificates, where the services use TLS.
    """

    def __init__(self, target: str | Mapping[str, str] | None = None, *, tls: channel.TlsFiles | None = None) -> None:
        self._addresses = addresses.resolve(target)
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        """Nothing to do before the first call."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls in flight are cancelled."""
        for opened in self._channels.values():
            await opened.close(None)
        self._channels.clear()

    @cached_property
    def inference(self) -> Inference:
        """Chat, completion, embeddings, tokens."""
        return Inference(self.channel("inference"))

    @cached_property
    def models(self) -> Models:
        """The models of the inference service."""
        return Models(self.channel("inference"))

    @cached_property
    def agents(self) -> Agents:
        """Agents, sessions, turns."""
        return Agents(self.channel("agents"))

    def channel(self, service: str) -> grpc.aio.Channel:
        """The channel to a service, for generated stubs.

        Raises:
            InvalidArgumentError: If the stack has no such service.
        """
        if service not in self._channels:
            address = self._addresses.get(service)
            if address is None:
                known = ", ".join(sorted(self._addresses)) or "none"
                raise InvalidArgumentError(f"this stack has no {service} service; it has: {known}")
            self._channels[service] = channel.connect(address, tls=self._tls)
        return self._channels[service]

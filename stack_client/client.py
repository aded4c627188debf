"""The client of a stack: one namespace per service."""

from collections.abc import Mapping
from functools import cached_property
from typing import Self

import grpc

from stack_client import addresses, channel
from stack_client.agents import Agents
from stack_client.batches import Batches
from stack_client.conversations import Conversations
from stack_client.errors import FailedPreconditionError, InvalidArgumentError
from stack_client.files import Files
from stack_client.inference import Inference
from stack_client.keys import ApiKeys
from stack_client.memory import MemoryBanks
from stack_client.models import Models
from stack_client.prompts import Prompts
from stack_client.responses import Responses
from stack_client.safety import Safety, Shields
from stack_client.telemetry import Telemetry
from stack_client.toolgroups import Tools


class StackClient:
    """A connection to the services of a stack, for one event loop.

    Nothing is connected before the first call. Use `async with`, or `await close()`.

    Args:
        target: Addresses by service; or a host, which means its default ports; or None: the stack that runs on this
            machine, else the default ports on this machine.
        tls: Certificates, where the services use TLS.
    """

    def __init__(self, target: str | Mapping[str, str] | None = None, *, tls: channel.TlsFiles | None = None) -> None:
        self.addresses = addresses.resolve(target)
        """Where the services are."""
        self.tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closed = False

    def copy(self) -> "StackClient":
        """A second client of the same stack, for another event loop."""
        return StackClient(self.addresses, tls=self.tls)

    async def __aenter__(self) -> Self:
        """Nothing to do before the first call."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections for good; calls in flight are cancelled."""
        self._closed = True
        for name in [name for name, value in vars(type(self)).items() if isinstance(value, cached_property)]:
            vars(self).pop(name, None)
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
    def safety(self) -> Safety:
        """Shields over dialogs, moderation, moderated streams."""
        return Safety(self.channel("safety"))

    @cached_property
    def shields(self) -> Shields:
        """The shields of the safety service."""
        return Shields(self.channel("safety"))

    @cached_property
    def memory(self) -> MemoryBanks:
        """Banks, what is in them, and finding it."""
        return MemoryBanks(self.channel("memory"))

    @cached_property
    def files(self) -> Files:
        """Files that the stack keeps."""
        return Files(self.channel("memory"))

    @cached_property
    def tools(self) -> Tools:
        """Groups of tools, and calling tools."""
        return Tools(self.channel("tools"))

    @cached_property
    def agents(self) -> Agents:
        """Agents, sessions, turns."""
        return Agents(self.channel("agents"))

    @cached_property
    def responses(self) -> Responses:
        """OpenAI's Responses."""
        return Responses(self.channel("agents"))

    @cached_property
    def conversations(self) -> Conversations:
        """Lists of items that responses read from and append to."""
        return Conversations(self.channel("agents"))

    @cached_property
    def prompts(self) -> Prompts:
        """Prompt templates with versions."""
        return Prompts(self.channel("agents"))

    @cached_property
    def keys(self) -> ApiKeys:
        """API keys of the gateway."""
        return ApiKeys(self.channel("gateway"))

    @cached_property
    def telemetry(self) -> Telemetry:
        """Traces, spans, metrics, events."""
        return Telemetry(self.channel("telemetry"))

    @cached_property
    def batches(self) -> Batches:
        """Files of requests that run in the background."""
        return Batches(self.channel("gateway"))

    def channel(self, service: str) -> grpc.aio.Channel:
        """The channel to a service, for generated stubs.

        Raises:
            InvalidArgumentError: If the stack has no such service.
            FailedPreconditionError: If the client is closed.
        """
        if self._closed:
            raise FailedPreconditionError("this client is closed; make a new one")
        if service not in self._channels:
            address = self.addresses.get(service)
            if address is None:
                known = ", ".join(sorted(self.addresses)) or "none"
                raise InvalidArgumentError(f"this stack has no {service} service; it has: {known}")
            self._channels[service] = channel.connect(address, tls=self.tls)
        return self._channels[service]

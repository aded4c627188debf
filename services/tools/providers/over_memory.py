"""What providers have in common that work on the memory service."""

from types import TracebackType
from typing import Self

import grpc

from services.tools.provider import ProviderContext
from services.tools.providers.plain import PlainProvider

NO_MEMORY = "This stack has no memory service; the operator adds its address, addresses.memory."


class OverMemory(PlainProvider):
    """A provider with a channel to the memory service, where the stack has one.

    Args:
        context: Of the service.
    """

    def __init__(self, context: ProviderContext) -> None:
        self._context = context.service
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        """Open the channel; nothing is connected yet."""
        if "memory" in self._context.addresses:
            self._channel = self._context.open_channel("memory")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        if self._channel is not None:
            await self._channel.close(None)

"""Making calls: errors become those of the tree, streams are watched for their end and cancelled on every way out."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from functools import cache
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from llamastack import v1
from stack_client.errors import StreamBrokenError, from_rpc_error

ResponseT = TypeVar("ResponseT", bound=Message)

DEFAULT_TIMEOUT = 300.0
"""Seconds after which a unary call gives up, unless the caller says otherwise."""


async def unary(call: Awaitable[ResponseT]) -> ResponseT:
    """The answer of a unary call.

    Raises:
        StackError: As the service raised it, or as the transport failed.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


class EventStream(Generic[ResponseT]):
    """The events of a server stream, without heartbeats.

    Iterating ends after the terminal event. Leaving earlier, by break, exception or `aclose`, cancels the call: use
    `async with` or iterate to the end.
    """

    def __init__(self, call: "grpc.aio.UnaryStreamCall[Any, ResponseT]") -> None:
        self._call = call
        self._events = self._read()
        self.last_sequence = 0
        """Sequence of the last event that was read."""

    def __aiter__(self) -> AsyncIterator[ResponseT]:
        """The events in order."""
        return self._events

    async def __aenter__(self) -> "EventStream[ResponseT]":
        """Watch the stream inside a `with` block."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Cancel the call if it has not ended."""
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the call if it has not ended."""
        self._call.cancel()
        await self._events.aclose()

    def __del__(self) -> None:
        """A stream that was left by `break` and forgotten must not go on at the service."""
        self._call.cancel()

    async def _read(self) -> AsyncGenerator[ResponseT, None]:
        terminal = False
        try:
            async for event in self._call:
                member = event.WhichOneof("event")
                if member in {"heartbeat", None}:
                    continue
                terminal = member in terminal_events(event.DESCRIPTOR)
                self.last_sequence = getattr(event, "sequence", 0) or self.last_sequence
                yield event
                if terminal:
                    return
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            # From grpcio 1.83 on an abandoned call is never cancelled by itself (grpc/grpc#43462).
            self._call.cancel()
        if not terminal:
            raise StreamBrokenError("the stream ended without its terminal event; what arrived is incomplete")


@cache
def terminal_events(descriptor: Descriptor) -> frozenset[str]:
    """Names of the oneof members that end a stream of this message."""
    return frozenset(
        field.name for field in descriptor.oneofs_by_name["event"].fields if field.GetOptions().Extensions[v1.terminal]
    )

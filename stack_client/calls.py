"""Making calls: errors become those of the tree, streams are watched for their end and cancelled on every way out."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, Generic, Self, TypeVar

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from llamastack import v1
from stack_client.errors import CancelledError, StreamBrokenError, from_rpc_error

ResponseT = TypeVar("ResponseT", bound=Message)

DEFAULT_TIMEOUT = 300.0
"""Seconds after which a unary call gives up, unless the caller says otherwise."""
STATUS_SECONDS = 1.0
"""Time that a service has for its status after a stream's terminal event, before the call is cancelled."""


async def unary(call: Awaitable[ResponseT]) -> ResponseT:
    """The answer of a unary call.

    Raises:
        StackError: As the service raised it, or as the transport failed.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None
    except asyncio.CancelledError:
        raise _cancelled("the client was closed during the call") from None


async def every_page(method: Callable[..., Awaitable[Any]], request: Any, *, timeout: float) -> list[Any]:  # noqa: ANN401
    """All entries of a list call, page after page; `request` is the first page's and is changed on the way.

    Raises:
        StackError: As the service raised it, or as the transport failed.
    """
    entries: list[Any] = []
    while True:
        response = await unary(method(request, timeout=timeout))
        entries += response.data
        if not response.next_page_token:
            return entries
        request.page_token = response.next_page_token


class EventStream(Generic[ResponseT]):
    """The events of a server stream, without heartbeats.

    Iterating ends after the terminal event. Leaving earlier, by break, exception or `aclose`, cancels the call: use
    `async with` or iterate to the end.
    """

    # No generator inside: it would hold us and we it, and a stream left by `break` would go on until the next
    # collection of garbage.

    def __init__(self, call: "grpc.aio.UnaryStreamCall[Any, ResponseT]") -> None:
        self._call = call
        self._responses = aiter(call)
        self._terminal = False
        self._ended = False
        self.last_sequence = 0
        """Sequence of the last event that was read."""

    async def __aenter__(self) -> Self:
        """Watch the stream inside a `with` block."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Cancel the call if it has not ended."""
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the call if it has not ended."""
        self._end()

    def __del__(self) -> None:
        """A stream that was left by `break` and forgotten must not go on at the service."""
        if not self._ended and not self._call.done():
            self._call.cancel()

    def __aiter__(self) -> Self:
        """The events in order."""
        return self

    async def __anext__(self) -> ResponseT:
        """The next event.

        Raises:
            StackError: As the service raised it, or as the transport failed.
            StreamBrokenError: If the stream ended without its terminal event.
        """
        if self._terminal and not self._ended:
            await self._read_status()
        if self._ended:
            raise StopAsyncIteration
        try:
            event = await self._next_event()
        except BaseException:
            self._end()
            raise
        self._terminal = event.WhichOneof("event") in terminal_events(event.DESCRIPTOR)
        self.last_sequence = getattr(event, "sequence", 0) or self.last_sequence
        return event

    async def _next_event(self) -> ResponseT:
        """The next event that is not a heartbeat, nor of a kind that this client does not know."""
        try:
            async for event in self._responses:
                if event.WhichOneof("event") not in {"heartbeat", None}:
                    return event
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            raise _cancelled("the stream was closed while its next event was awaited") from None
        raise StreamBrokenError("the stream ended without its terminal event; what arrived is incomplete")

    async def _read_status(self) -> None:
        """Let the call end by itself, or the service would count every complete stream as cancelled by its caller."""
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                async for _ in self._responses:
                    pass
        except (grpc.aio.AioRpcError, TimeoutError):
            pass  # the terminal event has said how it ended
        finally:
            self._end()

    def _end(self) -> None:
        # From grpcio 1.83 on an abandoned call is never cancelled by itself (grpc/grpc#43462).
        self._ended = True
        self._call.cancel()


def _cancelled(message: str) -> BaseException:
    """What a cancelled call means: that our task is cancelled, or that somebody closed the call under its feet."""
    task = asyncio.current_task()
    return asyncio.CancelledError() if task is not None and task.cancelling() else CancelledError(message)


@cache
def terminal_events(descriptor: Descriptor) -> frozenset[str]:
    """Names of the oneof members that end a stream of this message."""
    return frozenset(
        field.name for field in descriptor.oneofs_by_name["event"].fields if field.GetOptions().Extensions[v1.terminal]
    )

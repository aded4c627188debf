"""Writing the events of a server stream: sequence numbers, heartbeats, and going away when the service drains."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from stack_client.errors import StackError

HEARTBEAT_SECONDS = 15.0

RpcContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""The context of a call, as every servicer method gets it."""


class StreamEvent(Protocol):
    """A streamed response: `sequence` and a oneof `event` with heartbeat and go_away among its members."""

    sequence: int


EventT = TypeVar("EventT", bound=StreamEvent)


class EventWriter(Generic[EventT]):
    """Writes one stream's events in order.

    Args:
        context: Of the call.
        response: The streamed message's class.
        draining: Set when the service is about to shut down.
        grace_seconds: Told to the client with go_away: how long the stream may go on.
        last_sequence: Sequence before the first event; above 0 where a watcher resumes.
    """

    def __init__(
        self,
        context: RpcContext,
        response: type[EventT],
        *,
        draining: asyncio.Event,
        grace_seconds: float = 0.0,
        last_sequence: int = 0,
    ) -> None:
        self._context = context
        self._response: Any = response
        self._draining = draining
        self._grace = grace_seconds
        self.last_sequence = last_sequence
        self._last_write = time.monotonic()
        self._lock = asyncio.Lock()  # a call allows one write at a time, and `keep_alive` writes too

    async def write(self, **event: object) -> None:
        """Send the next event; `event` is the member of the oneof that is set."""
        async with self._lock:
            self.last_sequence += 1
            await self._context.write(self._response(sequence=self.last_sequence, **event))
            self._last_write = time.monotonic()

    async def forward(self, event: EventT) -> None:
        """Send an event that carries its sequence already, or 0 where it counts for none."""
        async with self._lock:
            self.last_sequence = event.sequence or self.last_sequence
            await self._context.write(event)
            self._last_write = time.monotonic()

    async def run(self, sending: Coroutine[Any, Any, None]) -> None:
        """Await what writes the events, with heartbeats beside it.

        Raises:
            BaseException: What `sending` raised.
        """
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self.keep_alive())
                await sending
                keeper.cancel()
        except ExceptionGroup as failures:
            # A heartbeat may fail with the call that the error ends.
            raise next((e for e in failures.exceptions if isinstance(e, StackError)), failures.exceptions[0]) from None

    async def keep_alive(self) -> None:
        """Send heartbeats while nothing else flows, and go_away once when the service drains; runs until cancelled."""
        told = False
        while True:
            pause = self._last_write + HEARTBEAT_SECONDS - time.monotonic()
            if pause <= 0:
                now = Timestamp()
                now.GetCurrentTime()
                await self._write_unnumbered(heartbeat=v1.Heartbeat(sent_at=now))
                continue
            if told:
                await asyncio.sleep(pause)
                continue
            try:
                async with asyncio.timeout(pause):
                    await self._draining.wait()
            except TimeoutError:
                continue
            told = True
            await self._write_unnumbered(go_away=v1.GoAway(last_sequence=self.last_sequence, grace_seconds=self._grace))

    async def _write_unnumbered(self, **event: object) -> None:
        async with self._lock:
            await self._context.write(self._response(**event))
            self._last_write = time.monotonic()

"""Every way in which a stream can end, seen from both sides."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from llamastack import v1
from stack_client import StackClient
from stack_client.calls import EventStream
from stack_client.errors import (
    CancelledError,
    DeadlineExceededError,
    NotFoundError,
    StreamBrokenError,
    UnavailableError,
)
from tests.sdk.conftest import BOUND_SECONDS, InFlight
from tests.stacks import StackProcess

pytestmark = pytest.mark.usefixtures("stack")


async def collect(stream: EventStream[v1.StreamChatCompletionResponse], pieces: list[str]) -> None:
    async for event in stream:
        if event.progress.delta.text:
            pieces += [event.progress.delta.text]


async def test_an_error_in_the_middle_comes_after_the_pieces_before_it(client: StackClient) -> None:
    pieces: list[str] = []
    with pytest.raises(UnavailableError, match="the scripted engine broke"):
        await collect(client.inference.stream_chat("scripted", "break"), pieces)
    assert "".join(pieces) == "one two three"


async def test_an_error_before_the_first_event_is_raised_by_the_first_step(client: StackClient) -> None:
    stream = client.inference.stream_chat("no-such-model", "say x")
    with pytest.raises(NotFoundError):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_the_deadline_of_a_stream_ends_it_at_both_sides(client: StackClient, calls_in_flight: InFlight) -> None:
    with pytest.raises(DeadlineExceededError):
        async for _ in client.inference.stream_chat("scripted", "hang", timeout=0.3):
            pass
    await calls_in_flight(0)


async def test_leaving_by_break_cancels_the_call(client: StackClient, calls_in_flight: InFlight) -> None:
    async for event in client.inference.stream_chat("scripted", "hang"):
        if event.WhichOneof("event") == "progress":
            await calls_in_flight(1)
            break
    await calls_in_flight(0)


async def test_leaving_by_an_exception_cancels_the_call(client: StackClient, calls_in_flight: InFlight) -> None:
    async def watch() -> None:
        async for _ in client.inference.stream_chat("scripted", "hang"):
            await calls_in_flight(1)
            raise ValueError("the caller's own")

    with pytest.raises(ValueError, match="the caller's own"):
        await watch()
    await calls_in_flight(0)


async def test_leaving_by_aclose_cancels_the_call(client: StackClient, calls_in_flight: InFlight) -> None:
    stream = client.inference.stream_chat("scripted", "hang")
    await anext(stream)
    await calls_in_flight(1)
    await stream.aclose()
    await calls_in_flight(0)
    assert [event async for event in stream] == []


async def test_leaving_a_with_block_cancels_the_call(client: StackClient, calls_in_flight: InFlight) -> None:
    async with client.inference.stream_chat("scripted", "hang") as stream:
        await anext(stream)
        await calls_in_flight(1)
    await calls_in_flight(0)


async def test_cancelling_the_task_cancels_the_call(client: StackClient, calls_in_flight: InFlight) -> None:
    async def watch() -> None:
        async for _ in client.inference.stream_chat("scripted", "hang"):
            pass

    task = asyncio.create_task(watch())
    await calls_in_flight(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await calls_in_flight(0)


async def test_cancelling_the_task_of_a_unary_call_cancels_the_call(
    client: StackClient, calls_in_flight: InFlight
) -> None:
    task = asyncio.create_task(client.inference.chat("scripted", "hang"))
    await calls_in_flight(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await calls_in_flight(0)


async def test_closing_a_stream_tells_the_task_that_waits_for_its_next_event(client: StackClient) -> None:
    stream = client.inference.stream_chat("scripted", "hang")
    waiting = asyncio.Event()

    async def watch() -> None:
        async for event in stream:
            if event.progress.delta.text.endswith("three"):
                waiting.set()

    task = asyncio.create_task(watch())
    async with asyncio.timeout(BOUND_SECONDS):
        await waiting.wait()
    await stream.aclose()
    with pytest.raises(CancelledError, match="closed"):
        await task


async def test_closing_the_client_tells_calls_in_flight(stack: StackProcess, calls_in_flight: InFlight) -> None:
    client = StackClient(stack.addresses)
    task = asyncio.create_task(client.inference.chat("scripted", "hang"))
    await calls_in_flight(1)
    await client.close()
    with pytest.raises(CancelledError, match="closed"):
        await task
    await calls_in_flight(0)


async def test_a_complete_stream_is_not_counted_as_cancelled(client: StackClient) -> None:
    stream = client.inference.stream_chat("scripted", "say x")
    async for _ in stream:
        pass
    assert await stream._call.code() is grpc.StatusCode.OK


@asynccontextmanager
async def tiny_server(behaviour: Any) -> AsyncIterator[StackClient]:
    """An inference service whose stream does what the test wants."""

    class Inference(v1.InferenceServiceServicer):
        async def StreamChatCompletion(self, request: Any, context: Any) -> Any:  # noqa: N802
            async for event in behaviour(context):
                yield event

    server = grpc.aio.server()
    port = server.add_insecure_port("localhost:0")
    v1.add_InferenceServiceServicer_to_server(Inference(), server)  # type: ignore[abstract] # the rest is not called
    await server.start()
    try:
        async with StackClient({"inference": f"localhost:{port}"}) as client:
            yield client
    finally:
        await server.stop(None)


def progress(text: str, sequence: int) -> v1.StreamChatCompletionResponse:
    delta = v1.ContentDelta(text=text)
    return v1.StreamChatCompletionResponse(sequence=sequence, progress=v1.ChatCompletionProgress(delta=delta))


async def test_a_stream_without_its_terminal_event_is_broken() -> None:
    async def behaviour(context: Any) -> AsyncIterator[v1.StreamChatCompletionResponse]:
        yield progress("half an", 1)

    pieces: list[str] = []
    async with tiny_server(behaviour) as client:
        with pytest.raises(StreamBrokenError, match="incomplete"):
            await collect(client.inference.stream_chat("any", "hi"), pieces)
    assert pieces == ["half an"]


async def test_heartbeats_and_unknown_events_are_not_shown() -> None:
    async def behaviour(context: Any) -> AsyncIterator[v1.StreamChatCompletionResponse]:
        yield v1.StreamChatCompletionResponse(heartbeat=v1.Heartbeat())
        yield progress("text", 1)
        yield v1.StreamChatCompletionResponse(sequence=2)  # an event that this version does not know
        yield v1.StreamChatCompletionResponse(sequence=3, complete=v1.ChatCompletionComplete())

    async with tiny_server(behaviour) as client:
        stream = client.inference.stream_chat("any", "hi")
        assert [event.WhichOneof("event") async for event in stream] == ["progress", "complete"]
        assert stream.last_sequence == 3


async def test_a_service_that_hangs_after_the_terminal_event_does_not_hold_the_caller() -> None:
    async def behaviour(context: Any) -> AsyncIterator[v1.StreamChatCompletionResponse]:
        yield v1.StreamChatCompletionResponse(sequence=1, complete=v1.ChatCompletionComplete())
        await asyncio.Event().wait()

    async with tiny_server(behaviour) as client, asyncio.timeout(BOUND_SECONDS):
        events = [event async for event in client.inference.stream_chat("any", "hi")]
    assert len(events) == 1


async def test_a_cancelled_status_of_the_service_is_an_error_not_a_cancelled_task() -> None:
    async def behaviour(context: Any) -> AsyncIterator[v1.StreamChatCompletionResponse]:
        yield progress("x", 1)
        await context.abort(grpc.StatusCode.CANCELLED, "the operator ended it")

    async with tiny_server(behaviour) as client:
        with pytest.raises(CancelledError, match="the operator ended it"):
            async for _ in client.inference.stream_chat("any", "hi"):
                pass

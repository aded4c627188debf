"""Running generations: several at once, beside the sending of what they write."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from llamastack import v1
from services.inference.coalesce import Delta, DeltaBuffer
from services.inference.provider import Answer, Sink
from services.runtime.stream import EventWriter
from stack_client.errors import StackError


async def run_generations(
    generations: Sequence[Callable[[Sink], Awaitable[Answer]]],
    start: Callable[[], Awaitable[None]],
    forward: Callable[[int, Delta], Awaitable[None]],
    writer: "EventWriter[v1.StreamChatCompletionResponse] | EventWriter[v1.StreamCompletionResponse]",
    *,
    beside: Callable[[asyncio.TaskGroup], None] | None = None,
    finish: Callable[[], Awaitable[object]] | None = None,
) -> list[Answer]:
    """Run generations beside the sending of their deltas; a client that is gone ends them.

    Args:
        generations: One per answer.
        start: Sends the first event, once all are admitted.
        forward: Sends a delta of an answer.
        writer: Keeps the stream alive.
        beside: Starts what runs with them; its failure ends them.
        finish: Awaited after the last delta, while all of that still runs.

    Raises:
        StackError: As a generation failed: before the stream's start if it was not admitted, else after everything
            that it wrote before was sent.
    """
    buffers = [DeltaBuffer() for _ in generations]

    async def generate(index: int) -> Answer | StackError:
        try:
            return await generations[index](buffers[index])
        except StackError as error:
            return error
        finally:
            buffers[index].close()

    async def send(index: int, task: "asyncio.Task[Answer | StackError]") -> Answer:
        while deltas := await buffers[index].next():
            for delta in deltas:
                await forward(index, delta)
        outcome = await task
        if isinstance(outcome, StackError):
            raise outcome
        return outcome

    try:
        async with asyncio.TaskGroup() as group:
            if beside is not None:
                beside(group)
            tasks = [group.create_task(generate(index)) for index in range(len(generations))]
            for buffer, task in zip(buffers, tasks, strict=True):
                if not await buffer.admission():
                    _raise_if_failed(await task)
            await start()
            keeper = group.create_task(writer.keep_alive())
            sending = [group.create_task(send(index, task)) for index, task in enumerate(tasks)]
            answers = [await task for task in sending]
            if finish is not None:
                await finish()
            keeper.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return answers


def _raise_if_failed(outcome: Answer | StackError) -> None:
    """Raise an outcome that is an error."""
    if isinstance(outcome, StackError):
        raise outcome

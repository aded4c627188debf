"""Responses over kills of the process, at any event."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from stack_client.errors import StackError
from stack_client.responses import output_text
from tests.agents.mesh import until
from tests.agents.test_durability import Process, living
from tests.agents.test_responses import check_stream, kinds

TEXT = " ".join(f"word{number}" for number in range(200))


@pytest.fixture
async def process(tmp_path: Path, inference: str) -> AsyncIterator[Process]:
    async with living(tmp_path, inference) as running:
        yield running


async def read(process: Process, response_id: str, *, after: int = 0, count: int = 0) -> list[Any]:
    """Events: `count` of them, or all until the stream ends, well or badly."""
    seen: list[Any] = []
    try:
        async with process.client.responses.watch(response_id, after_sequence=after) as stream:
            async for event in stream:
                if event.sequence:
                    seen.append(event)
                if count and len(seen) == count:
                    break
    except StackError:
        pass
    return seen


async def test_a_background_response_goes_on_after_a_kill_and_its_stream_is_taken_up(process: Process) -> None:
    responses = process.client.responses
    made = await process.client.conversations.create()
    queued = await responses.create("scripted", f"slow {TEXT}", background=True, conversation=made.id)
    seen = await read(process, queued.id, count=9)
    await process.end(signal.SIGKILL)
    await process.start()
    more = await read(process, queued.id, after=seen[-1].sequence)
    stored = await responses.get(queued.id)
    assert stored.status == v1.RESPONSE_STATUS_COMPLETED
    assert output_text(stored) == TEXT, "what was written before the kill is not written again"
    check_stream([*seen, *more], stored)
    assert await read(process, queued.id) == [*seen, *more]
    assert len(await process.client.conversations.items(made.id)) == 2


async def test_responses_are_settled_although_nobody_watches_and_the_process_was_killed(process: Process) -> None:
    responses = process.client.responses
    made = await process.client.conversations.create()
    queued = await responses.create("scripted", f"slow {TEXT}", background=True, conversation=made.id)
    await process.end(signal.SIGKILL)
    await process.start()

    async def written() -> bool:
        return len(await process.client.conversations.items(made.id)) == 2

    await until(written)
    after = await responses.create("scripted", "slow next", conversation=made.id)
    assert output_text(after) == "next"
    assert "completed" in kinds(await read(process, queued.id))
    await process.end(signal.SIGTERM)
    await process.start()
    assert (await responses.get(queued.id)).status == v1.RESPONSE_STATUS_COMPLETED

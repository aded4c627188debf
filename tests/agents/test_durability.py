"""The agents service as a process of its own, killed and ended at any moment."""

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from stack_client import StackClient
from stack_client.errors import StackError, UnavailableError
from tests.agents.mesh import TOOLS, check_dense, kinds, result, text_of, until, user

TEXT = " ".join(f"word{number}" for number in range(200))
ENDS = {"turn_complete", "turn_failed", "turn_cancelled"}


class Process:
    """The service in one life after the other, and a client that stays."""

    def __init__(self, home: Path, inference: str, **settings: Any) -> None:
        self.address = f"unix:{home}/agents.sock"
        self.config = home / "stack.yaml"
        runtime = {"tcp": False, "socket_dir": str(home), "drain_notice_seconds": 0, "drain_grace_seconds": 0.2}
        addresses = {"inference": inference, "agents": self.address}
        if tools := settings.pop("tools", ""):
            addresses["tools"] = tools
        agents = {"inference_attempts": 8, "inference_retry_seconds": 0.05, **settings}
        self.config.write_text(json.dumps({"addresses": addresses, "runtime": runtime, "agents": agents}))
        self.client = StackClient({"agents": self.address})
        self.running: asyncio.subprocess.Process

    async def start(self) -> None:
        """Start it and wait until it answers."""
        arguments = ["-m", "services.agents", "--config", str(self.config), "--home", str(self.config.parent)]
        self.running = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stderr=asyncio.subprocess.DEVNULL
        )

        async def answers() -> bool:
            assert self.running.returncode is None
            try:
                await self.client.agents.list(timeout=5)
            except UnavailableError:
                return False
            return True

        await until(answers, 30)

    async def end(self, number: signal.Signals) -> int:
        self.running.send_signal(number)
        return await self.running.wait()

    async def ask(self, text: str, **settings: Any) -> v1.Turn:
        config = v1.AgentConfig(**{"model": "scripted", "client_tools": TOOLS, **settings})
        agent_id = await self.client.agents.create(config)
        session_id = await self.client.agents.create_session(agent_id)
        return await self.client.agents.create_turn(agent_id, session_id, [user(text)])

    async def read(
        self, turn_id: str, *, after: int = 0, count: int = 0, into: list[v1.WatchTurnResponse] | None = None
    ) -> list[v1.WatchTurnResponse]:
        """Events: `count` of them, or all until the stream ends, well or badly."""
        seen = [] if into is None else into
        try:
            async with asyncio.timeout(30), self.client.agents.watch_turn(turn_id, after_sequence=after) as stream:
                async for event in stream:
                    seen.append(event)
                    if count and len(seen) == count:
                        break
        except StackError:
            pass
        return seen


@pytest.fixture
async def process(tmp_path: Path, inference: str) -> AsyncIterator[Process]:
    async with living(tmp_path, inference) as running:
        yield running


@asynccontextmanager
async def living(home: Path, inference: str, **settings: Any) -> AsyncIterator[Process]:
    process = Process(home, inference, **settings)
    await process.start()
    try:
        yield process
    finally:
        await process.client.close()
        if process.running.returncode is None:
            await process.end(signal.SIGKILL)


async def test_a_killed_process_goes_on_with_its_turn_and_loses_nothing_it_has_shown(process: Process) -> None:
    turn = await process.ask(f"slow {TEXT}")
    seen = await process.read(turn.turn_id, count=8)
    await process.end(signal.SIGKILL)
    await process.start()
    more = await process.read(turn.turn_id, after=seen[-1].sequence)
    events = [*seen, *more]
    check_dense(events)
    assert events == await process.read(turn.turn_id)
    assert "step_restarted" in kinds(more)
    assert kinds(events)[-1] == "turn_complete"
    assert text_of(events) == TEXT
    done = await process.client.agents.get_turn(turn.turn_id)
    assert events[-1].turn_complete.turn == done
    assert done.usage.completion_tokens == 200, "an attempt that was lost is not counted"


async def test_a_turn_that_waits_for_its_caller_survives_a_kill(process: Process) -> None:
    turn = await process.ask("two things")
    waiting = (await process.read(turn.turn_id))[-1].turn_awaiting_input.turn
    first, second = [call.call_id for call in waiting.output_message.tool_calls]
    await process.client.agents.resume_turn(turn.turn_id, [result(first, "sunny")])
    await process.end(signal.SIGKILL)
    await process.start()
    again = await process.client.agents.get_turn(turn.turn_id)
    assert again.status == v1.TURN_STATUS_AWAITING_INPUT
    assert [call.call_id for call in again.output_message.tool_calls] == [second]
    await process.client.agents.resume_turn(turn.turn_id, [result(second, "noon")])
    more = await process.read(turn.turn_id, after=waiting.last_sequence)
    check_dense(more, first=waiting.last_sequence + 1)
    assert kinds(more)[-1] == "turn_complete"


async def test_a_turn_goes_on_in_the_next_process_after_sigterm(process: Process) -> None:
    turn = await process.ask(f"slow {TEXT}")
    seen: list[v1.WatchTurnResponse] = []
    watching = asyncio.create_task(process.read(turn.turn_id, into=seen))
    await until(lambda: "step_progress" in kinds(seen))
    assert await process.end(signal.SIGTERM) == 0
    await watching
    assert "go_away" in kinds(seen)
    numbered = [event for event in seen if event.sequence]
    await process.start()
    more = await process.read(turn.turn_id, after=numbered[-1].sequence)
    check_dense([*numbered, *more])
    assert kinds(more)[-1] == "turn_complete"
    assert text_of([*numbered, *more]) == TEXT


async def test_the_client_follows_a_turn_over_a_kill_by_itself(process: Process) -> None:
    turn = await process.ask(f"slow {TEXT}")
    seen: list[v1.WatchTurnResponse] = []
    async with asyncio.timeout(60):
        async for event in process.client.agents.follow_turn(turn.turn_id):
            seen.append(event)
            if len(seen) == 5:
                await process.end(signal.SIGKILL)
                await process.start()
    check_dense(seen)
    assert kinds(seen)[-1] == "turn_complete"
    assert text_of(seen) == TEXT


def transcript(turn: v1.Turn) -> list[str]:
    """What a turn came to, without ids and times."""
    said: list[str] = [v1.TurnStatus.Name(turn.status), str(turn.usage), str(turn.output_message)]
    for step in turn.steps:
        done = v1.ToolExecutionStep()
        done.CopyFrom(step.tool_execution)
        for record in done.records:
            said += [record.tool, v1.ToolCallState.Name(record.state)]
        del done.records[:]
        said += [v1.StepType.Name(step.step_type), str(step.inference), str(done)]
    return said


async def story(process: Process, kills: list[int]) -> v1.Turn:
    """A turn with two tools, killed after so many more events each time."""
    turn = await process.ask("two things")
    seen: list[v1.WatchTurnResponse] = []
    left = list(kills)
    async with asyncio.timeout(60):
        while not seen or kinds(seen)[-1] not in ENDS:
            count = left.pop(0) if left else 0
            fresh = await process.read(turn.turn_id, after=seen[-1].sequence if seen else 0, count=count)
            seen += fresh
            if count:
                await process.end(signal.SIGKILL)
                await process.start()
            if seen and kinds(seen)[-1] == "turn_awaiting_input":
                calls = seen[-1].turn_awaiting_input.turn.output_message.tool_calls
                answers = [result(call.call_id, f"slow {TEXT}") for call in calls]
                await process.client.agents.resume_turn(turn.turn_id, answers)
    check_dense(seen)
    return await process.client.agents.get_turn(turn.turn_id)


async def test_killed_anywhere_the_transcript_is_that_of_an_undisturbed_turn(process: Process) -> None:
    undisturbed = transcript(await story(process, []))
    choose = random.Random(20)
    for _ in range(3):
        kills = [choose.randint(1, 6) for _ in range(choose.randint(1, 2))]
        assert transcript(await story(process, kills)) == undisturbed, kills

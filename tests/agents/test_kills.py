"""Kill -9 at every step boundary and inside every kind of tool: the transcript is that of an undisturbed turn."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llamastack import v1
from stack_client.content import text_of
from tests.agents.mesh import Mesh, check_dense, kinds, result, running_mesh, until
from tests.agents.test_durability import Process, living, transcript

GROUP = [v1.AgentToolGroup(name="test")]
ENDS = {"turn_complete", "turn_failed", "turn_cancelled", "turn_awaiting_input"}


@pytest.fixture
async def tools(tmp_path: Path, inference: str) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path / "tools", "tools", inference=inference) as mesh:
        yield mesh


@pytest.fixture
async def process(tmp_path: Path, inference: str, tools: Mesh) -> AsyncIterator[Process]:
    async with living(tmp_path, inference, tools=tools.config.addresses["tools"]) as running:
        yield running


async def restart(process: Process) -> None:
    await process.end(signal.SIGKILL)
    await process.start()


async def whole(process: Process, turn_id: str) -> v1.Turn:
    events = await process.read(turn_id)
    check_dense(events)
    assert kinds(events)[-1] in ENDS, kinds(events)
    return await process.client.agents.get_turn(turn_id)


async def test_killed_after_any_event_each_effect_happens_once_and_the_transcript_is_the_same(
    process: Process, tools: Mesh
) -> None:
    undisturbed = await whole(process, (await process.ask("chain", toolgroups=GROUP)).turn_id)
    assert undisturbed.status == v1.TURN_STATUS_COMPLETED
    assert undisturbed.last_sequence > 15
    for number in range(1, undisturbed.last_sequence, 2):
        counts = {name: tools.tools.count(name) for name in ("put", "pay")}
        turn = await process.ask("chain", toolgroups=GROUP)
        await process.read(turn.turn_id, count=number)
        await restart(process)
        done = await whole(process, turn.turn_id)
        assert transcript(done) == transcript(undisturbed), number
        assert {name: tools.tools.count(name) - before for name, before in counts.items()} == {"put": 1, "pay": 1}


@pytest.mark.parametrize("name", ["slow_look", "slow_put", "slow_pay"])
async def test_killed_inside_a_tool_the_turn_goes_on_and_no_effect_is_doubled(
    process: Process, tools: Mesh, name: str
) -> None:
    turn = await process.ask(f"use {name}", toolgroups=GROUP)
    folder = tools.tools.folder
    await until((folder / "reached").exists)
    await process.end(signal.SIGKILL)
    (folder / "go").touch()
    await process.start()
    done = await whole(process, turn.turn_id)
    assert done.status == v1.TURN_STATUS_COMPLETED
    assert text_of(done.output_message.content) == f'The tool says: {name} {{"n": 1}}'
    assert tools.tools.count(name) == 1 or name == "slow_look", "looking twice changes nothing"


@pytest.mark.parametrize("name", ["slow_put", "slow_pay"])
async def test_when_the_tools_service_dies_inside_a_tool_only_what_may_be_repeated_is(
    tmp_path: Path, inference: str, name: str
) -> None:
    home = tmp_path / "tools"
    async with running_mesh(home, "tools", inference=inference) as tools:
        folder = tools.tools.folder
        async with living(tmp_path, inference, tools=tools.config.addresses["tools"]) as process:
            turn = await process.ask(f"use {name}", toolgroups=GROUP)
            await until((folder / "reached").exists)
            await process.end(signal.SIGKILL)
    (folder / "go").touch()
    async with running_mesh(home, "tools", inference=inference) as tools:
        async with living(tmp_path, inference, tools=tools.config.addresses["tools"]) as process:
            done = await whole(process, turn.turn_id)
            assert tools.tools.count(name) == 1
            if name == "slow_put":
                assert done.status == v1.TURN_STATUS_COMPLETED
                return
            assert done.status == v1.TURN_STATUS_NEEDS_ATTENTION
            (one,) = done.pending
            assert one.kind == v1.PENDING_KIND_LOST
            await restart(process)  # and a person may take her time
            response = result(one.call.call_id, "it was paid, says the bank")
            await process.client.agents.resume_turn(turn.turn_id, [response])
            events = await process.read(turn.turn_id, after=done.last_sequence)
            assert kinds(events)[-1] == "turn_complete"
            assert tools.tools.count(name) == 1


async def test_a_person_may_let_a_lost_call_run_again(tmp_path: Path, inference: str) -> None:
    home = tmp_path / "tools"
    async with running_mesh(home, "tools", inference=inference) as tools:
        async with living(tmp_path, inference, tools=tools.config.addresses["tools"]) as process:
            turn = await process.ask("use slow_pay", toolgroups=GROUP)
            await until((tools.tools.folder / "reached").exists)
            await process.end(signal.SIGKILL)
    async with running_mesh(home, "tools", inference=inference) as tools:
        async with living(tmp_path, inference, tools=tools.config.addresses["tools"]) as process:
            lost = await whole(process, turn.turn_id)
            (tools.tools.folder / "go").touch()
            again = v1.ToolDecision(call_id=lost.pending[0].call.call_id, kind=v1.TOOL_DECISION_KIND_APPROVE)
            await process.client.agents.resume_turn(turn.turn_id, decisions=[again])
            events = await process.read(turn.turn_id, after=lost.last_sequence)
            assert kinds(events)[-1] == "turn_complete"
            assert tools.tools.count("slow_pay") == 2, "the person said so"


async def test_an_approval_survives_a_kill_before_and_after_it(process: Process, tools: Mesh) -> None:
    rules = [v1.ApprovalRule(tool="*", approval=v1.TOOL_APPROVAL_ALWAYS)]
    turn = await process.ask("use pay", toolgroups=GROUP, approvals=rules)
    waiting = await whole(process, turn.turn_id)
    await restart(process)
    made = v1.ToolDecision(call_id=waiting.pending[0].call.call_id, kind=v1.TOOL_DECISION_KIND_APPROVE)
    await process.client.agents.resume_turn(turn.turn_id, decisions=[made])
    await restart(process)
    events = await process.read(turn.turn_id, after=waiting.last_sequence)
    check_dense(events, first=waiting.last_sequence + 1)
    assert kinds(events)[-1] == "turn_complete"
    assert tools.tools.count("pay") == 1


async def test_a_client_that_drops_at_every_event_sees_the_whole(process: Process) -> None:
    turn = await process.ask("chain", toolgroups=GROUP)
    live = await process.read(turn.turn_id)
    pieces: list[v1.WatchTurnResponse] = []
    while not pieces or kinds(pieces)[-1] not in ENDS:
        pieces += await process.read(turn.turn_id, after=len(pieces), count=1)
    assert pieces == live

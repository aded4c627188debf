"""Cancelling in every state, and watching from anywhere, by many, again."""

import asyncio
import gc
import logging
from pathlib import Path

import pytest

from llamastack import v1
from stack_client.errors import FailedPreconditionError, OutOfRangeError
from tests.agents.mesh import TOOLS, Mesh, check_dense, drained, kinds, running_mesh, text_of, until, until_event


async def test_a_running_turn_is_cancelled_and_keeps_what_it_has_done(mesh: Mesh) -> None:
    turn = await mesh.start("hang")
    await until_event(mesh, turn.turn_id, "step_progress")
    watching = asyncio.create_task(mesh.watch(turn.turn_id))
    cancelled = await mesh.client.agents.cancel_turn(turn.turn_id)
    assert cancelled.status == v1.TURN_STATUS_CANCELLED
    assert cancelled.HasField("completed_at")
    events = await watching
    check_dense(events)
    assert kinds(events)[-1] == "turn_cancelled"
    assert text_of(events) == "before"
    assert events[-1].turn_cancelled.turn == cancelled == await mesh.client.agents.get_turn(turn.turn_id)


async def test_a_turn_that_waits_in_line_is_cancelled_before_it_starts(tmp_path: Path, inference: str) -> None:
    async with running_mesh(tmp_path, inference=inference, running_turns=1) as mesh:
        first = await mesh.start("hang")
        await until_event(mesh, first.turn_id, "step_progress")
        queued, third = await mesh.start("hi"), await mesh.start("hello")
        assert (await mesh.client.agents.get_turn(queued.turn_id)).status == v1.TURN_STATUS_QUEUED
        watching = asyncio.create_task(mesh.watch(queued.turn_id))
        assert (await mesh.client.agents.cancel_turn(queued.turn_id)).status == v1.TURN_STATUS_CANCELLED
        assert kinds(await watching) == ["turn_cancelled"]
        await mesh.client.agents.cancel_turn(first.turn_id)
        assert kinds(await mesh.watch(third.turn_id))[-1] == "turn_complete"


async def test_a_turn_that_waits_for_its_caller_is_cancelled_and_its_watchers_learn_of_it(mesh: Mesh) -> None:
    turn = await mesh.start("weather", client_tools=TOOLS)
    waiting = (await mesh.watch(turn.turn_id))[-1].turn_awaiting_input.turn
    watching = asyncio.create_task(mesh.watch(turn.turn_id, waiting.last_sequence))
    await until(lambda: turn.turn_id in mesh.node._runner._notices._changes)
    cancelled = await mesh.client.agents.cancel_turn(turn.turn_id)
    assert cancelled.status == v1.TURN_STATUS_CANCELLED
    assert cancelled.HasField("completed_at")
    events = await watching
    assert kinds(events) == ["turn_cancelled"]
    check_dense(events, first=waiting.last_sequence + 1)
    with pytest.raises(FailedPreconditionError, match="it is cancelled"):
        await mesh.answer(turn.turn_id, **{waiting.output_message.tool_calls[0].call_id: "late"})


async def test_an_ended_turn_cannot_be_cancelled(mesh: Mesh) -> None:
    turn = await mesh.run("hi")
    with pytest.raises(FailedPreconditionError, match="it is completed"):
        await mesh.client.agents.cancel_turn(turn.turn_id)


async def test_cancelling_at_any_moment_ends_the_turn_once_with_dense_events(mesh: Mesh) -> None:
    async def one(pauses: int) -> None:
        turn = await mesh.start("slow a b c d e f g h")
        for _ in range(pauses):
            await asyncio.sleep(0)
        try:
            answered = await mesh.client.agents.cancel_turn(turn.turn_id)
            assert answered.status in {v1.TURN_STATUS_CANCELLED, v1.TURN_STATUS_COMPLETED}
        except FailedPreconditionError:
            pass
        events = await mesh.watch(turn.turn_id)
        check_dense(events)
        assert kinds(events)[-1] in {"turn_cancelled", "turn_complete"}
        assert sum(kind in {"turn_cancelled", "turn_complete", "turn_failed"} for kind in kinds(events)) == 1
        stored = await mesh.client.agents.get_turn(turn.turn_id)
        assert stored.last_sequence == events[-1].sequence

    async with asyncio.timeout(60):
        for first in range(0, 200, 20):
            await asyncio.gather(*[one(pauses) for pauses in range(first, first + 20, 2)])


async def test_many_cancels_and_an_answer_at_once_have_one_outcome(mesh: Mesh) -> None:
    for _ in range(5):
        turn = await mesh.start("weather", client_tools=TOOLS)
        waiting = (await mesh.watch(turn.turn_id))[-1].turn_awaiting_input.turn
        answer = {waiting.output_message.tool_calls[0].call_id: "sunny"}
        calls = [mesh.answer(turn.turn_id, **answer), *[mesh.client.agents.cancel_turn(turn.turn_id) for _ in range(5)]]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, v1.Turn | FailedPreconditionError) for outcome in outcomes)
        events = await mesh.watch(turn.turn_id, waiting.last_sequence)
        check_dense(events, first=waiting.last_sequence + 1)
        assert kinds(events)[-1] in {"turn_cancelled", "turn_complete"}


async def test_a_turn_is_watched_from_the_middle_and_after_its_end(mesh: Mesh) -> None:
    turn = await mesh.start("slow " + "word " * 30)
    live = await mesh.watch(turn.turn_id)
    assert await mesh.watch(turn.turn_id) == live
    for after in (1, 3, len(live) - 1):
        assert await mesh.watch(turn.turn_id, after) == live[after:]


async def test_watching_beyond_the_end_is_out_of_range(mesh: Mesh) -> None:
    turn = await mesh.run("hi")
    for after in (turn.last_sequence, turn.last_sequence + 1, 4_000_000_000):
        with pytest.raises(OutOfRangeError, match=f"{turn.last_sequence}, nothing follows {after}") as caught:
            await mesh.watch(turn.turn_id, after)
        assert caught.value.reason == "RESUME_POINT_GONE"


async def test_watching_beyond_what_a_turn_has_shown_is_out_of_range_while_it_runs_or_waits(mesh: Mesh) -> None:
    running = await mesh.start("hang")
    await until_event(mesh, running.turn_id, "step_progress")
    waiting = await mesh.start("weather", client_tools=TOOLS)
    await mesh.watch(waiting.turn_id)
    for turn in (running, waiting):
        with pytest.raises(OutOfRangeError):
            await asyncio.wait_for(mesh.watch(turn.turn_id, 1000), 20)
        await mesh.client.agents.cancel_turn(turn.turn_id)


async def test_many_watchers_see_the_same_and_one_that_leaves_disturbs_nobody(mesh: Mesh) -> None:
    turn = await mesh.start("slow " + "word " * 100)
    watching = [asyncio.create_task(mesh.watch(turn.turn_id)) for _ in range(20)]
    for _ in range(5):
        await until_event(mesh, turn.turn_id, "step_progress")  # comes, sees one, leaves
    seen = [await task for task in watching]
    check_dense(seen[0])
    assert kinds(seen[0])[-1] == "turn_complete"
    assert all(events == seen[0] for events in seen)


async def test_a_turn_without_watchers_ends_all_the_same(mesh: Mesh) -> None:
    turn = await mesh.start("slow a b c")

    async def ended() -> bool:
        return (await mesh.client.agents.get_turn(turn.turn_id)).status == v1.TURN_STATUS_COMPLETED

    await until(ended)


async def test_a_watcher_of_a_waiting_turn_goes_on_when_another_client_resumes_it(mesh: Mesh) -> None:
    turn = await mesh.start("weather", client_tools=TOOLS)
    waiting = (await mesh.watch(turn.turn_id))[-1].turn_awaiting_input.turn
    watching = [asyncio.create_task(mesh.watch(turn.turn_id, waiting.last_sequence)) for _ in range(3)]
    await until(lambda: turn.turn_id in mesh.node._runner._notices._changes)
    await mesh.answer(turn.turn_id, **{waiting.output_message.tool_calls[0].call_id: "sunny"})
    for task in watching:
        events = await task
        check_dense(events, first=waiting.last_sequence + 1)
        assert text_of(events) == "The tool says: sunny"
    replay = await mesh.watch(turn.turn_id)
    assert kinds(replay)[-1] == "turn_awaiting_input", "a replay stops where the live stream did"
    assert await mesh.watch(turn.turn_id, replay[-1].sequence) == events


async def test_the_access_log_counts_the_events_of_a_stream(mesh: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    turn = await mesh.run("hi")
    with caplog.at_level(logging.INFO, "services.runtime.interceptors.access_log"):
        events = await mesh.watch(turn.turn_id)
        await until(lambda: any("WatchTurn" in vars(record)["rpc.method"] for record in caplog.records))
    (record,) = [vars(record) for record in caplog.records if "WatchTurn" in vars(record)["rpc.method"]]
    assert record["messages"] == len(events)


async def test_a_watcher_that_leaves_a_waiting_turn_leaves_nothing_behind(mesh: Mesh) -> None:
    turn = await mesh.start("weather", client_tools=TOOLS)
    waiting = (await mesh.watch(turn.turn_id))[-1].turn_awaiting_input.turn
    watching = asyncio.create_task(mesh.watch(turn.turn_id, waiting.last_sequence))
    await until(lambda: turn.turn_id in mesh.node._runner._notices._changes)
    watching.cancel()
    await until(lambda: gc.collect() >= 0 and turn.turn_id not in mesh.node._runner._notices._changes)
    await mesh.client.agents.cancel_turn(turn.turn_id)


async def test_watchers_are_told_to_go_away_when_the_service_drains_and_the_next_one_goes_on(
    tmp_path: Path, inference: str
) -> None:
    async with running_mesh(tmp_path, inference=inference) as mesh:
        turn = await mesh.start("hang")
        await until_event(mesh, turn.turn_id, "step_progress")
        seen: list[v1.WatchTurnResponse] = []

        async def watch() -> None:
            async for event in mesh.client.agents.watch_turn(turn.turn_id):
                seen.append(event)  # noqa: PERF401 - looked at before the stream ends

        watching = asyncio.create_task(watch())
        await until(lambda: "step_progress" in kinds(seen))
        await drained(mesh)
        outcome = (await asyncio.gather(watching, return_exceptions=True))[0]
        assert getattr(outcome, "reason", "") == "DRAINING"
        assert kinds(seen)[-1] == "go_away"
        assert seen[-1].go_away.last_sequence == seen[-2].sequence
    async with running_mesh(tmp_path, inference=inference) as mesh:
        last = seen[-2].sequence
        async with mesh.client.agents.watch_turn(turn.turn_id, after_sequence=last) as stream:
            event = await anext(aiter(stream))
        assert (event.sequence, event.step_restarted.attempt) == (last + 1, 2)
        await mesh.client.agents.cancel_turn(turn.turn_id)

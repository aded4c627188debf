"""Turns: their events, what the model is shown, client tools, and what ends them."""

import asyncio
from pathlib import Path

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.content import content
from stack_client.content import text_of as text_in
from stack_client.errors import FailedPreconditionError, NotFoundError
from tests.agents.mesh import (
    TOOLS,
    Mesh,
    check_dense,
    kinds,
    result,
    running_mesh,
    text_of,
    until,
    until_event,
    user,
)


async def test_events_come_in_llama_stacks_order_and_add_up_to_the_answer(mesh: Mesh) -> None:
    words = " ".join(f"word{number}" for number in range(50))
    turn = await mesh.start(f"slow {words}")
    events = await mesh.watch(turn.turn_id)
    check_dense(events)
    progress = [kind for kind in kinds(events) if kind == "step_progress"]
    assert kinds(events) == ["turn_start", "step_start", *progress, "step_complete", "turn_complete"]
    assert len(progress) > 1
    assert text_of(events) == words
    stored = await mesh.client.agents.get_turn(turn.turn_id)
    assert events[-1].turn_complete.turn == stored
    assert stored.status == v1.TURN_STATUS_COMPLETED
    assert text_in(stored.output_message.content) == words
    assert stored.steps[0] == events[-2].step_complete.step_details
    assert stored.steps[0].inference.model_response == stored.output_message
    assert stored.last_sequence == events[-1].sequence
    assert stored.HasField("completed_at")
    assert stored.usage == stored.steps[0].inference.usage
    assert (stored.usage.prompt_tokens, stored.usage.completion_tokens) == (51, 50)


async def test_the_model_sees_instructions_and_earlier_turns(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session(instructions="Be brief please.")
    tokens = []
    for text in ("one", "two two", "three"):
        turn = await mesh.ask(agent_id, session_id, text)
        await mesh.watch(turn.turn_id)
        tokens.append((await mesh.client.agents.get_turn(turn.turn_id)).usage.prompt_tokens)
    # The model repeats the question, so every earlier turn counts twice.
    assert tokens == [3 + 1, 3 + 2 + 2, 3 + 2 + 4 + 1]


async def test_context_of_earlier_turns_is_not_shown_again(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    asked = v1.TurnInputMessage(user=v1.UserMessage(content=content("slow yes"), context=content("and more text")))
    for expected in (5, 2 + 5 + 5):
        turn = await mesh.client.agents.create_turn(agent_id, session_id, [asked])
        await mesh.watch(turn.turn_id)
        assert (await mesh.client.agents.get_turn(turn.turn_id)).usage.prompt_tokens == expected


async def test_a_cancelled_turn_does_not_spoil_the_next(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    turn = await mesh.ask(agent_id, session_id, "hang")
    await until_event(mesh, turn.turn_id, "step_progress")
    await mesh.client.agents.cancel_turn(turn.turn_id)
    after = await mesh.ask(agent_id, session_id, "hello there")
    events = await mesh.watch(after.turn_id)
    assert text_of(events) == "hello there"
    assert events[-1].turn_complete.turn.usage.prompt_tokens == 3


async def test_a_second_turn_in_a_session_is_refused_while_the_first_goes_on(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    turn = await mesh.ask(agent_id, session_id, "hang")
    with pytest.raises(FailedPreconditionError, match=turn.turn_id) as caught:
        await mesh.ask(agent_id, session_id, "hi")
    assert caught.value.reason == "TURN_IN_PROGRESS"
    assert caught.value.metadata == {"turn_id": turn.turn_id}
    await mesh.client.agents.cancel_turn(turn.turn_id)
    await mesh.ask(agent_id, session_id, "hi")


async def test_a_client_tool_is_awaited_and_its_result_goes_to_the_model(mesh: Mesh) -> None:
    turn = await mesh.start("weather in Oslo", client_tools=TOOLS)
    events = await mesh.watch(turn.turn_id)
    check_dense(events)
    assert kinds(events)[-3:] == ["step_start", "step_progress", "turn_awaiting_input"]
    waiting = events[-1].turn_awaiting_input.turn
    assert waiting == await mesh.client.agents.get_turn(turn.turn_id)
    assert waiting.status == v1.TURN_STATUS_AWAITING_INPUT
    assert not waiting.HasField("completed_at")
    (call,) = waiting.output_message.tool_calls
    assert (call.tool_name, call.arguments["city"]) == ("get_weather", "Oslo")
    resumed = await mesh.answer(turn.turn_id, **{call.call_id: "sunny"})
    assert resumed.status == v1.TURN_STATUS_RUNNING
    more = await mesh.watch(turn.turn_id, waiting.last_sequence)
    check_dense(more, first=waiting.last_sequence + 1)
    assert kinds(more)[:2] == ["step_complete", "step_start"]
    assert text_of(more) == "The tool says: sunny"
    done = more[-1].turn_complete.turn
    assert [step.step_type for step in done.steps] == [
        v1.STEP_TYPE_INFERENCE,
        v1.STEP_TYPE_TOOL_EXECUTION,
        v1.STEP_TYPE_INFERENCE,
    ]
    assert done.steps[1].tool_execution.tool_responses[0].tool_name == "get_weather"
    assert done.steps[1].HasField("completed_at")
    usages = [step.inference.usage for step in done.steps if step.HasField("inference")]
    assert done.usage.prompt_tokens == sum(usage.prompt_tokens for usage in usages)
    assert done.usage.total_tokens == sum(usage.total_tokens for usage in usages)
    assert [event.turn_start.turn_id for event in events if event.HasField("turn_start")] == [turn.turn_id]


async def test_results_may_come_in_parts_repeated_and_in_any_order(mesh: Mesh) -> None:
    turn = await mesh.start("two things", client_tools=TOOLS)
    await mesh.watch(turn.turn_id)
    waiting = await mesh.client.agents.get_turn(turn.turn_id)
    first, second = [call.call_id for call in waiting.output_message.tool_calls]
    part = await mesh.answer(turn.turn_id, **{second: "noon"})
    assert part.status == v1.TURN_STATUS_AWAITING_INPUT
    assert [call.call_id for call in part.output_message.tool_calls] == [first]
    assert part == await mesh.answer(turn.turn_id, **{second: "noon"})
    assert part == await mesh.client.agents.get_turn(turn.turn_id)
    with pytest.raises(FailedPreconditionError, match="other content"):
        await mesh.answer(turn.turn_id, **{second: "midnight"})
    with pytest.raises(NotFoundError, match=f"no call 'nosuch'; it waits for: {first}"):
        await mesh.answer(turn.turn_id, nosuch="x")
    with pytest.raises(NotFoundError):
        await mesh.answer(turn.turn_id, **{first: "sunny", "nosuch": "x"})
    assert part == await mesh.client.agents.get_turn(turn.turn_id), "a refused answer changes nothing"
    await mesh.answer(turn.turn_id, **{first: "sunny", second: "noon"})
    events = await mesh.watch(turn.turn_id, waiting.last_sequence)
    assert kinds(events)[-1] == "turn_complete"
    responses = events[-1].turn_complete.turn.steps[1].tool_execution.tool_responses
    assert [response.call_id for response in responses] == [first, second]
    before = await mesh.client.agents.get_turn(turn.turn_id)
    assert before == await mesh.answer(turn.turn_id, **{first: "sunny"}), "a late repeat does nothing"
    with pytest.raises(FailedPreconditionError, match="other content"):
        await mesh.answer(turn.turn_id, **{first: "rain"})


async def test_one_answer_may_not_hold_two_results_of_a_call(mesh: Mesh) -> None:
    turn = await mesh.start("weather", client_tools=TOOLS)
    await mesh.watch(turn.turn_id)
    waiting = await mesh.client.agents.get_turn(turn.turn_id)
    call_id = waiting.output_message.tool_calls[0].call_id
    with pytest.raises(FailedPreconditionError, match="other content"):
        await mesh.client.agents.resume_turn(turn.turn_id, [result(call_id, "sunny"), result(call_id, "rain")])
    await mesh.client.agents.resume_turn(turn.turn_id, [result(call_id, "sunny"), result(call_id, "sunny")])
    events = await mesh.watch(turn.turn_id, waiting.last_sequence)
    assert len(events[-1].turn_complete.turn.steps[1].tool_execution.tool_responses) == 1


async def test_results_for_a_turn_that_does_not_wait_are_refused(mesh: Mesh) -> None:
    ended = await mesh.run("hi")
    with pytest.raises(FailedPreconditionError, match="it is completed"):
        await mesh.answer(ended.turn_id, x="y")
    running = await mesh.start("hang")
    await until_event(mesh, running.turn_id, "step_progress")
    with pytest.raises(FailedPreconditionError, match="it is running"):
        await mesh.answer(running.turn_id, x="y")
    await mesh.client.agents.cancel_turn(running.turn_id)


async def test_twenty_answers_at_once_resume_once(mesh: Mesh) -> None:
    turn = await mesh.start("weather", client_tools=TOOLS)
    waiting = (await mesh.watch(turn.turn_id))[-1].turn_awaiting_input.turn
    call_id = waiting.output_message.tool_calls[0].call_id
    await asyncio.gather(*[mesh.answer(turn.turn_id, **{call_id: "sunny"}) for _ in range(20)])
    events = await mesh.watch(turn.turn_id, waiting.last_sequence)
    check_dense(events, first=waiting.last_sequence + 1)
    assert len(events[-1].turn_complete.turn.steps) == 3


async def test_calls_of_unknown_tools_are_answered_by_the_service(mesh: Mesh) -> None:
    turn = await mesh.start("unknown", client_tools=TOOLS)
    waiting = (await mesh.watch(turn.turn_id))[-1].turn_awaiting_input.turn
    assert [call.tool_name for call in waiting.output_message.tool_calls] == ["get_weather"]
    await mesh.answer(turn.turn_id, **{waiting.output_message.tool_calls[0].call_id: "sunny"})
    done = (await mesh.watch(turn.turn_id, waiting.last_sequence))[-1].turn_complete.turn
    responses = done.steps[1].tool_execution.tool_responses
    assert [response.tool_name for response in responses] == ["fly", "get_weather"]
    assert text_in(responses[0].content) == "There is no tool 'fly'; the tools are: get_time, get_weather."


async def test_a_turn_with_unknown_tools_only_does_not_wait(mesh: Mesh) -> None:
    turn = await mesh.run("lost", client_tools=TOOLS)
    assert turn.status == v1.TURN_STATUS_COMPLETED
    assert "There is no tool 'fly'" in text_in(turn.output_message.content)


async def test_max_infer_iters_ends_a_turn_that_would_call_tools_for_ever(mesh: Mesh) -> None:
    turn = await mesh.start("again", client_tools=TOOLS, max_infer_iters=3)
    sequence = 0
    for step in range(2):
        waiting = (await mesh.watch(turn.turn_id, sequence))[-1].turn_awaiting_input.turn
        sequence = waiting.last_sequence
        await mesh.answer(turn.turn_id, **{waiting.output_message.tool_calls[0].call_id: f"again {step}"})
    done = (await mesh.watch(turn.turn_id, sequence))[-1].turn_complete.turn
    assert sum(step.HasField("inference") for step in done.steps) == 3
    assert not done.output_message.tool_calls, "the last step answers"
    assert text_in(done.output_message.content) == "The tool says: again 1"


async def test_a_model_that_repeats_a_call_three_times_must_answer_without_tools(mesh: Mesh) -> None:
    turn = await mesh.start("again", client_tools=TOOLS)
    sequence = 0
    for _ in range(3):
        waiting = (await mesh.watch(turn.turn_id, sequence))[-1].turn_awaiting_input.turn
        sequence = waiting.last_sequence
        await mesh.answer(turn.turn_id, **{waiting.output_message.tool_calls[0].call_id: "again"})
    done = (await mesh.watch(turn.turn_id, sequence))[-1].turn_complete.turn
    assert sum(step.HasField("inference") for step in done.steps) == 4
    assert not done.output_message.tool_calls
    assert text_in(done.output_message.content)


async def test_a_required_choice_holds_for_the_first_step_only(mesh: Mesh) -> None:
    turn = await mesh.start("weather", client_tools=TOOLS, tool_config=v1.ToolConfig(tool_choice="required"))
    waiting = (await mesh.watch(turn.turn_id))[-1].turn_awaiting_input.turn
    await mesh.answer(turn.turn_id, **{waiting.output_message.tool_calls[0].call_id: "sunny"})
    assert kinds(await mesh.watch(turn.turn_id, waiting.last_sequence))[-1] == "turn_complete"


async def test_a_turns_tool_config_replaces_the_agents(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session(client_tools=TOOLS)
    config = v1.ToolConfig(tool_choice="none")
    turn = await mesh.client.agents.create_turn(agent_id, session_id, [user("weather")], tool_config=config)
    assert kinds(await mesh.watch(turn.turn_id))[-1] == "turn_complete"


async def test_an_unknown_model_fails_the_turn_with_its_reason(mesh: Mesh) -> None:
    turn = await mesh.start("hi", model="nosuch")
    events = await mesh.watch(turn.turn_id)
    check_dense(events)
    failed = events[-1].turn_failed.turn
    assert failed.status == v1.TURN_STATUS_FAILED
    assert failed.error.reason == v1.ERROR_REASON_MODEL_NOT_FOUND
    assert "nosuch" in failed.error.message
    assert failed == await mesh.client.agents.get_turn(turn.turn_id)


async def test_inference_that_keeps_breaking_fails_the_turn_and_keeps_the_reason(mesh: Mesh) -> None:
    turn = await mesh.start("break")
    events = await mesh.watch(turn.turn_id)
    check_dense(events)
    assert [event.step_restarted.attempt for event in events if event.HasField("step_restarted")] == [2]
    assert text_of(events) == "half an"
    failed = await mesh.client.agents.get_turn(turn.turn_id)
    assert events[-1].turn_failed.turn == failed
    assert failed.error.message == "the script breaks here"
    assert failed.HasField("completed_at")
    assert not failed.HasField("output_message")


async def test_inference_that_comes_back_gives_a_whole_answer(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, inference_attempts=100) as mesh:
        turn = await mesh.start("hello there")
        await until_event(mesh, turn.turn_id, "step_restarted")
        async with running_mesh(tmp_path, "inference"):
            events = await mesh.watch(turn.turn_id)
            check_dense(events)
            assert kinds(events)[-1] == "turn_complete"
            assert text_of(events) == "hello there"
            attempts = [event.step_restarted.attempt for event in events if event.HasField("step_restarted")]
            assert attempts == list(range(2, 2 + len(attempts)))
            assert events[-1].turn_complete.turn.usage.prompt_tokens == 2


async def test_a_turn_outlives_the_deadline_of_the_call_that_created_it(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    text = "word " * 600 + "end"  # 1.2 seconds at least
    request = v1.CreateTurnRequest(agent_id=agent_id, session_id=session_id, messages=[user(f"slow {text}")])
    turn_id = (await unary(mesh.stub.CreateTurn(request, timeout=1.0))).turn.turn_id
    events = await mesh.watch(turn_id)
    assert kinds(events)[-1] == "turn_complete"
    assert text_of(events) == text


async def test_a_create_call_that_is_given_up_leaves_no_turn_that_never_runs(mesh: Mesh) -> None:
    for _ in range(20):
        agent_id, session_id = await mesh.session()
        request = v1.CreateTurnRequest(
            agent_id=agent_id, session_id=session_id, messages=[user("hi")], request_id=f"given-up-{session_id}"
        )
        call = mesh.stub.CreateTurn(request)
        await asyncio.sleep(0)
        call.cancel()
        turn = (await unary(mesh.stub.CreateTurn(request))).turn
        assert kinds(await mesh.watch(turn.turn_id))[-1] == "turn_complete"


async def test_logs_of_ended_turns_are_freed(tmp_path: Path, inference: str) -> None:
    async with running_mesh(tmp_path, inference=inference) as mesh:
        turn = await mesh.start("weather", client_tools=TOOLS)
        await mesh.watch(turn.turn_id)
        await until(lambda: not mesh.node._runner._running)
        await mesh.run("hi")
        await until(lambda: not mesh.node._runner._running)
        assert not mesh.node._runner._notices._changes
        assert not mesh.node._runner._changing


async def test_an_ended_process_leaves_no_task_behind(tmp_path: Path, inference: str) -> None:
    before = len(asyncio.all_tasks())
    async with running_mesh(tmp_path, inference=inference) as mesh:
        turn = await mesh.start("hang")
        await until_event(mesh, turn.turn_id, "step_progress")
    await until(lambda: len(asyncio.all_tasks()) <= before)

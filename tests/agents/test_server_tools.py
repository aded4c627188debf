"""Tools that the stack runs inside turns: order, bounds, approvals, faults, questions, and what the ledger says."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from llamastack import v1
from stack_client.content import struct, text_of
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from tests.agents.mesh import TOOLS, Mesh, check_dense, kinds, result, running_mesh, until

GROUP = [v1.AgentToolGroup(name="test")]
APPROVE, DENY, ANSWER = v1.TOOL_DECISION_KIND_APPROVE, v1.TOOL_DECISION_KIND_DENY, v1.TOOL_DECISION_KIND_ANSWER
ALWAYS = [v1.ApprovalRule(tool="*", approval=v1.TOOL_APPROVAL_ALWAYS)]


@pytest.fixture(scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory, inference: str) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path_factory.mktemp("tools"), "agents", "tools", inference=inference) as running:
        yield running


def tool_steps(turn: v1.Turn) -> list[v1.ToolExecutionStep]:
    return [step.tool_execution for step in turn.steps if step.WhichOneof("details") == "tool_execution"]


def answer_of(turn: v1.Turn) -> str:
    return text_of(turn.output_message.content)


async def decide(mesh: Mesh, turn_id: str, *decisions: v1.ToolDecision) -> v1.Turn:
    return await mesh.client.agents.resume_turn(turn_id, [], decisions=decisions)


async def waiting(mesh: Mesh, text: str, **settings: Any) -> v1.Turn:
    turn = await mesh.start(text, toolgroups=GROUP, **settings)
    last = (await mesh.watch(turn.turn_id))[-1]
    assert last.WhichOneof("event") == "turn_awaiting_input"
    return last.turn_awaiting_input.turn


async def ended(mesh: Mesh, turn: v1.Turn) -> v1.Turn:
    events = await mesh.watch(turn.turn_id, turn.last_sequence)
    assert kinds(events)[-1] in {"turn_complete", "turn_failed", "turn_cancelled"}, kinds(events)
    return await mesh.client.agents.get_turn(turn.turn_id)


async def test_a_server_tool_runs_without_the_caller_and_the_ledger_tells_it(mesh: Mesh) -> None:
    before = mesh.tools.count("pay")
    turn = await mesh.run("use pay", toolgroups=GROUP)
    assert turn.status == v1.TURN_STATUS_COMPLETED
    assert answer_of(turn) == 'The tool says: pay {"n": 1}'
    (step,) = tool_steps(turn)
    (record,) = step.records
    assert (record.tool, record.state, record.attempts) == ("test/pay", v1.TOOL_CALL_STATE_DONE, 1)
    assert record.effect == v1.TOOL_EFFECT_WRITE
    assert record.idempotency_key
    assert mesh.tools.count("pay") == before + 1
    seen = mesh.tools.seen[-1]
    assert (seen.session_id, seen.call_id) == (turn.session_id, record.call_id)


async def test_two_calls_are_in_flight_together_and_one_failure_ends_no_other(mesh: Mesh) -> None:
    turn = await mesh.run("three things", toolgroups=GROUP)
    (step,) = tool_steps(turn)
    assert [response.tool_name for response in step.tool_responses] == ["barrier", "fails", "barrier"]
    assert [record.state for record in step.records] == [
        v1.TOOL_CALL_STATE_DONE,
        v1.TOOL_CALL_STATE_FAILED,
        v1.TOOL_CALL_STATE_DONE,
    ]
    assert text_of(step.tool_responses[1].content) == "it broke"
    assert step.tool_responses[1].metadata["error_code"] == 7
    assert turn.status == v1.TURN_STATUS_COMPLETED


async def test_no_more_tools_than_allowed_run_side_by_side(mesh: Mesh) -> None:
    mesh.tools.together = 0
    turn = await mesh.run("pay twice", toolgroups=GROUP, max_parallel_tools=1)
    assert turn.status == v1.TURN_STATUS_COMPLETED
    assert mesh.tools.together == 1


async def test_progress_output_and_files_of_a_tool_reach_the_turn(mesh: Mesh) -> None:
    turn = await mesh.start("use big", toolgroups=GROUP)
    events = await mesh.watch(turn.turn_id)
    check_dense(events)
    told = [e.step_progress.tool_progress for e in events if e.step_progress.HasField("tool_progress")]
    assert [(one.fraction, one.message) for one in told if one.HasField("fraction")] == [(0.5, "half")]
    assert [(one.stream, one.text) for one in told if one.text] == [("stdout", "line\n")]
    assert [text_of(file.content.content) for file in events[-1].turn_complete.turn.output_attachments] == ["made"]


async def test_several_steps_of_tools_run_in_one_turn(mesh: Mesh) -> None:
    turn = await mesh.run("chain", toolgroups=GROUP)
    assert [step.tool_calls[0].tool_name for step in tool_steps(turn)] == ["look", "put", "pay"]
    assert turn.status == v1.TURN_STATUS_COMPLETED


async def test_one_tool_of_a_group_can_be_chosen_and_the_others_are_unknown(mesh: Mesh) -> None:
    turn = await mesh.run("use pay", toolgroups=[v1.AgentToolGroup(name="test/look")])
    (step,) = tool_steps(turn)
    assert text_of(step.tool_responses[0].content) == "There is no tool 'pay'; the tools are: look."


async def test_arguments_of_the_agent_travel_beside_those_of_the_model(mesh: Mesh) -> None:
    groups = [v1.AgentToolGroup(name="test", args=struct({"region": "eu"}))]
    await mesh.run("use look", toolgroups=groups)
    assert dict(mesh.tools.seen[-1].args.items()) == {"region": "eu"}


async def test_a_group_or_tool_that_does_not_exist_is_refused_when_the_agent_is_made(mesh: Mesh) -> None:
    for name, known in (("nope", "there are: test"), ("test/nope", "its tools are")):
        with pytest.raises(InvalidArgumentError, match=known) as caught:
            await mesh.agent(toolgroups=[v1.AgentToolGroup(name=name)])
        assert caught.value.field == "agent_config.toolgroups[0].name"


async def test_n_turns_of_a_session_list_the_tools_once_each(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session(toolgroups=GROUP)
    listed = mesh.tools.listed
    for _ in range(3):
        turn = await mesh.ask(agent_id, session_id, "chain")
        await mesh.watch(turn.turn_id)
    assert mesh.tools.listed == listed + 3


async def test_an_approved_call_runs_and_says_who_allowed_it(mesh: Mesh) -> None:
    turn = await waiting(mesh, "use pay", approvals=ALWAYS)
    (one,) = turn.pending
    assert (one.kind, one.tool, one.effect) == (v1.PENDING_KIND_APPROVAL, "test/pay", v1.TOOL_EFFECT_WRITE)
    assert not turn.output_message.tool_calls, "nothing for the caller to run"
    before = mesh.tools.count("pay")
    await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=one.call.call_id, kind=APPROVE, decided_by="ada"))
    done = await ended(mesh, turn)
    assert mesh.tools.count("pay") == before + 1
    assert mesh.tools.seen[-1].approved_by == "ada"
    (approval,) = [step.approval for step in done.steps if step.step_type == v1.STEP_TYPE_APPROVAL]
    assert [(made.kind, made.decided_by) for made in approval.decisions] == [(APPROVE, "ada")]
    assert not done.pending
    assert done.waited_seconds > 0


async def test_a_denied_call_does_not_run_and_the_model_reads_why(mesh: Mesh) -> None:
    turn = await waiting(mesh, "use pay", approvals=ALWAYS)
    before = mesh.tools.count("pay")
    call_id = turn.pending[0].call.call_id
    await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=call_id, kind=DENY, reason="too much"))
    done = await ended(mesh, turn)
    assert "did not allow this call: too much" in answer_of(done)
    assert mesh.tools.count("pay") == before


async def test_edited_arguments_are_what_runs(mesh: Mesh) -> None:
    turn = await waiting(mesh, "use pay", approvals=ALWAYS)
    call_id = turn.pending[0].call.call_id
    for wrong in ("{", "[1]"):
        with pytest.raises(InvalidArgumentError):
            await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=call_id, kind=APPROVE, arguments_json=wrong))
    await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=call_id, kind=APPROVE, arguments_json='{"n": 5}'))
    assert answer_of(await ended(mesh, turn)) == 'The tool says: pay {"n": 5}'


async def test_parallel_approvals_are_independent_and_settled_ones_do_not_fire_again(mesh: Mesh) -> None:
    turn = await waiting(mesh, "pay twice", approvals=ALWAYS)
    first, second = [one.call.call_id for one in turn.pending]
    before = mesh.tools.count("pay")
    left = await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=second, kind=DENY))
    assert left.status == v1.TURN_STATUS_AWAITING_INPUT
    assert [one.call.call_id for one in left.pending] == [first]
    again = await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=second, kind=DENY))
    assert [one.call.call_id for one in again.pending] == [first], "a repeat changes nothing"
    with pytest.raises(FailedPreconditionError, match="any more"):
        await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=second, kind=APPROVE))
    await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=first, kind=APPROVE))
    done = await ended(mesh, turn)
    assert mesh.tools.count("pay") == before + 1
    with pytest.raises(FailedPreconditionError):
        await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=first, kind=DENY))
    assert (await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=first, kind=APPROVE))).status == done.status


async def test_forged_call_ids_are_refused(mesh: Mesh) -> None:
    turn = await waiting(mesh, "use pay", approvals=ALWAYS)
    with pytest.raises(NotFoundError, match="it waits for"):
        await decide(mesh, turn.turn_id, v1.ToolDecision(call_id="call_forged", kind=APPROVE))
    with pytest.raises(FailedPreconditionError, match="does not wait for tool results"):
        await mesh.answer(turn.turn_id, **{turn.pending[0].call.call_id: "paid already"})
    with pytest.raises(InvalidArgumentError, match="another kind"):
        await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=turn.pending[0].call.call_id, kind=ANSWER))
    await mesh.client.agents.cancel_turn(turn.turn_id)


async def test_rules_decide_by_tool_effect_and_arguments(mesh: Mesh) -> None:
    small = struct({"type": "object", "properties": {"n": {"maximum": 1}}, "required": ["n"]})
    rules = [
        v1.ApprovalRule(tool="test/pay", approval=v1.TOOL_APPROVAL_NEVER, arguments_schema=small),
        v1.ApprovalRule(tool="test", approval=v1.TOOL_APPROVAL_WRITES),
    ]
    assert (await mesh.run("use pay", toolgroups=GROUP, approvals=rules)).status == v1.TURN_STATUS_COMPLETED
    assert (await mesh.run("use look", toolgroups=GROUP, approvals=rules)).status == v1.TURN_STATUS_COMPLETED
    turn = await waiting(mesh, "pay twice", approvals=rules)
    assert [one.call.arguments_json for one in turn.pending] == ['{"n": 2}']
    await mesh.client.agents.cancel_turn(turn.turn_id)


async def test_what_the_operator_demands_of_a_tool_cannot_be_waived_by_an_agent(mesh: Mesh) -> None:
    never = [v1.ApprovalRule(tool="*", approval=v1.TOOL_APPROVAL_NEVER)]
    turn = await waiting(mesh, "use wipe", approvals=never)
    assert turn.pending[0].tool == "test/wipe"
    await mesh.client.agents.cancel_turn(turn.turn_id)
    assert mesh.tools.count("wipe") == 0


async def test_an_approval_that_expires_denies_the_call_and_the_turn_goes_on_by_itself(
    tmp_path: Any, inference: str
) -> None:
    rules = [v1.ApprovalRule(tool="*", approval=v1.TOOL_APPROVAL_ALWAYS, expires_seconds=0.2)]
    async with running_mesh(tmp_path, "agents", "tools", inference=inference, lease_seconds=0.6) as mesh:
        turn = await waiting(mesh, "use pay", approvals=rules)
        assert turn.pending[0].HasField("expires_at")

        async def over() -> bool:
            return (await mesh.client.agents.get_turn(turn.turn_id)).status == v1.TURN_STATUS_COMPLETED

        await until(over)
        done = await mesh.client.agents.get_turn(turn.turn_id)
        assert "nobody decided in time" in answer_of(done)
        assert mesh.tools.count("pay") == 0


async def test_server_and_client_tools_of_one_answer_wait_only_for_the_client(mesh: Mesh) -> None:
    before = mesh.tools.count("pay")
    turn = await waiting(mesh, "mixed", client_tools=TOOLS)
    assert mesh.tools.count("pay") == before + 1, "the stack's own tools do not wait"
    (one,) = turn.pending
    assert (one.kind, one.call.tool_name) == (v1.PENDING_KIND_CLIENT_TOOL, "get_weather")
    assert [call.tool_name for call in turn.output_message.tool_calls] == ["get_weather"]
    await mesh.client.agents.resume_turn(turn.turn_id, [result(one.call.call_id, "sunny")])
    (step,) = tool_steps(await ended(mesh, turn))
    assert [response.tool_name for response in step.tool_responses] == ["pay", "get_weather", "look"]
    assert mesh.tools.count("pay") == before + 1


async def test_a_tool_that_asks_a_person_goes_on_with_the_answer(mesh: Mesh) -> None:
    turn = await waiting(mesh, "use ask")
    (one,) = turn.pending
    assert (one.kind, one.input.message) == (v1.PENDING_KIND_INPUT, "Sure?")
    wrong = v1.ToolInputResponse(action="perhaps")
    with pytest.raises(InvalidArgumentError, match="accept, decline, cancel"):
        await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=one.call.call_id, kind=ANSWER, input=wrong))
    said = v1.ToolInputResponse(action="accept", content=struct({"name": "Ada"}))
    await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=one.call.call_id, kind=ANSWER, input=said))
    assert answer_of(await ended(mesh, turn)) == "The tool says: accept {'name': 'Ada'}"
    assert mesh.tools.seen[-1].input_response.state == "s1"
    assert mesh.tools.seen[-1].idempotency_key == mesh.tools.seen[-2].idempotency_key


async def test_cancelling_a_turn_cancels_its_tools(mesh: Mesh) -> None:
    turn = await mesh.start("use stuck", toolgroups=GROUP)
    await until(lambda: mesh.tools.running > 0)
    done = await mesh.client.agents.cancel_turn(turn.turn_id)
    assert done.status == v1.TURN_STATUS_CANCELLED
    await until(lambda: mesh.tools.running == 0)


async def test_a_stuck_tool_ends_with_the_time_of_its_turn_in_a_typed_failure(mesh: Mesh) -> None:
    turn = await mesh.run("use stuck", toolgroups=GROUP, budget=v1.TurnBudget(max_seconds=0.4))
    assert turn.status == v1.TURN_STATUS_FAILED
    assert (v1.ErrorReason.Name(turn.error.reason), "max_seconds" in turn.error.message) == (
        "ERROR_REASON_QUOTA_EXCEEDED",
        True,
    )
    await until(lambda: mesh.tools.running == 0)


async def test_a_turn_stops_when_its_tokens_or_its_money_are_spent(mesh: Mesh) -> None:
    tokens = await mesh.run("chain", toolgroups=GROUP, budget=v1.TurnBudget(max_total_tokens=1))
    assert tokens.status == v1.TURN_STATUS_FAILED
    assert "max_total_tokens" in tokens.error.message
    assert len(tool_steps(tokens)) == 1, "what was begun is done, nothing more"
    priced = v1.TurnBudget(max_cost=0.000001, prompt_token_price=10.0, completion_token_price=10.0)
    money = await mesh.run("chain", toolgroups=GROUP, budget=priced)
    assert money.status == v1.TURN_STATUS_FAILED
    assert money.cost > 0
    assert "max_cost" in money.error.message


async def test_a_tools_service_that_is_away_ends_the_turn_in_a_typed_failure(tmp_path: Any, inference: str) -> None:
    async with running_mesh(tmp_path, "agents", inference=inference, tools=f"unix:{tmp_path}/none.sock") as mesh:
        turn = await mesh.run("use pay", toolgroups=GROUP)
        assert turn.status == v1.TURN_STATUS_FAILED
        assert turn.error.reason == v1.ERROR_REASON_UNAVAILABLE


async def test_a_tool_whose_own_server_is_away_fails_alone(mesh: Mesh) -> None:
    before = mesh.tools.count("pay")
    turn = await mesh.run("one away", toolgroups=GROUP)
    assert turn.status == v1.TURN_STATUS_COMPLETED
    (step,) = tool_steps(turn)
    assert text_of(step.tool_responses[0].content) == "the tool's own server does not answer"
    assert step.tool_responses[0].metadata["error_code"] == 503
    assert mesh.tools.count("pay") == before + 1


async def test_an_image_of_a_tool_does_not_end_the_turn_of_a_model_that_reads_text_only(mesh: Mesh) -> None:
    turn = await mesh.run("use draw", toolgroups=GROUP)
    assert turn.status == v1.TURN_STATUS_COMPLETED
    assert "cannot see" in answer_of(turn)
    assert [file.mime_type for file in turn.output_attachments] == ["image/png"]
    (step,) = tool_steps(turn)
    assert step.tool_responses[0].content.items[0].image.data == b"\x89PNG...", "the log keeps it"

"""Agents that call each other, dialogs that are handed over, versions, and history that is summarised."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.content import text_of
from stack_client.errors import ConflictError, InvalidArgumentError, NotFoundError
from tests.agents.mesh import TOOLS, Mesh, check_dense, kinds, running_mesh, until
from tests.agents.test_server_tools import ALWAYS, APPROVE, GROUP, answer_of, decide, ended, tool_steps


@pytest.fixture(scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory, inference: str) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path_factory.mktemp("agents"), "agents", "tools", inference=inference) as running:
        yield running


def helper(agent_id: str, **settings: Any) -> list[v1.AgentTool]:
    return [v1.AgentTool(**{"name": "helper", "description": "Helps.", "agent_id": agent_id, **settings})]


async def test_an_agent_answers_the_call_of_another(mesh: Mesh) -> None:
    inner = await mesh.agent(toolgroups=GROUP)
    turn = await mesh.start("tell helper", agent_tools=helper(inner))
    events = await mesh.watch(turn.turn_id)
    check_dense(events)
    done = await mesh.client.agents.get_turn(turn.turn_id)
    (step,) = tool_steps(done)
    assert text_of(step.tool_responses[0].content) == 'The tool says: pay {"n": 1}'
    nested = await mesh.client.agents.get_turn(step.records[0].agent_turn_id)
    assert (nested.parent_turn_id, nested.agent_id) == (turn.turn_id, inner)
    told = "".join(event.step_progress.tool_progress.text for event in events)
    assert told == 'The tool says: pay {"n": 1}', "what it says is shown while it says it"


async def test_what_a_called_agent_waits_for_is_asked_of_the_first_caller(mesh: Mesh) -> None:
    inner = await mesh.agent(toolgroups=GROUP, approvals=ALWAYS)
    turn = await mesh.start("tell helper", agent_tools=helper(inner))
    waiting = (await mesh.watch(turn.turn_id))[-1].turn_awaiting_input.turn
    (one,) = waiting.pending
    assert (one.kind, one.tool) == (v1.PENDING_KIND_APPROVAL, "test/pay")
    before = mesh.tools.count("pay")
    await decide(mesh, turn.turn_id, v1.ToolDecision(call_id=one.call.call_id, kind=APPROVE))
    done = await ended(mesh, waiting)
    assert done.status == v1.TURN_STATUS_COMPLETED
    assert mesh.tools.count("pay") == before + 1


async def test_client_tools_of_a_called_agent_are_run_by_the_first_caller(mesh: Mesh) -> None:
    inner = await mesh.agent(client_tools=TOOLS)
    turn = await mesh.start("ask helper now", agent_tools=helper(inner))
    waiting = (await mesh.watch(turn.turn_id))[-1].turn_awaiting_input.turn
    (call,) = waiting.output_message.tool_calls
    assert call.tool_name == "get_weather"
    await mesh.answer(turn.turn_id, **{call.call_id: "sunny"})
    done = await ended(mesh, waiting)
    assert answer_of(done) == "The tool says: The tool says: sunny"


async def test_agents_that_call_each_other_for_ever_are_stopped(mesh: Mesh) -> None:
    agent_id = await mesh.agent(client_tools=TOOLS)
    config = v1.AgentConfig(model="scripted", agent_tools=helper(agent_id))
    await unary(mesh.stub.UpdateAgent(v1.UpdateAgentRequest(agent_id=agent_id, agent_config=config)))
    session_id = await mesh.client.agents.create_session(agent_id)
    turn = await mesh.ask(agent_id, session_id, "loop")
    await mesh.watch(turn.turn_id)
    done = await mesh.client.agents.get_turn(turn.turn_id)
    assert done.status == v1.TURN_STATUS_COMPLETED
    assert "more than 8 deep" in answer_of(done)


async def test_cancelling_a_turn_cancels_the_agents_it_called(mesh: Mesh) -> None:
    inner = await mesh.agent(toolgroups=GROUP, approvals=ALWAYS)
    turn = await mesh.start("tell helper", agent_tools=helper(inner))
    await mesh.watch(turn.turn_id)
    await mesh.client.agents.cancel_turn(turn.turn_id)
    (step,) = tool_steps(await mesh.client.agents.get_turn(turn.turn_id))
    nested = await mesh.client.agents.get_turn(step.records[0].agent_turn_id)
    assert nested.status == v1.TURN_STATUS_CANCELLED


async def test_an_agent_that_does_not_exist_is_refused_as_a_tool(mesh: Mesh) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await mesh.agent(agent_tools=helper("nobody"))
    assert caught.value.field == "agent_config.agent_tools[0].agent_id"


async def test_a_dialog_that_is_handed_over_stays_with_the_other_agent(mesh: Mesh) -> None:
    heir = await mesh.agent(client_tools=TOOLS, instructions="I am the heir.")
    tools = [v1.AgentTool(name="transfer", agent_id=heir, handoff=True)]
    agent_id, session_id = await mesh.session(agent_tools=tools)
    turn = await mesh.ask(agent_id, session_id, "hand over please")
    await mesh.watch(turn.turn_id)
    done = await mesh.client.agents.get_turn(turn.turn_id)
    assert (done.status, done.agent_id) == (v1.TURN_STATUS_COMPLETED, heir)
    assert answer_of(done) == "The tool says: The dialog is handed over to transfer."
    later = await mesh.ask(agent_id, session_id, "weather")
    events = await mesh.watch(later.turn_id)
    assert kinds(events)[-1] == "turn_awaiting_input", "the heir has that tool"
    assert events[-1].turn_awaiting_input.turn.agent_id == heir
    await mesh.client.agents.cancel_turn(later.turn_id)


async def test_a_new_version_holds_for_new_turns_and_old_ones_keep_theirs(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session(client_tools=TOOLS)
    turn = await mesh.ask(agent_id, session_id, "weather")
    waiting = (await mesh.watch(turn.turn_id))[-1].turn_awaiting_input.turn
    update = v1.UpdateAgentRequest(agent_id=agent_id, agent_config=v1.AgentConfig(model="scripted", name="new"))
    changed = await unary(mesh.stub.UpdateAgent(update))
    assert changed.agent.version == 2
    assert (await unary(mesh.stub.UpdateAgent(update))).agent.version == 2, "the same again is no new version"
    await mesh.answer(turn.turn_id, **{waiting.output_message.tool_calls[0].call_id: "sunny"})
    done = await ended(mesh, waiting)
    assert done.agent_version == 1
    later = await mesh.ask(agent_id, session_id, "weather")
    events = await mesh.watch(later.turn_id)
    assert kinds(events)[-1] == "turn_complete", "the new version has no tools"
    old = await unary(mesh.stub.GetAgent(v1.GetAgentRequest(agent_id=agent_id, version=1)))
    assert len(old.agent.agent_config.client_tools) == 2
    with pytest.raises(NotFoundError, match="no version 3"):
        await unary(mesh.stub.GetAgent(v1.GetAgentRequest(agent_id=agent_id, version=3)))
    update.expected_version = 1
    update.agent_config.name = "newer"
    with pytest.raises(ConflictError, match="at version 2"):
        await unary(mesh.stub.UpdateAgent(update))


async def test_history_that_is_too_long_is_summarised_and_the_log_keeps_all_of_it(mesh: Mesh) -> None:
    compaction = v1.CompactionConfig(max_prompt_tokens=256)
    agent_id, session_id = await mesh.session(compaction=compaction)
    long = "word " * 200
    for text in (f"one {long}", f"two {long}", "three"):
        turn = await mesh.ask(agent_id, session_id, text)
        await mesh.watch(turn.turn_id)
    session = await mesh.client.agents.get_session(session_id)
    assert [turn.status for turn in session.turns] == [v1.TURN_STATUS_COMPLETED] * 3, session.turns[0].error
    compactions = [
        [step.compaction for step in turn.steps if step.step_type == v1.STEP_TYPE_COMPACTION] for turn in session.turns
    ]
    assert not compactions[0]
    last = [one for ones in compactions for one in ones][-1]
    assert last.summary
    assert last.through_turn_id in {turn.turn_id for turn in session.turns}
    assert answer_of(session.turns[-1]) == "three"
    fork = await unary(mesh.stub.ForkSession(v1.ForkSessionRequest(session_id=session_id)))
    copied = await mesh.client.agents.get_session(fork.session_id)
    covered = [s.compaction.through_turn_id for t in copied.turns for s in t.steps if s.HasField("compaction")]
    assert covered
    assert set(covered) <= {turn.turn_id for turn in copied.turns}


async def test_tenants_do_not_see_each_others_agents_sessions_and_turns(mesh: Mesh) -> None:
    mine = (("x-tenant", "mine"),)
    other = (("x-tenant", "other"),)
    config = v1.AgentConfig(model="scripted")
    made = await mesh.stub.CreateAgent(v1.CreateAgentRequest(agent_config=config, request_id="r"), metadata=mine)
    again = await mesh.stub.CreateAgent(v1.CreateAgentRequest(agent_config=config, request_id="r"), metadata=other)
    assert made.agent_id != again.agent_id, "request ids are the tenant's own"
    session = await mesh.stub.CreateSession(v1.CreateSessionRequest(agent_id=made.agent_id), metadata=mine)
    asked = v1.TurnInputMessage(user=v1.UserMessage())
    asked.user.content.items.add(text="hi")
    turn = (
        await mesh.stub.CreateTurn(
            v1.CreateTurnRequest(agent_id=made.agent_id, session_id=session.session_id, messages=[asked]), metadata=mine
        )
    ).turn

    async def done() -> bool:
        found = await mesh.stub.GetTurn(v1.GetTurnRequest(turn_id=turn.turn_id), metadata=mine)
        return bool(found.turn.status == v1.TURN_STATUS_COMPLETED)

    await until(done)
    calls: list[Callable[[], Any]] = [
        lambda: mesh.stub.GetAgent(v1.GetAgentRequest(agent_id=made.agent_id), metadata=other),
        lambda: mesh.stub.DeleteAgent(v1.DeleteAgentRequest(agent_id=made.agent_id), metadata=other),
        lambda: mesh.stub.CreateSession(v1.CreateSessionRequest(agent_id=made.agent_id), metadata=other),
        lambda: mesh.stub.GetSession(v1.GetSessionRequest(session_id=session.session_id), metadata=other),
        lambda: mesh.stub.ForkSession(v1.ForkSessionRequest(session_id=session.session_id), metadata=other),
        lambda: mesh.stub.ListTurns(v1.ListTurnsRequest(session_id=session.session_id), metadata=other),
        lambda: mesh.stub.GetTurn(v1.GetTurnRequest(turn_id=turn.turn_id), metadata=other),
        lambda: mesh.stub.CancelTurn(v1.CancelTurnRequest(turn_id=turn.turn_id), metadata=other),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            await unary(call())
    listed = await mesh.stub.ListAgents(v1.ListAgentsRequest(), metadata=other)
    assert made.agent_id not in {agent.agent_id for agent in listed.data}

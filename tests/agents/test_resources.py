"""Agents and sessions: creating, reading, listing, deleting, forking; and what is refused."""

import asyncio
import contextlib
import uuid
from typing import Any

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.content import content
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, StackError
from tests.agents.mesh import TOOLS, Mesh, kinds, result, user


async def test_an_agent_comes_back_as_it_was_given(mesh: Mesh) -> None:
    config = v1.AgentConfig(
        model="scripted", instructions="Be brief.", name="Ann", client_tools=TOOLS, max_infer_iters=3
    )
    agent_id = await mesh.client.agents.create(config)
    agent = await mesh.client.agents.get(agent_id)
    assert (agent.agent_id, agent.agent_config) == (agent_id, config)
    assert agent.created_at.seconds


async def test_agents_are_listed_newest_first_in_pages(mesh: Mesh) -> None:
    ids = [await mesh.agent(name=str(number)) for number in range(5)]
    listed: list[str] = []
    token = ""
    while len(listed) < 5:
        page = await unary(mesh.stub.ListAgents(v1.ListAgentsRequest(page_size=2, page_token=token)))
        assert len(page.data) <= 2
        listed += [agent.agent_id for agent in page.data]
        token = page.next_page_token
    assert listed[:5] == ids[::-1]
    everything = [agent.agent_id for agent in await mesh.client.agents.list()]
    assert everything[:5] == ids[::-1]


async def test_sessions_are_listed_newest_first_in_pages_without_turns(mesh: Mesh) -> None:
    agent_id = await mesh.agent()
    ids = [await mesh.client.agents.create_session(agent_id, f"s{number}") for number in range(3)]
    turn = await mesh.ask(agent_id, ids[0], "hi")
    await mesh.watch(turn.turn_id)
    first = await unary(mesh.stub.ListSessions(v1.ListSessionsRequest(agent_id=agent_id, page_size=2)))
    assert [session.session_id for session in first.data] == [ids[2], ids[1]]
    request = v1.ListSessionsRequest(agent_id=agent_id, page_size=2, page_token=first.next_page_token)
    second = await unary(mesh.stub.ListSessions(request))
    assert [session.session_id for session in second.data] == [ids[0]]
    assert not second.next_page_token
    assert not second.data[0].turns


async def test_turns_are_listed_oldest_first_in_pages(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    ids = []
    for text in ("one", "two", "three"):
        ids.append((await mesh.ask(agent_id, session_id, text)).turn_id)
        await mesh.watch(ids[-1])
    first = await unary(mesh.stub.ListTurns(v1.ListTurnsRequest(session_id=session_id, page_size=2)))
    assert [turn.turn_id for turn in first.data] == ids[:2]
    assert first.data[0].steps
    request = v1.ListTurnsRequest(session_id=session_id, page_size=2, page_token=first.next_page_token)
    second = await unary(mesh.stub.ListTurns(request))
    assert [turn.turn_id for turn in second.data] == ids[2:]
    assert not second.next_page_token


async def test_page_tokens_of_other_lists_and_bad_sizes_are_refused(mesh: Mesh) -> None:
    agent_id = await mesh.agent()
    await mesh.agent()
    token = (await unary(mesh.stub.ListAgents(v1.ListAgentsRequest(page_size=1)))).next_page_token
    assert token
    with pytest.raises(InvalidArgumentError) as caught:
        await unary(mesh.stub.ListSessions(v1.ListSessionsRequest(agent_id=agent_id, page_token=token)))
    assert caught.value.reason == "INVALID_PAGE_TOKEN"
    with pytest.raises(InvalidArgumentError, match="page_size is 1001"):
        await unary(mesh.stub.ListAgents(v1.ListAgentsRequest(page_size=1001)))


async def test_a_session_holds_its_turns_or_those_asked_for(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    turns = []
    for text in ("one", "two"):
        turns.append(await mesh.ask(agent_id, session_id, text))
        await mesh.watch(turns[-1].turn_id)
    session = await mesh.client.agents.get_session(session_id)
    assert (session.session_id, session.session_name, session.agent_id) == (session_id, "test", agent_id)
    assert [turn.turn_id for turn in session.turns] == [turn.turn_id for turn in turns]
    request = v1.GetSessionRequest(session_id=session_id, agent_id=agent_id, turn_ids=[turns[1].turn_id])
    some = await unary(mesh.stub.GetSession(request))
    assert [turn.turn_id for turn in some.session.turns] == [turns[1].turn_id]


async def test_one_step_can_be_read(mesh: Mesh) -> None:
    turn = await mesh.run("hello")
    request = v1.GetStepRequest(turn_id=turn.turn_id, step_id=turn.steps[0].step_id)
    assert (await unary(mesh.stub.GetStep(request))).step == turn.steps[0]


UNKNOWN = str(uuid.uuid4())
NOT_FOUND: list[tuple[str, Any]] = [
    ("GetAgent", v1.GetAgentRequest(agent_id=UNKNOWN)),
    ("DeleteAgent", v1.DeleteAgentRequest(agent_id=UNKNOWN)),
    ("CreateSession", v1.CreateSessionRequest(agent_id=UNKNOWN)),
    ("GetSession", v1.GetSessionRequest(session_id=UNKNOWN)),
    ("ListSessions", v1.ListSessionsRequest(agent_id=UNKNOWN)),
    ("DeleteSession", v1.DeleteSessionRequest(session_id=UNKNOWN)),
    ("ForkSession", v1.ForkSessionRequest(session_id=UNKNOWN)),
    ("CreateTurn", v1.CreateTurnRequest(agent_id=UNKNOWN, session_id=UNKNOWN, messages=[user("hi")])),
    ("ResumeTurn", v1.ResumeTurnRequest(turn_id=UNKNOWN, tool_responses=[result("x", "y")])),
    ("GetTurn", v1.GetTurnRequest(turn_id=UNKNOWN)),
    ("ListTurns", v1.ListTurnsRequest(session_id=UNKNOWN)),
    ("CancelTurn", v1.CancelTurnRequest(turn_id=UNKNOWN)),
    ("GetStep", v1.GetStepRequest(turn_id=UNKNOWN, step_id=UNKNOWN)),
]


@pytest.mark.parametrize(("method", "request_"), NOT_FOUND, ids=[method for method, _ in NOT_FOUND])
async def test_unknown_ids_are_not_found_by_name(mesh: Mesh, method: str, request_: Any) -> None:
    with pytest.raises(NotFoundError, match=UNKNOWN) as caught:
        await unary(getattr(mesh.stub, method)(request_))
    assert caught.value.reason == "NOT_FOUND"


async def test_watching_an_unknown_turn_is_not_found(mesh: Mesh) -> None:
    with pytest.raises(NotFoundError, match=UNKNOWN):
        await mesh.watch(UNKNOWN)


async def test_ids_of_another_parent_are_not_found(mesh: Mesh) -> None:
    _, session_id = await mesh.session()
    turn = await mesh.run("hello")
    wrong: list[Any] = [
        mesh.stub.GetSession(v1.GetSessionRequest(session_id=session_id, agent_id=UNKNOWN)),
        mesh.stub.GetSession(v1.GetSessionRequest(session_id=session_id, turn_ids=[turn.turn_id])),
        mesh.stub.DeleteSession(v1.DeleteSessionRequest(session_id=session_id, agent_id=UNKNOWN)),
        mesh.stub.GetTurn(v1.GetTurnRequest(turn_id=turn.turn_id, session_id=session_id)),
        mesh.stub.GetStep(v1.GetStepRequest(turn_id=turn.turn_id, step_id=UNKNOWN)),
        mesh.stub.ForkSession(v1.ForkSessionRequest(session_id=session_id, at_turn_id=turn.turn_id)),
        mesh.stub.ForkSession(
            v1.ForkSessionRequest(session_id=turn.session_id, at_turn_id=turn.turn_id, at_step_id=UNKNOWN)
        ),
        mesh.stub.CreateTurn(
            v1.CreateTurnRequest(agent_id=await mesh.agent(), session_id=session_id, messages=[user("x")])
        ),
    ]
    for call in wrong:
        with pytest.raises(NotFoundError):
            await unary(call)


REFUSED: list[tuple[v1.AgentConfig, str, str]] = [
    (v1.AgentConfig(), "MISSING_FIELD", "agent_config.model"),
    (v1.AgentConfig(toolgroups=[v1.AgentToolGroup(name="x")]), "UNSUPPORTED", "agent_config.toolgroups[0]"),
    (v1.AgentConfig(max_infer_iters=0), "INVALID_VALUE", "agent_config.max_infer_iters"),
    (v1.AgentConfig(max_infer_iters=101), "INVALID_VALUE", "agent_config.max_infer_iters"),
    (v1.AgentConfig(client_tools=[TOOLS[0], TOOLS[0]]), "INVALID_VALUE", "agent_config.client_tools[1].name"),
    (v1.AgentConfig(client_tools=[v1.ToolDef()]), "MISSING_FIELD", "agent_config.client_tools[0].name"),
    (
        v1.AgentConfig(tool_config=v1.ToolConfig(tool_choice="required")),
        "INVALID_VALUE",
        "agent_config.tool_config.tool_choice",
    ),
]


@pytest.mark.parametrize(("config", "reason", "field"), REFUSED)
async def test_an_agent_that_cannot_be_honoured_is_refused_by_name(
    mesh: Mesh, config: v1.AgentConfig, reason: str, field: str
) -> None:
    asked = v1.AgentConfig(model="" if reason == "MISSING_FIELD" and field.endswith("model") else "scripted")
    asked.MergeFrom(config)
    with pytest.raises(InvalidArgumentError) as caught:
        await mesh.client.agents.create(asked)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert field in caught.value.message


REFUSED_TURNS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "MISSING_FIELD", "messages"),
    ({"messages": [v1.TurnInputMessage()]}, "INVALID_VALUE", "messages[0]"),
    ({"documents": [v1.Document()]}, "MISSING_FIELD", "documents[0].content"),
    ({"toolgroups": [v1.AgentToolGroup(name="x")]}, "UNSUPPORTED", "toolgroups[0]"),
    ({"tool_config": v1.ToolConfig(tool_choice="fly")}, "INVALID_VALUE", "tool_config.tool_choice"),
]


@pytest.mark.parametrize(("asked", "reason", "field"), REFUSED_TURNS)
async def test_a_turn_that_cannot_be_honoured_is_refused_by_name(
    mesh: Mesh, asked: dict[str, Any], reason: str, field: str
) -> None:
    agent_id, session_id = await mesh.session()
    given: dict[str, Any] = {"messages": [user("hi")], **asked}
    with pytest.raises(InvalidArgumentError) as caught:
        await unary(mesh.stub.CreateTurn(v1.CreateTurnRequest(agent_id=agent_id, session_id=session_id, **given)))
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert not (await mesh.client.agents.get_session(session_id)).turns


async def test_a_repeat_by_request_id_returns_the_same_and_another_body_is_refused(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    turn = await mesh.ask(agent_id, session_id, "hi")
    await mesh.watch(turn.turn_id)
    calls: list[tuple[str, Any, Any]] = [
        (
            "CreateAgent",
            v1.CreateAgentRequest(agent_config=v1.AgentConfig(model="scripted")),
            v1.CreateAgentRequest(agent_config=v1.AgentConfig(model="other")),
        ),
        (
            "CreateSession",
            v1.CreateSessionRequest(agent_id=agent_id, session_name="a"),
            v1.CreateSessionRequest(agent_id=agent_id, session_name="b"),
        ),
        (
            "ForkSession",
            v1.ForkSessionRequest(session_id=session_id),
            v1.ForkSessionRequest(session_id=session_id, session_name="b"),
        ),
        (
            "CreateTurn",
            v1.CreateTurnRequest(agent_id=agent_id, session_id=session_id, messages=[user("a")]),
            v1.CreateTurnRequest(agent_id=agent_id, session_id=session_id, messages=[user("b")]),
        ),
    ]
    for method, one, other in calls:
        one.request_id = other.request_id = "the-same-for-all-methods" + agent_id
        call = getattr(mesh.stub, method)
        first = await unary(call(one))
        assert first == await unary(call(one))
        with pytest.raises(InvalidArgumentError) as caught:
            await unary(call(other))
        assert (caught.value.reason, caught.value.field) == ("REQUEST_ID_REUSED", "request_id")
    assert len((await mesh.client.agents.get_session(session_id)).turns) == 2


async def test_twenty_repeats_at_once_make_one_turn(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    request = v1.CreateTurnRequest(
        agent_id=agent_id, session_id=session_id, messages=[user("hi")], request_id=str(uuid.uuid4())
    )
    answers = await asyncio.gather(*[unary(mesh.stub.CreateTurn(request)) for _ in range(20)])
    assert len({answer.turn.turn_id for answer in answers}) == 1
    await mesh.watch(answers[0].turn.turn_id)
    assert len((await mesh.client.agents.get_session(session_id)).turns) == 1


async def test_a_fork_has_the_turns_up_to_the_one_named_and_goes_its_own_way(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    turns = []
    for text in ("one", "two", "three"):
        turns.append(await mesh.ask(agent_id, session_id, text))
        await mesh.watch(turns[-1].turn_id)
    request = v1.ForkSessionRequest(session_id=session_id, at_turn_id=turns[1].turn_id, session_name="fork")
    fork_id = (await unary(mesh.stub.ForkSession(request))).session_id
    fork = await mesh.client.agents.get_session(fork_id)
    original = await mesh.client.agents.get_session(session_id)
    assert (fork.session_name, fork.agent_id) == ("fork", agent_id)
    assert [turn.output_message for turn in fork.turns] == [turn.output_message for turn in original.turns[:2]]
    assert not {turn.turn_id for turn in fork.turns} & {turn.turn_id for turn in original.turns}
    assert {step.turn_id for turn in fork.turns for step in turn.steps} == {turn.turn_id for turn in fork.turns}
    longer = await mesh.ask(agent_id, fork_id, "hi")
    await mesh.watch(longer.turn_id)
    assert len((await mesh.client.agents.get_session(session_id)).turns) == 3
    # The fork's model saw the copied turns: "one" twice, "two" twice, and the question.
    assert (await mesh.client.agents.get_turn(longer.turn_id)).usage.prompt_tokens == 5
    await mesh.client.agents.delete_session(session_id)
    assert len((await mesh.client.agents.get_session(fork_id)).turns) == 3


async def test_a_fork_at_a_step_ends_there_and_its_open_call_is_answered_in_the_history(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session(client_tools=TOOLS)
    turn = await mesh.ask(agent_id, session_id, "weather")
    await mesh.watch(turn.turn_id)
    turn = await mesh.client.agents.get_turn(turn.turn_id)
    assert turn.status == v1.TURN_STATUS_AWAITING_INPUT
    request = v1.ForkSessionRequest(session_id=session_id, at_turn_id=turn.turn_id, at_step_id=turn.steps[0].step_id)
    fork_id = (await unary(mesh.stub.ForkSession(request))).session_id
    fork = await mesh.client.agents.get_session(fork_id)
    assert [step.step_id for step in fork.turns[0].steps] == [turn.steps[0].step_id]
    assert fork.turns[0].status == v1.TURN_STATUS_CANCELLED
    assert fork.turns[0].HasField("completed_at")
    after = await mesh.ask(agent_id, fork_id, "hi")
    assert kinds(await mesh.watch(after.turn_id))[-1] == "turn_complete"
    assert (await mesh.client.agents.get_turn(turn.turn_id)).status == v1.TURN_STATUS_AWAITING_INPUT
    await mesh.client.agents.cancel_turn(turn.turn_id)


async def test_a_fork_without_a_turn_leaves_out_the_running_one(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    await mesh.watch((await mesh.ask(agent_id, session_id, "one")).turn_id)
    running = await mesh.ask(agent_id, session_id, "hang")
    fork_id = (await unary(mesh.stub.ForkSession(v1.ForkSessionRequest(session_id=session_id)))).session_id
    assert len((await mesh.client.agents.get_session(fork_id)).turns) == 1
    await mesh.client.agents.cancel_turn(running.turn_id)


async def test_a_step_without_its_turn_cannot_be_forked_at(mesh: Mesh) -> None:
    turn = await mesh.run("hi")
    request = v1.ForkSessionRequest(session_id=turn.session_id, at_step_id=turn.steps[0].step_id)
    with pytest.raises(InvalidArgumentError, match="at_turn_id"):
        await unary(mesh.stub.ForkSession(request))


async def test_deleting_takes_everything_below_along(mesh: Mesh) -> None:
    turn = await mesh.run("hi")
    agent_id = (await mesh.client.agents.get_session(turn.session_id)).agent_id
    await mesh.client.agents.delete(agent_id)
    for call in (
        mesh.client.agents.get(agent_id),
        mesh.client.agents.get_session(turn.session_id),
        mesh.client.agents.get_turn(turn.turn_id),
        mesh.client.agents.delete(agent_id),
        mesh.client.agents.delete_session(turn.session_id),
        mesh.watch(turn.turn_id),
    ):
        with pytest.raises(NotFoundError):
            await call


@pytest.mark.parametrize("what", ["agent", "session"])
@pytest.mark.parametrize("text", ["hang", "weather"])
async def test_deleting_ends_a_turn_that_runs_or_waits_and_its_watchers(mesh: Mesh, what: str, text: str) -> None:
    agent_id, session_id = await mesh.session(client_tools=TOOLS)
    turn = await mesh.ask(agent_id, session_id, text)
    seen = len(await mesh.watch(turn.turn_id)) if text == "weather" else 0
    watching = asyncio.create_task(mesh.watch(turn.turn_id, seen))
    await asyncio.sleep(0)
    if what == "agent":
        await mesh.client.agents.delete(agent_id)
    else:
        await mesh.client.agents.delete_session(session_id)
    try:
        events = await asyncio.wait_for(watching, 20)
        assert kinds(events)[-1] == "turn_cancelled"
    except NotFoundError:
        pass  # the turn was gone before the watcher had arrived, or before it came to look
    with pytest.raises(NotFoundError):
        await mesh.client.agents.get_turn(turn.turn_id)
    assert turn.turn_id not in mesh.node._runner._running


async def test_a_session_created_while_its_agent_is_deleted_is_refused_or_deleted(mesh: Mesh) -> None:
    agent_id = await mesh.agent()

    async def create() -> str:
        try:
            return await mesh.client.agents.create_session(agent_id)
        except NotFoundError:
            return ""

    created, _ = await asyncio.gather(
        asyncio.gather(*[create() for _ in range(10)]), mesh.client.agents.delete(agent_id)
    )
    for session_id in filter(None, created):
        with pytest.raises(NotFoundError):
            await mesh.client.agents.get_session(session_id)


async def test_turns_created_while_the_session_is_deleted_leave_nothing_behind(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    outcomes: list[str] = []

    async def create() -> None:
        with contextlib.suppress(NotFoundError, FailedPreconditionError):
            outcomes.append((await mesh.ask(agent_id, session_id, "hang")).turn_id)

    await asyncio.gather(*[create() for _ in range(5)], mesh.client.agents.delete_session(session_id))
    for turn_id in outcomes:
        with pytest.raises(StackError):
            await mesh.client.agents.get_turn(turn_id)
        assert turn_id not in mesh.node._runner._running


async def test_a_message_of_a_tool_may_open_a_turn(mesh: Mesh) -> None:
    agent_id, session_id = await mesh.session()
    message = v1.TurnInputMessage(tool=v1.ToolResponseMessage(call_id="c", tool_name="t", content=content("42")))
    turn = await mesh.client.agents.create_turn(agent_id, session_id, [message])
    await mesh.watch(turn.turn_id)
    turn = await mesh.client.agents.get_turn(turn.turn_id)
    assert turn.output_message.content == content("The tool says: 42")

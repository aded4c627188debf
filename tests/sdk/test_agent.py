"""`Agent` over the real services."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from llamastack import v1
from stack_client import Agent, AgentResult, StackClient, SyncStackClient, content
from stack_client.errors import InvalidArgumentError, NotFoundError, UnavailableError
from tests.sdk.conftest import BOUND_SECONDS, InFlight, Script
from tests.stacks import SERVICES, StackProcess, stack_process

ENDED = {v1.TURN_STATUS_COMPLETED, v1.TURN_STATUS_FAILED, v1.TURN_STATUS_CANCELLED}


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def tool_answers(result: AgentResult) -> list[str]:
    return [
        content.text_of(response.content)
        for step in result.turn.steps
        for response in step.tool_execution.tool_responses
    ]


def calls(*named: tuple[str, dict[str, object]]) -> list[dict[str, object]]:
    return [{"tool_name": name, "arguments": arguments} for name, arguments in named]


async def test_arun_answers(client: StackClient) -> None:
    result = await Agent("scripted", client=client).arun("say hello there")
    assert result.text == str(result) == "hello there"
    assert result.usage.completion_tokens == 2
    assert result.tool_calls == []
    assert result.turn.status == v1.TURN_STATUS_COMPLETED


async def test_astream_shows_pieces_and_the_result_last(client: StackClient) -> None:
    events = [event async for event in Agent("scripted", client=client).astream("say red green blue")]
    assert "".join(event.text for event in events) == "red green blue"
    assert [event.result is not None for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].result is not None
    assert events[-1].result.text == "red green blue"


def test_run_and_stream_do_the_same_for_synchronous_code(sync_client: SyncStackClient) -> None:
    agent = Agent("scripted", client=sync_client)
    assert agent.run("say one").text == "one"
    events = list(agent.stream("say two three"))
    assert "".join(event.text for event in events) == "two three"
    assert events[-1].result is not None


async def test_run_works_inside_a_running_loop(stack: StackProcess) -> None:
    with SyncStackClient(stack.addresses) as client:
        assert Agent("scripted", client=client).run("say jupyter").text == "jupyter"


def test_an_agent_finds_the_stack_of_this_machine(stack: StackProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACK_HOME", str(stack.home))
    agent = Agent("scripted")
    assert agent.run("say found").text == "found"
    agent.close()


async def test_one_agent_serves_both_kinds_of_code_whichever_client_it_got(
    client: StackClient, sync_client: SyncStackClient
) -> None:
    for given in (client, sync_client):
        agent = Agent("scripted", client=given)
        assert (await agent.arun("say one")).text == "one"
        assert (await asyncio.to_thread(agent.run, "say two")).text == "two"
        assert agent.session_id is not None
        assert len((await client.agents.get_session(agent.session_id)).turns) == 2
        await asyncio.to_thread(agent.close)
        await agent.aclose()


async def test_a_tool_is_called_and_its_answer_reaches_the_model(client: StackClient) -> None:
    agent = Agent("scripted", tools=[get_weather], client=client)
    events = [event async for event in agent.astream("How is the weather?")]
    assert [event.tool_call.tool_name for event in events if event.tool_call] == ["get_weather"]
    shown = [content.text_of(event.tool_response.content) for event in events if event.tool_response]
    assert shown == ["sunny in Oslo"]
    assert events[-1].result is not None
    assert events[-1].result.text == "The tool says: sunny in Oslo"
    assert [call.tool_name for call in events[-1].result.tool_calls] == ["get_weather"]


async def test_an_asynchronous_tool_is_called(client: StackClient) -> None:
    async def get_weather(city: str) -> str:
        await asyncio.sleep(0)
        return f"cloudy in {city}"

    result = await Agent("scripted", tools=[get_weather], client=client).arun("weather")
    assert result.text == "The tool says: cloudy in Oslo"


def test_an_asynchronous_tool_serves_synchronous_code(sync_client: SyncStackClient) -> None:
    async def get_weather(city: str) -> str:
        await asyncio.sleep(0)
        return f"cloudy in {city}"

    assert Agent("scripted", tools=[get_weather], client=sync_client).run("weather").text.endswith("cloudy in Oslo")


def test_a_plain_tool_may_use_the_stack_itself(sync_client: SyncStackClient) -> None:
    def get_weather(city: str) -> str:
        return str(sync_client.inference.complete("scripted", f"say rain over {city}").content)

    assert Agent("scripted", tools=[get_weather], client=sync_client).run("weather").text.endswith("rain over Oslo")


def test_an_asynchronous_tool_that_blocks_its_own_loop_is_told_so(sync_client: SyncStackClient) -> None:
    async def get_weather(city: str) -> str:
        return str(sync_client.inference.complete("scripted", "say x").content)

    assert (
        "use StackClient with await" in Agent("scripted", tools=[get_weather], client=sync_client).run("weather").text
    )


async def test_calls_of_one_answer_run_side_by_side_and_answer_in_order(client: StackClient, script: Script) -> None:
    model = await script(
        {"role": "user", "tool_calls": calls(("slow", {"n": 1}), ("fast", {"n": 2}), ("slow", {"n": 3}))},
        {"role": "tool", "reply": "done"},
    )
    fast_ran = asyncio.Event()
    order: list[int] = []

    async def slow(n: int) -> str:
        await fast_ran.wait()
        order.append(n)
        return f"slow {n}"

    async def fast(n: int) -> str:
        fast_ran.set()
        order.append(n)
        return f"fast {n}"

    async with asyncio.timeout(BOUND_SECONDS):
        result = await Agent(model, tools=[slow, fast], client=client).arun("go")
    assert order[0] == 2
    assert tool_answers(result) == ["slow 1", "fast 2", "slow 3"]


async def test_plain_tools_run_side_by_side_too(client: StackClient, script: Script) -> None:
    model = await script(
        {"role": "user", "tool_calls": calls(("meet", {"n": 1}), ("meet", {"n": 2}))},
        {"role": "tool", "reply": "done"},
    )
    both = threading.Barrier(2)

    def meet(n: int) -> str:
        both.wait(BOUND_SECONDS)
        return f"met {n}"

    assert tool_answers(await Agent(model, tools=[meet], client=client).arun("go")) == ["met 1", "met 2"]


async def test_the_model_sees_wrong_arguments_and_raising_tools(client: StackClient, script: Script) -> None:
    model = await script(
        {"role": "user", "tool_calls": calls(("count", {"to": "many"}), ("fail", {}))},
        {"role": "tool", "reply": "{0}"},
    )

    def count(to: int) -> int:
        return to

    def fail() -> None:
        raise OSError("no network")

    result = await Agent(model, tools=[count, fail], client=client).arun("go")
    first, second = tool_answers(result)
    assert "to: Input should be a valid integer" in first
    assert second == result.text == "OSError: no network"


async def test_the_model_sees_that_a_tool_does_not_exist(client: StackClient, script: Script) -> None:
    model = await script(
        {"role": "user", "tool_calls": calls(("search", {}), ("get_weather", {"city": "Rome"}))},
        {"role": "tool", "reply": "done"},
    )
    result = await Agent(model, tools=[get_weather], client=client).arun("go")
    assert tool_answers(result) == ["There is no tool 'search'; the tools are: get_weather.", "sunny in Rome"]


async def test_max_infer_iters_ends_an_agent_that_calls_for_ever(client: StackClient, script: Script) -> None:
    model = await script({"reply": "again", "tool_calls": calls(("get_weather", {"city": "Rome"}))})
    result = await Agent(model, tools=[get_weather], client=client, max_infer_iters=3).arun("go")
    steps = [step.step_type for step in result.turn.steps]
    assert steps.count(v1.STEP_TYPE_INFERENCE) == 3
    assert len(result.tool_calls) == 2


async def test_an_agent_remembers_its_session(client: StackClient, script: Script) -> None:
    agent = Agent("scripted", instructions="Be brief.", client=client)
    await agent.arun("say one")
    await agent.arun("say two")
    assert agent.session_id is not None
    session = await client.agents.get_session(agent.session_id)
    assert [content.text_of(turn.output_message.content) for turn in session.turns] == ["one", "two"]


async def test_a_session_goes_on_by_its_id_from_another_agent(client: StackClient) -> None:
    first = Agent("scripted", instructions="Be brief.", tools=[get_weather], client=client)
    session_id = (await first.arun("say one")).session_id
    async with client.copy() as other:
        second = Agent("scripted", instructions="Be brief.", tools=[get_weather], session_id=session_id, client=other)
        assert (await second.arun("weather")).text == "The tool says: sunny in Oslo"
    assert len((await client.agents.get_session(session_id)).turns) == 2


async def test_a_session_of_another_kind_of_agent_is_refused(client: StackClient) -> None:
    session_id = (await Agent("scripted", client=client).arun("say one")).session_id
    for other, field in [
        (Agent("scripted", instructions="Be long.", session_id=session_id, client=client), "instructions"),
        (Agent("scripted", tools=[get_weather], session_id=session_id, client=client), "client_tools"),
        (Agent("scripted", max_tokens=3, session_id=session_id, client=client), "sampling_params"),
    ]:
        with pytest.raises(InvalidArgumentError) as caught:
            await other.arun("say two")
        assert caught.value.field == field


async def test_an_unknown_session_is_not_found(client: StackClient) -> None:
    with pytest.raises(NotFoundError):
        await Agent("scripted", session_id="none", client=client).arun("say x")


async def test_two_agents_run_at_once(client: StackClient) -> None:
    agents = [Agent("scripted", client=client) for _ in range(2)]
    results = await asyncio.gather(*(agent.arun(f"say {number}") for number, agent in enumerate(agents)))
    assert [result.text for result in results] == ["0", "1"]
    assert results[0].session_id != results[1].session_id


async def test_a_failed_turn_raises_the_error_of_the_service(client: StackClient) -> None:
    agent = Agent("no-such-model", client=client)
    with pytest.raises(NotFoundError, match="no model 'no-such-model'") as caught:
        await agent.arun("hi")
    assert caught.value.reason == "MODEL_NOT_FOUND"


async def test_what_an_agent_cannot_do_is_refused_before_the_first_turn(client: StackClient) -> None:
    agent = Agent("scripted", client=client)
    agent.config.toolgroups.add(name="builtin::nothing")
    with pytest.raises(InvalidArgumentError, match="builtin::nothing") as caught:
        await agent.arun("hi")
    assert caught.value.field == "agent_config.toolgroups[0].name"


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="two tools called 'get_weather'"):
        Agent("scripted", tools=[get_weather, get_weather])


async def test_a_run_that_is_cancelled_while_its_turn_is_created_leaves_no_turn_behind() -> None:
    creating, cancelled = asyncio.Event(), asyncio.Event()

    class Slow(v1.AgentsServiceServicer):
        async def CreateAgent(self, request: Any, context: Any) -> Any:  # noqa: N802
            return v1.CreateAgentResponse(agent_id="agent")

        async def CreateSession(self, request: Any, context: Any) -> Any:  # noqa: N802
            return v1.CreateSessionResponse(session_id="session")

        async def CreateTurn(self, request: Any, context: Any) -> Any:  # noqa: N802
            creating.set()
            await asyncio.sleep(0.1)  # long enough for the caller to go away
            return v1.CreateTurnResponse(turn=v1.Turn(turn_id="turn"))

        async def CancelTurn(self, request: Any, context: Any) -> Any:  # noqa: N802
            assert request.turn_id == "turn"
            cancelled.set()
            return v1.CancelTurnResponse()

    server = grpc.aio.server()
    port = server.add_insecure_port("localhost:0")
    v1.add_AgentsServiceServicer_to_server(Slow(), server)  # type: ignore[abstract] # the rest is not called
    await server.start()
    try:
        async with StackClient({"agents": f"localhost:{port}"}) as client, asyncio.timeout(BOUND_SECONDS):
            run = asyncio.create_task(Agent("any", client=client).arun("hi"))
            await creating.wait()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert cancelled.is_set()
    finally:
        await server.stop(None)


async def leave_by_break(agent: Agent) -> None:
    events = agent.astream("hang")
    async for event in events:
        if event.text:
            break
    await events.aclose()


async def leave_by_break_alone(agent: Agent) -> None:
    async for event in agent.astream("hang"):
        if event.text:
            break


async def leave_by_cancel(agent: Agent) -> None:
    started = asyncio.Event()

    async def watch() -> None:
        async for event in agent.astream("hang"):
            if event.text:
                started.set()

    task = asyncio.create_task(watch())
    async with asyncio.timeout(BOUND_SECONDS):
        await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_sync_by_break(agent: Agent) -> None:
    def watch() -> None:
        for event in agent.stream("hang"):
            if event.text:
                break

    await asyncio.to_thread(watch)
    await asyncio.to_thread(agent.close)


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_break_alone, leave_by_cancel, leave_sync_by_break])
async def test_leaving_a_run_early_cancels_the_turn(
    client: StackClient, calls_in_flight: InFlight, leave: Callable[[Agent], AsyncIterator[None]]
) -> None:
    agent = Agent("scripted", client=client)
    await leave(agent)  # type: ignore[misc]
    await calls_in_flight(0)
    assert agent.session_id is not None
    async with asyncio.timeout(BOUND_SECONDS):
        while (turn := (await client.agents.get_session(agent.session_id)).turns[0]).status not in ENDED:
            await asyncio.sleep(0.02)
    assert turn.status == v1.TURN_STATUS_CANCELLED
    assert (await agent.arun("say next")).text == "next"


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_a_run_goes_on_when_the_agents_service_comes_back(kill: bool) -> None:
    with stack_process() as stack:
        for service in SERVICES:
            stack.start(service)
        async with StackClient(stack.addresses) as client:
            agent = Agent("scripted", tools=[get_weather], client=client)
            assert (await agent.arun("say one")).text == "one"
            slow = {"script": [{"reply": " ".join(map(str, range(30))), "token_seconds": 0.03}]}
            await client.models.register("slow", provider_id="scripted", metadata=slow)
            await client.models.wait_ready("slow")
            agent = Agent("slow", client=client)
            events = []
            async with asyncio.timeout(60):
                async for event in agent.astream("count"):
                    events.append(event)
                    if event.text and not any(known.text for known in events[:-1]):
                        await asyncio.to_thread(stack.stop, "agents", kill=kill)
                        await asyncio.to_thread(stack.start, "agents")
            assert events[-1].result is not None
            assert events[-1].result.text == " ".join(map(str, range(30)))
            text = ""
            for event in events:
                text = "" if event.restarted else text + event.text
            assert text == events[-1].result.text


async def test_a_run_goes_on_when_the_agents_service_restarts_while_a_tool_runs() -> None:
    with stack_process() as stack:
        for service in SERVICES:
            stack.start(service)

        def get_weather(city: str) -> str:
            stack.stop("agents", kill=True)
            stack.start("agents")
            return f"sunny in {city}"

        async with StackClient(stack.addresses) as client:
            result = await Agent("scripted", tools=[get_weather], client=client).arun("weather")
        assert result.text == "The tool says: sunny in Oslo"


async def test_a_run_ends_with_an_error_when_inference_breaks_for_good(client: StackClient) -> None:
    with pytest.raises(UnavailableError, match="the scripted engine broke"):
        await Agent("scripted", client=client).arun("break")


async def test_a_stream_left_by_break_does_not_block_the_next_run(client: StackClient) -> None:
    agent = Agent("scripted", client=client)
    async for event in agent.astream("hang"):
        if event.text:
            break
    assert (await agent.arun("hello")).text == "hello"

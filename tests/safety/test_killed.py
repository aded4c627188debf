"""Processes that die: what was not judged is not shown, and the service goes on when they are back."""

import asyncio
from collections.abc import Iterator

import pytest

from llamastack import v1
from stack_client import StackClient
from stack_client.content import messages, text_of
from tests.stacks import StackProcess, stack_process

LONG = " ".join(f"word{n}{'.' if n % 9 == 8 else ''}" for n in range(400))


@pytest.fixture
def stack() -> Iterator[StackProcess]:
    with stack_process() as stack:
        stack.start("inference")
        stack.start("safety", "agents")
        yield stack


async def registered(client: StackClient) -> str:
    await client.shields.register("guard", provider_id="llama-guard", provider_shield_id="the-guard")
    return "guard"


async def test_a_guard_killed_while_it_judges_blocks(stack: StackProcess) -> None:
    async with StackClient(stack.addresses) as client:
        name = await registered(client)
        judging = asyncio.create_task(client.safety.run_shield(name, "stall"))
        await client.shields.list()  # answered after the judgement was asked for, on the same connection
        stack.stop("inference", kill=True)
        response = await judging
        assert response.violation.metadata["violation_type"] == "guard_unavailable"
        assert response.violation.violation_level == v1.VIOLATION_LEVEL_ERROR
        again = await client.safety.run_shield(name, "hello")
        assert again.HasField("violation")
        stack.start("inference")
        async with asyncio.timeout(20):
            while (await client.safety.run_shield(name, "hello")).HasField("violation"):
                await asyncio.sleep(0.05)


async def test_a_safety_service_killed_while_an_answer_streams_ends_the_answer(stack: StackProcess) -> None:
    async with StackClient(stack.addresses) as client:
        name = await registered(client)
        request = v1.ChatCompletionRequest(
            model_id="scripted", messages=messages(f"slowly {LONG}"), output_shields=[name]
        )
        shown, kinds = "", []
        async with client.inference.stream(v1.StreamChatCompletionRequest(request=request)) as events:
            async for event in events:
                kinds.append(event.WhichOneof("event"))
                shown += event.progress.delta.text
                if kinds[-1] == "progress" and kinds.count("progress") == 1:
                    stack.stop("safety", "agents", kill=True)
        assert kinds[-1] == "blocked"
        assert event.blocked.violation_type == "guard_unavailable"
        assert LONG.startswith(shown)
        assert len(shown) < len(LONG)


async def test_a_turn_goes_on_with_its_shields_after_a_kill(stack: StackProcess) -> None:
    async with StackClient(stack.addresses) as client:
        name = await registered(client)
        config = v1.AgentConfig(model="scripted", input_shields=[name], output_shields=[name])
        agent_id = await client.agents.create(config)
        session = await client.agents.create_session(agent_id)
        asked = v1.TurnInputMessage(user=messages(f"slowly {LONG[:600]}")[0].user)
        turn = await client.agents.create_turn(agent_id, session, [asked])
        async for event in client.agents.watch_turn(turn.turn_id):
            if event.WhichOneof("event") == "step_progress":
                break
        stack.stop("safety", "agents", kill=True)
        stack.start("safety", "agents")
        async with asyncio.timeout(60):
            while (ended := await client.agents.get_turn(turn.turn_id)).status != v1.TURN_STATUS_COMPLETED:
                await asyncio.sleep(0.05)
        kinds = [step.WhichOneof("details") for step in ended.steps]
        assert kinds == ["shield_call", "inference", "shield_call"]
        assert text_of(ended.output_message.content) == LONG[:600]

"""One trace holds what all services did for a turn of an agent."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamastack import v1
from services.runtime.process import hosting
from stack_client import StackClient
from stack_client.agents import Agents
from stack_client.content import content
from tests.telemetry.mesh import BUILDS, TelemetryMesh, stack_config, telemetry_mesh, until

CREATE = "llamastack.v1.AgentsService/CreateTurn"


def user(text: str) -> v1.TurnInputMessage:
    return v1.TurnInputMessage(user=v1.UserMessage(content=content(text)))


async def begin(agents: Agents, text: str, **settings: Any) -> str:
    groups = [v1.AgentToolGroup(name="builtin::wolfram_alpha")]
    agent_id = await agents.create(v1.AgentConfig(model="scripted", toolgroups=groups, **settings))
    session_id = await agents.create_session(agent_id, "test")
    return (await agents.create_turn(agent_id, session_id, [user(text)])).turn_id


async def tree_of(mesh: TelemetryMesh, turn_id: str) -> Mapping[str, v1.Span]:
    """All spans of the turn's trace, which hang together."""
    client = mesh.client.telemetry

    async def ended() -> v1.Span | None:
        await mesh.flush()
        found = await client.spans(("llamastack.turn_id", "eq", turn_id))
        return found[0] if found else None

    turn = await until(ended)
    trace = await client.trace(turn.trace_id)
    tree = await client.tree(trace.root_span_id)
    everything = {span.span_id for span in await client.spans() if span.trace_id == turn.trace_id}
    assert set(tree) == everything  # no orphans
    assert tree[trace.root_span_id].name == CREATE
    assert not tree[trace.root_span_id].HasField("parent_span_id")
    assert all(span.parent_span_id in tree for span in tree.values() if span.span_id != trace.root_span_id)
    assert tree[turn.span_id].parent_span_id == trace.root_span_id
    return tree


async def test_a_turn_is_one_trace_of_agents_inference_and_tools(home: Path) -> None:
    async with telemetry_mesh(home, "inference", "tools", "agents") as mesh:
        turn_id = await begin(mesh.client.agents, "when is noon?")
        async for _ in mesh.client.agents.watch_turn(turn_id):
            pass
        tree = await tree_of(mesh, turn_id)
        names = [span.name for span in tree.values()]
        assert names.count("llamastack.v1.InferenceService/StreamChatCompletion") == 2
        assert any(name.startswith("llamastack.v1.ToolRuntimeService/") for name in names)
        said = next(span for span in tree.values() if "InferenceService" in span.name)
        assert said.attributes["gen_ai.request.model"] == "scripted"
        assert said.attributes["service.name"] == "telemetry+inference+tools+agents"


async def test_a_cancelled_turn_leaves_no_orphans(home: Path) -> None:
    async with telemetry_mesh(home, "inference", "tools", "agents") as mesh:
        turn_id = await begin(mesh.client.agents, "hang on")
        async with asyncio.timeout(20), mesh.client.agents.watch_turn(turn_id) as stream:
            async for one in stream:
                if one.WhichOneof("event") == "step_progress":
                    break
        await mesh.client.agents.cancel_turn(turn_id)
        async for _ in mesh.client.agents.watch_turn(turn_id):
            pass
        tree = await tree_of(mesh, turn_id)
        said = next(span for span in tree.values() if "InferenceService" in span.name)
        assert said.attributes["rpc.status_code"] == "CANCELLED"


async def test_a_turn_that_another_agent_answers_belongs_to_the_trace(home: Path) -> None:
    async with telemetry_mesh(home, "inference", "tools", "agents") as mesh:
        agents = mesh.client.agents
        groups = [v1.AgentToolGroup(name="builtin::wolfram_alpha")]
        inner = await agents.create(v1.AgentConfig(model="scripted", toolgroups=groups))
        helper = v1.AgentTool(name="helper", description="Helps.", agent_id=inner)
        turn_id = await begin(agents, "ask helper", agent_tools=[helper])
        async for _ in agents.watch_turn(turn_id):
            pass
        tree = await tree_of(mesh, turn_id)
        outer, nested = sorted(
            (span for span in tree.values() if span.name == "agents.turn"),
            key=lambda one: one.start_time.ToNanoseconds(),
        )
        assert nested.parent_span_id == outer.span_id
        assert outer.attributes["llamastack.turn_id"] == turn_id


async def test_a_turn_that_goes_on_after_a_restart_begins_a_trace_without_orphans(home: Path) -> None:
    config = stack_config(home, "telemetry", "inference", "tools", "agents")
    others = {name: BUILDS[name] for name in ("telemetry", "inference", "tools")}
    agents = {"agents": BUILDS["agents"]}
    async with hosting(others, config=config, home=home), StackClient(config.addresses) as client:
        async with hosting(agents, config=config, home=home):
            turn_id = await begin(client.agents, "hang on")
            async with asyncio.timeout(20), client.agents.watch_turn(turn_id) as stream:
                async for one in stream:
                    if one.WhichOneof("event") == "step_progress":
                        break
        async with hosting(agents, config=config, home=home) as hosted:
            await client.agents.cancel_turn(turn_id)
            async for _ in client.agents.watch_turn(turn_id):
                pass

            async def ended() -> list[v1.Span]:
                await hosted[0].context.telemetry.flush()
                return await client.telemetry.spans(("llamastack.turn_status", "eq", "cancelled"))

            (turn,) = await until(ended)
        trace = await client.telemetry.trace(turn.trace_id)
        assert trace.root_span_id == turn.span_id
        tree = await client.telemetry.tree(turn.span_id)
        assert set(tree) == {span.span_id for span in await client.telemetry.spans() if span.trace_id == turn.trace_id}


async def test_what_answers_use_can_be_queried_as_metrics(home: Path) -> None:
    async with telemetry_mesh(home, "inference") as mesh:
        for text in ("say one", "say one two three"):
            await mesh.client.inference.chat("scripted", text)
        await mesh.flush()
        for metric in ("prompt_tokens", "completion_tokens", "total_tokens"):
            (series,) = await mesh.client.telemetry.metrics(metric, ("model_id", "=~", "script.*"), start=0)
            assert {one.name: one.value for one in series.labels} == {"model_id": "scripted", "provider_id": "scripted"}
            assert len(series.values) == 2
            assert {one.unit for one in series.values} == {"tokens"}


async def test_a_share_of_zero_records_no_traces_but_callers_that_ask_for_theirs(home: Path) -> None:
    async with telemetry_mesh(home, "inference", sample=0.0) as mesh:
        await mesh.client.inference.chat("scripted", "say one")
        stub = v1.InferenceServiceStub(mesh.client.channel("inference"))
        request = v1.ChatCompletionRequest(
            model_id="scripted", messages=[v1.Message(user=v1.UserMessage(content=content("say two")))]
        )
        await stub.ChatCompletion(request, metadata=(("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01"),))
        await mesh.flush()
        (trace,) = await mesh.client.telemetry.query_traces()
        assert trace.trace_id == "ab" * 16
        assert (await mesh.client.telemetry.span(trace.trace_id, trace.root_span_id)).parent_span_id == "cd" * 8

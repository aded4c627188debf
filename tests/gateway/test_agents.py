"""Agents over HTTP, as clients of 0.2 use them."""

from typing import Any

import httpx
import pytest

from tests.gateway.conftest import read_events

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": [{"name": "city", "parameter_type": "string", "description": "The city.", "required": True}],
}


@pytest.fixture
async def session(http: httpx.AsyncClient) -> str:
    """The path of a session of an agent with a client tool."""
    config = {"model": "scripted", "instructions": "", "client_tools": [WEATHER], "enable_session_persistence": False}
    agent = (await http.post("/v1/agents", json={"agent_config": config})).json()["agent_id"]
    made = (await http.post(f"/v1/agents/{agent}/session", json={"session_name": "a"})).json()["session_id"]
    return f"/v1/agents/{agent}/session/{made}"


async def payloads(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with http.stream("POST", path, json={**body, "stream": True}) as response:
        return [event["event"]["payload"] for event in await read_events(response)]


async def test_a_streamed_turn_ends_like_its_unstreamed_twin(http: httpx.AsyncClient, session: str) -> None:
    body = {"messages": [{"role": "user", "content": "say hi there"}]}
    whole = (await http.post(f"{session}/turn", json=body)).json()
    events = await payloads(http, f"{session}/turn", body)
    assert [event["event_type"] for event in events[:2]] == ["turn_start", "step_start"]
    assert events[-1]["event_type"] == "turn_complete"
    assert events[-1]["turn"]["output_message"] == whole["output_message"]
    text = "".join(event["delta"]["text"] for event in events if event["event_type"] == "step_progress")
    assert text == whole["output_message"]["content"] == "hi there"


async def test_a_client_tool_makes_the_turn_wait_and_resume_goes_on(http: httpx.AsyncClient, session: str) -> None:
    events = await payloads(http, f"{session}/turn", {"messages": [{"role": "user", "content": "the weather?"}]})
    waiting = events[-1]
    assert waiting["event_type"] == "turn_awaiting_input"
    [call] = waiting["turn"]["output_message"]["tool_calls"]
    assert call["arguments"] == {"city": "Oslo"}
    answer = {"call_id": call["call_id"], "tool_name": "get_weather", "content": "sunny", "metadata": {}}
    path = f"{session}/turn/{waiting['turn']['turn_id']}"
    resumed = await payloads(http, f"{path}/resume", {"tool_responses": [answer]})
    assert resumed[0]["event_type"] == "step_complete"
    assert resumed[0]["step_type"] == "tool_execution"
    assert resumed[-1]["turn"]["output_message"]["content"] == "The tool says: sunny"
    turn = (await http.get(path)).json()
    step = turn["steps"][0]
    assert (await http.get(f"{path}/step/{step['step_id']}")).json()["step"] == step
    shown = (await http.get(session)).json()
    assert [one["turn_id"] for one in shown["turns"]] == [turn["turn_id"]]
    again = await http.post(f"{path}/resume", json={"tool_responses": [answer]})
    assert again.json()["output_message"] == turn["output_message"]
    other = await http.post(f"{path}/resume", json={"tool_responses": [{**answer, "content": "rain"}]})
    assert other.status_code == 409


async def test_a_turn_that_fails_says_so(http: httpx.AsyncClient, session: str) -> None:
    body = {"messages": [{"role": "user", "content": "break"}]}
    whole = await http.post(f"{session}/turn", json=body)
    assert whole.status_code >= 500
    async with http.stream("POST", f"{session}/turn", json={**body, "stream": True}) as response:
        events = await read_events(response)
    assert "broke" in events[-1]["error"]["message"]


async def test_a_client_that_hangs_up_cancels_its_turn(http: httpx.AsyncClient, session: str) -> None:
    body = {"messages": [{"role": "user", "content": "hang"}], "stream": True}
    async with http.stream("POST", f"{session}/turn", json=body) as response:
        async for line in response.aiter_lines():
            if "three" in line:
                break
    for _ in range(500):
        [turn] = (await http.get(session)).json()["turns"]
        if turn["status"] == "cancelled":
            return
    raise AssertionError(turn["status"])


async def test_unknown_agents_sessions_turns_and_steps_are_404(http: httpx.AsyncClient, session: str) -> None:
    for path in ("/v1/agents/none", f"{session}x", f"{session}/turn/none", f"{session}/turn/none/step/none"):
        assert (await http.get(path)).status_code == 404


async def test_lists_have_pages(http: httpx.AsyncClient, session: str) -> None:
    page = (await http.get("/v1/agents", params={"start_index": 0, "limit": 1})).json()
    assert len(page["data"]) == 1
    assert page["url"] == "/v1/agents"
    agent = session.split("/")[3]
    assert (await http.delete(session)).status_code == 204
    assert (await http.get(f"/v1/agents/{agent}/sessions")).json()["data"] == []
    assert (await http.delete(f"/v1alpha/agents/{agent}")).status_code == 204

"""What clients of 0.0.63 send and read under /alpha."""

from typing import Any

import httpx
import pytest

from tests.gateway.conftest import read_events

CHAT = {"model_id": "scripted", "messages": [{"role": "user", "content": "say a b c"}]}
WEATHER = {
    "type": "function_call",
    "function_name": "get_weather",
    "description": "The weather.",
    "parameters": {"city": {"param_type": "string", "description": "Where.", "required": True}},
}


async def post(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await http.post(f"/alpha/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def stream(http: httpx.AsyncClient, path: str, **body: Any) -> list[Any]:
    async with http.stream("POST", f"/alpha/{path}", json={**body, "stream": True}) as response:
        return await read_events(response)


async def begin(http: httpx.AsyncClient, **config: Any) -> dict[str, str]:
    config = {"model": "scripted", "instructions": "", "enable_session_persistence": False, **config}
    agent = (await post(http, "agents/create", agent_config=config))["agent_id"]
    session = (await post(http, "agents/session/create", agent_id=agent, session_name="s"))["session_id"]
    return {"agent_id": agent, "session_id": session}


async def test_a_streamed_chat_has_plain_strings_as_deltas(http: httpx.AsyncClient) -> None:
    sampling = {"strategy": "greedy", "temperature": 0.0, "top_p": 0.95, "top_k": 0, "max_tokens": 0}
    body: dict[str, Any] = {**CHAT, "sampling_params": {**sampling, "repetition_penalty": 1.0}}
    events = [one["event"] for one in await stream(http, "inference/chat-completion", **body)]
    assert [events[0]["event_type"], events[-1]["event_type"]] == ["start", "complete"]
    whole = await post(http, "inference/chat-completion", **body)
    assert "".join(event["delta"] for event in events) == whole["completion_message"]["content"] == "a b c"


async def test_a_streamed_tool_call_has_content_and_status(http: httpx.AsyncClient) -> None:
    tool = {"tool_name": "get_weather", "parameters": {"city": {"param_type": "string"}}}
    messages = [{"role": "user", "content": "the weather?"}]
    events = await stream(http, "inference/chat-completion", model_id="scripted", messages=messages, tools=[tool])
    deltas = [one["event"]["delta"] for one in events]
    calls = [delta for delta in deltas if isinstance(delta, dict)]
    assert calls[-1]["parse_status"] == "success"
    assert calls[-1]["content"]["tool_name"] == "get_weather"


async def test_batches_are_answered_with_messages(http: httpx.AsyncClient) -> None:
    chats = await post(http, "batch-inference/chat-completion", model="scripted", messages_batch=[CHAT["messages"]] * 2)
    assert [one["content"] for one in chats["completion_message_batch"]] == ["a b c"] * 2
    texts = await post(http, "batch-inference/completion", model="scripted", content_batch=["say x"])
    assert len(texts["completion_message_batch"]) == 1


async def test_lists_are_bare_and_what_is_not_there_is_null(http: httpx.AsyncClient) -> None:
    models = (await http.get("/alpha/models/list")).json()
    assert "scripted" in [one["identifier"] for one in models]
    shown = (await http.get("/alpha/models/get", params={"identifier": "scripted"})).json()
    assert shown["identifier"] == "scripted"
    assert (await http.get("/alpha/models/get", params={"model_id": "none"})).json() is None
    assert isinstance((await http.get("/alpha/shields/list")).json(), list)
    assert (await http.get("/alpha/shields/get", params={"identifier": "none"})).json() is None
    assert (await http.get("/alpha/models/get")).json()["error"]["param"] == "model_id"
    assert "inference" in (await http.get("/alpha/providers/list")).json()
    [shown] = [one for one in (await http.get("/alpha/routes/list")).json()["health"] if one["route"] == "/v1/health"]
    assert shown["method"] == "GET"
    assert (await http.get("/alpha/health")).json()["status"] == "OK"


async def test_a_shield_judges_messages(http: httpx.AsyncClient) -> None:
    shield = {"shield_id": "alpha-guard", "provider_id": "llama-guard", "provider_shield_id": "the-guard"}
    assert (await post(http, "shields/register", **shield))["identifier"] == "alpha-guard"
    body = {"shield_id": "alpha-guard", "params": {}}
    judged = await post(http, "safety/run-shield", messages=[{"role": "user", "content": "forbidden"}], **body)
    assert judged["violation"]["violation_level"] == "error"
    assert (await http.delete("/v1/shields/alpha-guard")).status_code == 204  # other tests count the shields


async def test_a_turn_is_streamed_with_text_deltas_and_shown_again(http: httpx.AsyncClient) -> None:
    ids = await begin(http)
    messages = [{"role": "user", "content": "say a b c"}]
    events = await stream(http, "agents/turn/create", messages=messages, **ids)
    payloads = [one["event"]["payload"] for one in events]
    progress = [one for one in payloads if one["event_type"] == "step_progress"]
    assert "".join(one["text_delta"] or "" for one in progress) == "a b c"
    assert all("delta" not in one for one in progress)
    turn = payloads[-1]["turn"]
    again = {**ids, "turn_id": turn["turn_id"]}
    assert (await http.get("/alpha/agents/turn/get", params=again)).json() == turn
    step = turn["steps"][-1]
    got = (await http.get("/alpha/agents/step/get", params={**again, "step_id": step["step_id"]})).json()
    assert got["step"]["step_id"] == step["step_id"]
    session = await http.post("/alpha/agents/session/get", params=ids, json={"turn_ids": [turn["turn_id"]]})
    assert session.json()["turns"] == [turn]
    assert await post(http, "agents/session/delete", **ids) is None
    assert await post(http, "agents/delete", agent_id=ids["agent_id"]) is None
    assert (await http.get("/alpha/agents/turn/get", params=again)).status_code == 404


async def test_typed_tools_become_groups_and_functions_of_the_caller(http: httpx.AsyncClient) -> None:
    bank = {"memory_bank_id": "alpha-bank", "params": {"memory_bank_type": "keyword"}}
    await post(http, "memory-banks/register", **bank)
    memory = {"type": "memory", "memory_bank_configs": [{"bank_id": "alpha-bank", "type": "keyword"}]}
    search = {"type": "brave_search", "api_key": "", "engine": "brave"}
    tools = [{"type": "wolfram_alpha", "api_key": ""}, {"type": "code_interpreter"}, search, memory, WEATHER]
    ids = await begin(http, tools=tools)
    config = (await http.get(f"/v1/agents/{ids['agent_id']}")).json()["agent_config"]
    names = [one if isinstance(one, str) else one["name"] for one in config["toolgroups"]]
    assert names == ["builtin::wolfram_alpha", "builtin::code_interpreter", "builtin::websearch", "builtin::rag"]
    assert [one["name"] for one in config["client_tools"]] == ["get_weather"]
    events = await stream(http, "agents/turn/create", messages=[{"role": "user", "content": "the weather?"}], **ids)
    last = events[-1]["event"]["payload"]
    assert last["event_type"] == "turn_complete"
    message = last["turn"]["output_message"]
    [call] = message["tool_calls"]
    assert (message["content"], call["tool_name"]) == ("", "get_weather")
    result = {"role": "ipython", "call_id": call["call_id"], "tool_name": "get_weather", "content": "sunny"}
    events = await stream(http, "agents/turn/create", messages=[result], **ids)
    last = events[-1]["event"]["payload"]
    assert last["event_type"] == "turn_complete"
    assert last["turn"]["output_message"]["content"] == "The tool says: sunny"


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "photogen"}, "type"),
        ({"type": "brave_search", "api_key": "a-key"}, "api_key"),
        ({"type": "brave_search", "api_key": "", "engine": "yahoo"}, "engine"),
        ({"type": "code_interpreter", "enable_inline_code_execution": False}, "enable_inline_code_execution"),
        ({"type": "code_interpreter", "input_shields": ["x"]}, "input_shields"),
        ({"type": "memory", "memory_bank_configs": [{"bank_id": "b", "type": "graph"}]}, "memory_bank_configs[0].type"),
        ({**WEATHER, "color": "red"}, "color"),
    ],
)
async def test_a_tool_that_asks_for_more_than_we_do_is_refused(
    http: httpx.AsyncClient, tool: dict[str, Any], param: str
) -> None:
    config = {"model": "scripted", "instructions": "", "tools": [tool]}
    answer = await http.post("/alpha/agents/create", json={"agent_config": config})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == f"agent_config.tools[0].{param}"


@pytest.mark.parametrize("path", ["datasets/list", "eval/job/status", "telemetry/query-traces", "scoring/score"])
async def test_what_has_another_shape_today_says_where_it_is(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(f"/alpha/{path}", json={})
    assert answer.status_code == 501
    assert "/v1/" in answer.json()["error"]["message"]

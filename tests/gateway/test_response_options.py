"""What responses may ask for beyond an answer, over HTTP."""

import asyncio
from typing import Any

import httpx

from tests.gateway.conftest import read_events

RESPONSES = "/v1/responses"


async def create(http: httpx.AsyncClient, given: Any, **more: Any) -> Any:
    answer = await http.post(RESPONSES, json={"model": "scripted", "input": given, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_log_probabilities_come_with_the_text(http: httpx.AsyncClient) -> None:
    body = {"model": "scripted", "input": "say one two", "stream": True, "top_logprobs": 1}
    body["include"] = ["message.output_text.logprobs"]
    async with http.stream("POST", RESPONSES, json=body) as response:
        events = await read_events(response)
    [done] = [event for event in events[:-1] if event["type"] == "response.output_text.done"]
    deltas = [event for event in events[:-1] if event["type"] == "response.output_text.delta"]
    assert [one for delta in deltas for one in delta["logprobs"]] == done["logprobs"]
    assert [one["token"] for one in done["logprobs"]] == ["one", " two"]
    assert done["logprobs"][0]["bytes"] == list(b"one")
    assert events[-2]["response"]["output"][0]["content"][0]["logprobs"] == done["logprobs"]


async def test_thoughts_are_items_with_events_of_their_own(http: httpx.AsyncClient) -> None:
    body = {"model": "scripted", "input": "say <think>Hm.</think> Yes", "stream": True, "reasoning": {"effort": "low"}}
    async with http.stream("POST", RESPONSES, json=body) as response:
        events = await read_events(response)
    types = [event["type"] for event in events[:-1]]
    assert "response.reasoning_text.delta" in types
    thought, message = events[-2]["response"]["output"]
    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "Hm."}])
    assert message["content"][0]["text"] == "Yes"
    assert events[-2]["response"]["reasoning"]["effort"] == "low"


async def test_hints_and_bounds_are_taken_and_repeated(http: httpx.AsyncClient) -> None:
    given = {
        "truncation": "auto", "max_tool_calls": 3, "service_tier": "flex", "text": {"verbosity": "low"},
        "parallel_tool_calls": False, "include": ["reasoning.encrypted_content", "code_interpreter_call.outputs"],
    }  # fmt: skip
    made = await create(http, "say hello", **given)
    for name in ("truncation", "max_tool_calls", "service_tier", "parallel_tool_calls"):
        assert made[name] == given[name]
    assert made["text"]["verbosity"] == "low"


async def test_an_item_is_named_in_place_of_itself(http: httpx.AsyncClient) -> None:
    first = await create(http, "say first")
    named = {"type": "item_reference", "id": first["output"][0]["id"]}
    second = await create(http, [named, {"role": "user", "content": "say second"}])
    listed = (await http.get(f"{RESPONSES}/{second['id']}/input_items", params={"order": "asc"})).json()
    assert listed["data"][0]["id"] == first["output"][0]["id"]
    missing = {"model": "scripted", "input": [{"type": "item_reference", "id": "msg_0"}]}
    assert (await http.post(RESPONSES, json=missing)).status_code == 404


async def test_a_response_ends_when_its_client_hangs_up(http: httpx.AsyncClient) -> None:
    body = {"model": "scripted", "input": "hang", "stream": True}
    async with http.stream("POST", RESPONSES, json=body) as response:
        async for line in response.aiter_lines():
            if '"response.output_text.delta"' in line:
                break
    [newest] = (await http.get(RESPONSES, params={"limit": 1})).json()["data"]
    async with asyncio.timeout(20):
        while (await http.get(f"{RESPONSES}/{newest['id']}")).json()["status"] != "cancelled":
            await asyncio.sleep(0.02)


async def test_default_guardrails_are_all_registered_shields(http: httpx.AsyncClient) -> None:
    for left in (await http.get("/v1/shields")).json()["data"]:  # of the programs of clients, which share the stack
        await http.delete(f"/v1/shields/{left['identifier']}")
    body = {"model": "scripted", "input": "say something forbidden", "guardrails": True}
    nothing = await http.post(RESPONSES, json=body)
    assert (nothing.status_code, nothing.json()["error"]["param"]) == (400, "default_guardrails")
    shield = {"shield_id": "guard", "provider_id": "llama-guard", "provider_shield_id": "the-guard"}
    assert (await http.post("/v1/shields", json=shield)).status_code == 200
    try:
        refused = (await http.post(RESPONSES, json=body)).json()
        assert refused["output"][-1]["content"][0]["type"] == "refusal"
        allowed = await create(http, "say something kind", guardrails=True)
        assert allowed["output"][-1]["content"][0]["text"] == "something kind"
        shown = await http.post(RESPONSES, json={**body, "top_logprobs": 1})
        assert (shown.status_code, shown.json()["error"]["param"]) == (400, "top_logprobs")
    finally:
        await http.delete("/v1/shields/guard")


async def test_a_response_is_held_to_one_call_at_a_time(http: httpx.AsyncClient) -> None:
    tools = [{"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}]
    made = await create(http, "the weather twice", tools=tools, parallel_tool_calls=False)
    assert [item["type"] for item in made["output"]] == ["function_call"]
    free = await create(http, "the weather twice", tools=tools)
    assert [item["type"] for item in free["output"]] == ["function_call", "function_call"]

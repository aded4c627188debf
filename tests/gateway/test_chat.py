import httpx
import pytest

from tests.gateway.conftest import read_events

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def chat(text: str, **more: object) -> dict[str, object]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize("prefix", ["/v1", "/v1/openai/v1"])
async def test_a_chat_is_answered_under_both_prefixes(http: httpx.AsyncClient, prefix: str) -> None:
    answer = await http.post(f"{prefix}/chat/completions", json=chat("say hello there"))
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "hello there"
    assert answer.json()["usage"]["total_tokens"] == 5


async def test_a_streamed_chat_says_what_its_unstreamed_twin_says(http: httpx.AsyncClient) -> None:
    body = chat("say a b c d e f g h i j k l m n o p", stream=True, stream_options={"include_usage": True})
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        events = await read_events(response)
    whole = (await http.post("/v1/chat/completions", json=chat("say a b c d e f g h i j k l m n o p"))).json()
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == whole["usage"]
    deltas = [event["choices"][0]["delta"] for event in events[:-2]]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert events[-3]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"


async def test_old_clients_get_no_done_mark(http: httpx.AsyncClient) -> None:
    async with http.stream("POST", "/v1/openai/v1/chat/completions", json=chat("say x", stream=True)) as response:
        assert "[DONE]" not in await read_events(response)
    headers = {"X-LlamaStack-Client-Version": "0.2.20"}
    body = chat("say x", stream=True)
    async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        assert "[DONE]" not in await read_events(response)


async def test_a_tool_call_comes_the_same_way_streamed_and_whole(http: httpx.AsyncClient) -> None:
    body = chat("the weather?", tools=[WEATHER])
    whole = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]
    async with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        events = await read_events(response)
    [call] = whole["message"]["tool_calls"]
    assert whole["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "get_weather"
    [streamed] = [
        event["choices"][0]["delta"]["tool_calls"][0]
        for event in events[:-1]
        if event["choices"][0]["delta"].get("tool_calls")
    ]
    assert streamed["function"] == call["function"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "model"),
        ({"model": "scripted"}, "messages"),
        (chat("x", temperature="hot"), "temperature"),
        (chat("x", temperature=3), "temperature"),
        (chat("x", foo=1), "foo"),
        (chat("x", n=0), "n"),
        (chat("x", tool_choice="auto"), "tool_choice"),
        ({"model": "scripted", "messages": [{"role": "user"}]}, "messages[0].content"),
        ({"model": "scripted", "messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
        ({"model": "scripted", "messages": [7]}, "messages[0]"),
        (chat("x", logit_bias={"a": 1}), "logit_bias.a"),
        (chat("x", stop=["a"] * 20), "stop"),
    ],
)
async def test_what_is_wrong_in_a_request_is_named(
    http: httpx.AsyncClient, body: dict[str, object], param: str
) -> None:
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["detail"] == answer.json()["error"]["message"]


async def test_an_unknown_model_is_404_before_a_stream_begins(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json={**chat("x", stream=True), "model": "nope"})
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "model"


async def test_an_engine_that_breaks_in_the_middle_is_told_as_the_last_event(http: httpx.AsyncClient) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=chat("break", stream=True)) as response:
        events = await read_events(response)
    assert response.status_code == 200
    assert "the scripted engine broke" in events[-1]["error"]["message"]

"""The mesh's own traces, asked for over HTTP as clients of 0.2 do."""

import asyncio
from typing import Any

import httpx

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "say hi"}]}


async def spans_of(http: httpx.AsyncClient, trace_id: str, *, least: int) -> dict[str, Any]:
    """The spans below the root of a trace, once they have arrived."""
    for _ in range(300):
        trace = await http.get(f"/v1/telemetry/traces/{trace_id}")
        if trace.status_code == 200:
            root = trace.json()["root_span_id"]
            tree: dict[str, Any] = (await http.post(f"/v1/telemetry/spans/{root}/tree", json={})).json()["data"]
            if len(tree) >= least:
                return tree
        await asyncio.sleep(0.05)
    raise AssertionError("the spans did not arrive")


async def test_a_chat_is_one_trace_from_http_to_inference(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=CHAT)
    tree = await spans_of(http, answer.headers["x-trace-id"], least=2)
    names = {span["name"] for span in tree.values()}
    assert "llamastack.v1.InferenceService/ChatCompletion" in names
    assert any("chat/completions" in name for name in names)
    [root] = [span for span in tree.values() if span["parent_span_id"] is None]
    assert "chat/completions" in root["name"]
    one = await http.get(f"/v1/telemetry/traces/{root['trace_id']}/spans/{root['span_id']}")
    assert one.json()["name"] == root["name"]


async def test_traces_and_spans_are_found_by_their_attributes(http: httpx.AsyncClient) -> None:
    headers = {"x-request-id": "find-me-1"}
    answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
    await spans_of(http, answer.headers["x-trace-id"], least=2)
    condition = {"key": "llamastack.request_id", "op": "eq", "value": "find-me-1"}
    found = await http.post("/v1/telemetry/traces", json={"attribute_filters": [condition], "limit": 5})
    assert [one["trace_id"] for one in found.json()["data"]] == [answer.headers["x-trace-id"]]
    body = {"attribute_filters": [condition], "attributes_to_return": ["llamastack.request_id"]}
    spans = (await http.post("/v1/telemetry/spans", json=body)).json()["data"]
    assert spans
    assert all(span["attributes"] == {"llamastack.request_id": "find-me-1"} for span in spans)


async def test_the_tokens_of_models_are_a_metric(http: httpx.AsyncClient) -> None:
    await http.post("/v1/chat/completions", json=CHAT)
    body = {"start_time": 0, "query_type": "instant", "label_matchers": [{"name": "model_id", "value": "scripted"}]}
    for _ in range(300):
        data = (await http.post("/v1/telemetry/metrics/total_tokens", json=body)).json()["data"]
        if data:
            break
        await asyncio.sleep(0.05)
    assert data[0]["metric"] == "total_tokens"
    assert isinstance(data[0]["values"][0]["timestamp"], int)
    assert data[0]["values"][0]["value"] > 0


async def test_events_of_clients_are_kept(http: httpx.AsyncClient) -> None:
    event = {
        "type": "structured_log",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "b7ad6b7169203331",
        "timestamp": "2026-01-01T00:00:00Z",
        "attributes": {"who": "me"},
        "payload": {"type": "span_start", "name": "mine", "parent_span_id": None},
    }
    end = {**event, "timestamp": "2026-01-01T00:00:01Z", "payload": {"type": "span_end", "status": "ok"}}
    for one in (event, end):
        assert (await http.post("/v1/telemetry/events", json={"event": one, "ttl_seconds": 600})).status_code == 204
    span = (await http.get(f"/v1/telemetry/traces/{event['trace_id']}/spans/{event['span_id']}")).json()
    assert (span["name"], span["end_time"][:19]) == ("mine", "2026-01-01T00:00:01")
    bad = await http.post("/v1/telemetry/events", json={"event": {**event, "type": "song"}})
    assert bad.status_code == 400

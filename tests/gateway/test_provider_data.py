"""Keys of providers that come with a request, on their way to where tools run."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.gateway.conftest import read_events
from tests.tools.mcp.servers import Peer, serving
from tests.tools.web import Web, as_json, web

HITS = {"web": {"results": [{"title": "Fjords", "url": "https://fjords.example", "description": "deep"}]}}
NAMES = ("X-LlamaStack-Provider-Data", "X-LlamaStack-ProviderData", "X-OGX-Provider-Data")


@pytest.fixture
async def engine(http: httpx.AsyncClient) -> AsyncIterator[Web]:
    """A search engine, and the group `test::search` that asks it."""
    async with web(lambda _: as_json(HITS)) as server:
        body = {"toolgroup_id": "test::search", "provider_id": "brave-search", "args": {"base_url": server.url}}
        assert (await http.post("/v1/toolgroups", json=body)).status_code == 204
        yield server
        await http.delete("/v1/toolgroups/test::search")


@pytest.mark.parametrize("name", NAMES)
async def test_a_key_in_a_header_reaches_the_tool(http: httpx.AsyncClient, engine: Web, name: str) -> None:
    body = {"tool_name": "test::search/web_search", "kwargs": {"query": "fjords"}}
    headers = {name: json.dumps({"brave_search_api_key": "a-key-of-mine"})}
    found = (await http.post("/v1/tool-runtime/invoke", json=body, headers=headers)).json()
    assert "fjords.example" in found["content"]
    assert engine.asked[0].headers["x-subscription-token"] == "a-key-of-mine"
    without = (await http.post("/v1/tool-runtime/invoke", json=body)).json()
    assert without["error_code"] == 401
    assert "brave_search_api_key" in without["error_message"]


async def test_a_key_in_a_header_reaches_the_tools_of_a_turn(http: httpx.AsyncClient, engine: Web) -> None:
    config = {"model": "scripted", "instructions": "", "toolgroups": ["test::search"]}
    agent = (await http.post("/v1/agents", json={"agent_config": config})).json()["agent_id"]
    path = f"/v1/agents/{agent}/session"
    session = (await http.post(path, json={"session_name": "s"})).json()["session_id"]
    body = {"messages": [{"role": "user", "content": "Search for fjords"}], "stream": True}
    headers = {NAMES[0]: json.dumps({"brave_search_api_key": "a-key-of-mine"})}
    async with http.stream("POST", f"{path}/{session}/turn", json=body, headers=headers) as response:
        events = await read_events(response)
    assert events[-1]["event"]["payload"]["event_type"] == "turn_complete"
    assert engine.asked[0].headers["x-subscription-token"] == "a-key-of-mine"
    whole = (await http.get(f"{path}/{session}")).text
    assert "a-key-of-mine" not in whole


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "given",
    [
        "{",
        "[]",
        '"x"',
        "no json",
        json.dumps({"key": "x" * 5000}),
        '{"brave_search_api_key": 7}',
        '{"mcp_headers": 7}',
        '{"mcp_headers": {"u": {"h": 7}}}',
    ],
)
async def test_a_header_that_cannot_be_used_is_named(http: httpx.AsyncClient, name: str, given: str) -> None:
    answer = await http.get("/v1/toolgroups", headers={name: given})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name.lower()


@pytest.mark.parametrize("secret", [{"authorization": "right"}, {"headers": {"Authorization": "Bearer right"}}])
async def test_secrets_of_mcp_servers_in_a_response_reach_the_server_and_are_never_stored(
    http: httpx.AsyncClient, secret: dict[str, object]
) -> None:
    async with serving(Peer(), key="right") as url:
        tool = {"type": "mcp", "server_label": "peer", "server_url": url, "require_approval": "never"}
        body = {"model": "scripted", "input": "say hi", "tools": [{**tool, **secret}]}
        made = await http.post("/v1/responses", json=body)
        assert made.status_code == 200, made.text
        listed = [item for item in made.json()["output"] if item["type"] == "mcp_list_tools"]
        assert listed[0]["tools"]
        assert "right" not in made.text
        assert "right" not in (await http.get(f"/v1/responses/{made.json()['id']}")).text
        refused = await http.post("/v1/responses", json={**body, "tools": [tool]})
        assert "right" not in refused.text
        assert refused.status_code == 401 or refused.json()["status"] == "failed" or "error" in refused.text

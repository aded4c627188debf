"""What programs with the Python package `openai` do with tools that the stack runs for a response."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai_responses import ITEMS, checked, streamed
from shop import SCRIPT, open_shop


@pytest.fixture(scope="module")
def shop() -> Iterator[dict[str, Any]]:
    with open_shop() as tool:
        yield tool


@pytest.fixture(scope="module")
def client() -> OpenAI:
    client = OpenAI(base_url=os.environ["GATEWAY_URL"] + "/v1", api_key="none", max_retries=0)
    body = {"model_id": "scripted-tools", "provider_id": "scripted", "metadata": {"script": SCRIPT}}
    client.post("/models", body=body, cast_to=object)
    shield = {"shield_id": "guard", "provider_id": "llama-guard", "provider_shield_id": "the-guard"}
    client.post("/shields", body=shield, cast_to=object)
    return client


def test_an_mcp_server_is_asked_and_every_event_is_read(client: OpenAI, shop: Any) -> None:
    events, final = streamed(client, model="scripted-tools", input="look", tools=[shop])
    assert [item.type for item in final.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert (final.output[1].name, final.output[1].output) == ("look", "seen")
    kinds = [event.type for event in events]
    assert "response.mcp_list_tools.completed" in kinds
    assert "response.mcp_call_arguments.done" in kinds
    assert "response.mcp_call.completed" in kinds
    assert final.output_text == "The tool says: seen"


def test_a_person_approves_a_call(client: OpenAI, shop: Any) -> None:
    asking = {**shop, "require_approval": "always"}
    raw = client.responses.with_raw_response.create(model="scripted-tools", input="look", tools=[asking])
    first = checked(raw.http_response.content)
    [wanted] = [item for item in first.output if item.type == "mcp_approval_request"]
    answer: Any = [{"type": "mcp_approval_response", "approval_request_id": wanted.id, "approve": True}]
    second = client.responses.create(
        model="scripted-tools", input=answer, previous_response_id=first.id, tools=[asking]
    )
    assert "mcp_call" in [item.type for item in second.output]
    listed = client.responses.input_items.with_raw_response.list(second.id)
    for item in json.loads(listed.http_response.content)["data"]:
        ITEMS.validate_python(item)


def test_a_web_search_that_fails_is_told_and_every_event_is_read(client: OpenAI) -> None:
    call = {"tool_name": "brave_search", "arguments": {"query": "news"}}
    script = [{"role": "user", "tools": True, "tool_calls": [call]}, {"role": "tool", "reply": "Nothing was found."}]
    body = {"model_id": "surfing", "provider_id": "scripted", "metadata": {"script": script}}
    client.post("/models", body=body, cast_to=object)
    events, final = streamed(client, model="surfing", input="What is new?", tools=[{"type": "web_search"}])
    assert (final.output[0].type, final.output[0].action.query) == ("web_search_call", "news")
    assert "response.web_search_call.searching" in [event.type for event in events]
    assert final.output_text == "Nothing was found."


def test_a_withheld_answer_is_a_refusal(client: OpenAI) -> None:
    events, final = streamed(
        client, model="scripted-tools", input="a forbidden thing", extra_body={"guardrails": ["guard"]}
    )
    assert final.output[0].content[0].type == "refusal"
    assert "response.refusal.done" in [event.type for event in events]

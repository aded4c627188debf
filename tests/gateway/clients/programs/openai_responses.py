"""What programs with the Python package `openai` do with responses and conversations."""

import json
import os
from typing import Any, Literal, get_args

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.conversations import Conversation, ConversationItem
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

URL = os.environ["GATEWAY_URL"]
EVENTS: dict[str, Any] = {
    kind.model_fields["type"].annotation.__args__[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
}
ITEMS: TypeAdapter[Any] = TypeAdapter(ResponseItem)
CONVERSATION_ITEMS: TypeAdapter[Any] = TypeAdapter(ConversationItem)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}
NUMBERS = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "top_logprobs", "created_at")
PRESENT = (
    "tools", "tool_choice", "truncation", "background", "store", "service_tier", "text", "parallel_tool_calls",
    "metadata",
)  # fmt: skip
SHOWN = (
    "instructions", "previous_response_id", "max_output_tokens", "max_tool_calls", "reasoning", "usage", "error",
    "incomplete_details", "completed_at", "prompt_cache_key", "safety_identifier", "user",
)  # fmt: skip


class Ticket(BaseModel):
    subject: str
    urgency: Literal["low", "high"]


@pytest.fixture(scope="module")
def client() -> OpenAI:
    return OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)


@pytest.fixture(params=["/v1", "/v1/openai/v1"])
def either(request: pytest.FixtureRequest) -> OpenAI:
    return OpenAI(base_url=URL + request.param, api_key="none", max_retries=0)


def checked(raw: bytes | str) -> Response:
    """A response by the SDK's declaration without leniency, and by the rules that strict clients go by."""
    response = Response.model_validate_json(raw, strict=True)
    plain = json.loads(raw)
    for name in NUMBERS:
        assert isinstance(plain[name], int | float), f"{name} is {plain[name]}"
    for name in PRESENT:
        assert plain[name] is not None, f"{name} is null"
    for name in SHOWN:
        assert name in plain, f"{name} is missing"
    for item in plain["output"]:
        assert item["id"]
        assert item["type"] in {"mcp_list_tools", "mcp_approval_request"} or item["status"]
        for part in item.get("content", []):
            if part["type"] == "output_text":
                assert isinstance(part["annotations"], list)
                assert isinstance(part["logprobs"], list)
    return response


def lines(response: Any) -> list[str]:
    return [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]


def streamed(client: OpenAI, **more: Any) -> tuple[list[Any], Response]:
    """The events of a stream, each strictly read, and the response at its end."""
    with client.responses.with_streaming_response.create(**{"model": "scripted", **more}, stream=True) as raw:
        found = [line for line in lines(raw) if line != "[DONE]"]
    events = [EVENTS[json.loads(line)["type"]].model_validate_json(line, strict=True) for line in found]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events, checked(json.dumps(json.loads(found[-1])["response"]))


def test_a_response_is_what_the_sdk_declares(either: OpenAI) -> None:
    raw = either.responses.with_raw_response.create(model="scripted", input="say hello", instructions="Be brief.")
    response = checked(raw.http_response.content)
    assert (response.status, response.output_text) == ("completed", "hello")
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    shown = checked(either.responses.with_raw_response.retrieve(response.id).http_response.content)
    assert shown == response


def test_events_of_a_message_come_in_order_and_without_gaps(either: OpenAI) -> None:
    events, final = streamed(either, input="say one two")
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert "".join(event.delta for event in events[4:-4]) == final.output_text == "one two"
    assert events[2].item.id == events[3].item_id == events[-1].response.output[0].id


def test_the_sdks_own_stream_helper_builds_the_response(client: OpenAI) -> None:
    with client.responses.stream(model="scripted", input="say one two") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(texts) == stream.get_final_response().output_text == "one two"


def test_a_function_is_called_and_its_result_makes_a_second_round(either: OpenAI) -> None:
    first = either.responses.create(model="scripted", input="the weather?", tools=[WEATHER])
    [call] = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Oslo"})
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    second = either.responses.create(model="scripted", input=result, previous_response_id=first.id, tools=[WEATHER])
    assert second.output_text == "The tool says: rain"
    assert second.previous_response_id == first.id
    whole: Any = [{"role": "user", "content": "the weather?"}, *first.output, *result]
    again = either.responses.create(model="scripted", input=whole, tools=[WEATHER], store=False)
    assert again.output_text == "The tool says: rain"


def test_events_of_a_call_come_in_order_and_without_gaps(client: OpenAI) -> None:
    events, final = streamed(client, input="the weather?", tools=[WEATHER])
    kinds = [event.type for event in events]
    assert "response.function_call_arguments.delta" in kinds
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert (json.loads(done.arguments), done.name) == ({"city": "Oslo"}, "get_weather")
    assert final.output[0].type == "function_call"


def test_structured_output_is_parsed_into_the_callers_class(client: OpenAI) -> None:
    parsed = client.responses.parse(model="scripted", input="the heating is off", text_format=Ticket)
    assert parsed.output_parsed == Ticket(subject="No heating", urgency="high")
    with client.responses.stream(model="scripted", input="the heating is off", text_format=Ticket) as stream:
        assert stream.get_final_response().output_parsed.urgency == "high"


def test_a_background_response_is_fetched_and_watched(client: OpenAI) -> None:
    raw = client.responses.with_raw_response.create(model="scripted", input="slowly one two three", background=True)
    queued = checked(raw.http_response.content)
    assert queued.status in {"queued", "in_progress"}
    events = list(client.responses.retrieve(queued.id, stream=True))
    assert events[-1].type == "response.completed"
    assert client.responses.retrieve(queued.id).output_text == "one two three"
    rest = list(client.responses.retrieve(queued.id, stream=True, starting_after=events[2].sequence_number))
    assert [event.sequence_number for event in rest] == [event.sequence_number for event in events[3:]]


def test_a_background_response_can_be_cancelled(client: OpenAI) -> None:
    hanging = client.responses.create(model="scripted", input="hang", background=True)
    ended = checked(client.responses.with_raw_response.cancel(hanging.id).http_response.content)
    assert ended.status == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.responses.cancel(client.responses.create(model="scripted", input="say x").id)


def test_input_items_are_listed_and_a_response_is_deleted(either: OpenAI) -> None:
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "say hi"}]},
    ]
    response = either.responses.create(model="scripted", input=items)
    raw = either.responses.input_items.with_raw_response.list(response.id, order="asc")
    data = [ITEMS.validate_python(item) for item in json.loads(raw.http_response.content)["data"]]
    assert [item.role for item in data] == ["developer", "user"]
    assert len(list(either.responses.input_items.list(response.id, limit=1))) == 2  # page by page
    either.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        either.responses.retrieve(response.id)


def test_a_conversation_remembers(client: OpenAI) -> None:
    raw = client.conversations.with_raw_response.create(metadata={"topic": "tests"})
    conversation = Conversation.model_validate_json(raw.http_response.content, strict=True)
    for text in ("say one", "say two"):
        response = client.responses.create(model="scripted", input=text, conversation=conversation.id)
        assert response.conversation.id == conversation.id
    listed = client.conversations.items.with_raw_response.list(conversation.id, order="asc")
    plain = json.loads(listed.http_response.content)
    items = [CONVERSATION_ITEMS.validate_python(item) for item in plain["data"]]
    assert [item.role for item in items] == ["user", "assistant", "user", "assistant"]
    one = client.conversations.items.retrieve(items[1].id, conversation_id=conversation.id)
    assert one.content[0].text == "one"


def test_conversations_are_changed_and_deleted(client: OpenAI) -> None:
    start: Any = [{"type": "message", "role": "user", "content": "hello"}]
    conversation = client.conversations.create(items=start)
    more: Any = [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi", "annotations": []}]}
    ]
    added = client.conversations.items.create(conversation.id, items=more)
    assert added.data[0].role == "assistant"
    assert len(client.conversations.items.list(conversation.id).data) == 2
    client.conversations.items.delete(added.data[0].id, conversation_id=conversation.id)
    assert len(client.conversations.items.list(conversation.id).data) == 1
    assert client.conversations.update(conversation.id, metadata={"a": "b"}).metadata == {"a": "b"}
    assert client.conversations.retrieve(conversation.id).metadata == {"a": "b"}
    assert client.conversations.delete(conversation.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(conversation.id)


def test_an_answer_that_is_cut_is_incomplete(client: OpenAI) -> None:
    long = "say " + "word " * 40
    raw = client.responses.with_raw_response.create(model="scripted", input=long, max_output_tokens=16)
    response = checked(raw.http_response.content)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events, _ = streamed(client, input=long, max_output_tokens=16)
    assert events[-1].type == "response.incomplete"


def test_settings_come_back_as_they_were_given(client: OpenAI) -> None:
    settings: Any = {
        "temperature": 0.5, "top_p": 0.9, "metadata": {"a": "b"}, "max_output_tokens": 50, "instructions": "Short.",
        "tool_choice": {"type": "function", "name": "get_weather"}, "tools": [WEATHER],
        "truncation": "disabled", "store": True,
        "safety_identifier": "someone", "prompt_cache_key": "key",
    }  # fmt: skip
    raw = client.responses.with_raw_response.create(model="scripted", input="the weather?", **settings)
    plain = json.loads(raw.http_response.content)
    checked(raw.http_response.content)
    for name, value in settings.items():
        if name != "tools":
            assert plain[name] == value, name
    assert plain["tools"][0]["parameters"] == CITY


def test_a_stored_prompt_is_filled_in(client: OpenAI) -> None:
    body = {"prompt": "You speak {{ language }}.", "variables": ["language"]}
    prompt: Any = client.post("/prompts", body=body, cast_to=object)
    asked: Any = {"id": prompt["prompt_id"], "version": "1", "variables": {"language": "Norwegian"}}
    raw = client.responses.with_raw_response.create(model="scripted", input="say hi", prompt=asked)
    response = checked(raw.http_response.content)
    assert (response.output_text, response.prompt.id) == ("hi", prompt["prompt_id"])


def test_every_answer_has_the_id_of_its_request(client: OpenAI) -> None:
    assert client.responses.create(model="scripted", input="say hi")._request_id.startswith("req_")
    headers = {"x-request-id": "mine"}
    assert client.models.with_raw_response.list(extra_headers=headers).headers["x-request-id"] == "mine"


def test_errors_are_the_sdks_own_classes(either: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        either.responses.retrieve("resp_nobody")
    with pytest.raises(openai.NotFoundError):
        either.responses.create(model="scripted", input="x", previous_response_id="resp_nobody")
    with pytest.raises(openai.BadRequestError) as both:
        either.responses.create(model="scripted", input="x", previous_response_id="resp_a", conversation="conv_a")
    assert both.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as unknown:
        either.responses.create(model="scripted", input="x", extra_body={"colour": "red"})
    assert unknown.value.param == "colour"


def test_a_model_that_breaks_ends_the_stream_as_failed(client: OpenAI) -> None:
    form = {"format": {"type": "json_schema", "name": "any", "schema": {"type": "object"}}}
    events, final = streamed(client, input="say no JSON", text=form)
    assert events[-1].type == "response.failed"
    assert "response_format" in final.error.message
    assert final.status == "failed"


async def test_the_async_client_streams_and_parses() -> None:
    async with AsyncOpenAI(base_url=URL + "/v1", api_key="none", max_retries=0) as client:
        stream = await client.responses.create(model="scripted", input="say a b", stream=True)
        kinds = [event.type async for event in stream]
        assert kinds[-1] == "response.completed"
        parsed = await client.responses.parse(model="scripted", input="the heating is off", text_format=Ticket)
        assert parsed.output_parsed.urgency == "high"

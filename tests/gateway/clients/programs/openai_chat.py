"""What programs with the Python package `openai` do with models, chats, completions, embeddings and moderations."""

import asyncio
import json
import os
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion, CreateEmbeddingResponse, Model, ModerationCreateResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

URL = os.environ["GATEWAY_URL"]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


class Ticket(BaseModel):
    subject: str
    urgency: Literal["low", "high"]


@pytest.fixture(params=["/v1", "/v1/openai/v1"])
def client(request: pytest.FixtureRequest) -> OpenAI:
    return OpenAI(base_url=URL + request.param, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def v1() -> OpenAI:
    return OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **more}


def strictly(kind: type[BaseModel], raw: Any) -> Any:
    """The answer's own JSON must be what the SDK declares, without any leniency."""
    return kind.model_validate_json(raw.http_response.content, strict=True)


def test_models_are_listed_and_shown(client: OpenAI) -> None:
    listed = client.models.list()
    assert {"scripted", "words"} <= {model.id for model in listed}
    strictly(Model, client.models.with_raw_response.retrieve("scripted"))
    assert client.models.retrieve("scripted").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/model that/nobody has")


def test_a_whole_answer_is_what_the_sdk_declares(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**asked("say hello", seed=1, max_tokens=5, user="me"))
    answer = strictly(ChatCompletion, raw)
    assert answer.choices[0].message.content == "hello"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.id.startswith("chatcmpl-")


def test_every_chunk_is_what_the_sdk_declares(v1: OpenAI) -> None:
    with v1.chat.completions.with_streaming_response.create(
        **asked("say one two three", stream=True, stream_options={"include_usage": True})
    ) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(line, strict=True) for line in lines]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "one two three"
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_stream_says_the_same_as_a_whole_answer(client: OpenAI) -> None:
    with client.chat.completions.create(**asked("say one two three", stream=True)) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert not any(chunk.choices[0].finish_reason for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in chunks)


def test_the_sdks_own_stream_helper_collects_the_answer(client: OpenAI) -> None:
    with client.chat.completions.stream(**asked("the weather?", tools=[WEATHER])) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    call = final.choices[0].message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})


def test_parallel_calls_and_their_results_make_a_second_round(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "weather in both cities"}]
    tools = [WEATHER, {"type": "function", "function": {"name": "both", "parameters": CITY}}]
    first = client.chat.completions.create(model="twice", messages=messages, tools=tools, parallel_tool_calls=True)
    calls = first.choices[0].message.tool_calls
    assert first.choices[0].finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Oslo", "Rome"]
    assert len({call.id for call in calls}) == 2
    messages.append(first.choices[0].message)
    for call, word in zip(calls, ["rain", "sun"], strict=True):
        messages.append({"role": "tool", "tool_call_id": call.id, "content": word})
    second = client.chat.completions.create(model="twice", messages=messages, tools=tools)
    assert second.choices[0].message.content == "The tool says: sun"


def test_parallel_calls_stream_with_an_index_each(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="twice", messages=[{"role": "user", "content": "weather"}], tools=[WEATHER], stream=True
        )
    )
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert {piece.index for piece in pieces} == {0, 1}


@pytest.fixture(scope="module", autouse=True)
def _twice(v1: OpenAI) -> None:
    calls = [{"tool_name": "get_weather", "arguments": {"city": city}} for city in ("Oslo", "Rome")]
    script = [
        {"role": "user", "tools": True, "match": "weather", "tool_calls": calls},
        {"role": "tool", "reply": "The tool says: {0}"},
    ]
    body = {"model_id": "twice", "provider_id": "scripted", "metadata": {"script": script}}
    v1.post("/models", body=body, cast_to=object)


@pytest.fixture(scope="module", autouse=True)
def _guard(v1: OpenAI) -> None:
    shield = {"shield_id": "guard", "provider_id": "llama-guard", "provider_shield_id": "the-guard"}
    v1.post("/shields", body=shield, cast_to=object)


def test_structured_output_is_parsed_into_the_callers_class(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(**asked("the heating is off"), response_format=Ticket)
    assert parsed.choices[0].message.parsed == Ticket(subject="No heating", urgency="high")
    with client.chat.completions.stream(**asked("the heating is off"), response_format=Ticket) as stream:
        assert stream.get_final_completion().choices[0].message.parsed.urgency == "high"


def test_a_json_schema_is_kept_to(client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": Ticket.model_json_schema()}}
    answer = client.chat.completions.create(**asked("the heating is off"), response_format=form)
    assert Ticket.model_validate_json(answer.choices[0].message.content)


def test_several_answers_have_their_index(client: OpenAI) -> None:
    answer = client.chat.completions.create(**asked("say hi", n=2))
    assert [choice.index for choice in answer.choices] == [0, 1]
    chunks = list(client.chat.completions.create(**asked("say hi", n=2, stream=True)))
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["hi", "hi"]


def test_a_stored_chat_is_listed_changed_and_deleted(client: OpenAI) -> None:
    made = client.chat.completions.create(**asked("say keep me", store=True, metadata={"topic": "keeping"}))
    raw = client.chat.completions.with_raw_response.retrieve(made.id)
    assert strictly(ChatCompletion, raw).choices[0].message.content == "keep me"
    assert client.chat.completions.retrieve(made.id).usage == made.usage
    assert made.id in {one.id for one in client.chat.completions.list(metadata={"topic": "keeping"}, limit=1)}
    assert [one.content for one in client.chat.completions.messages.list(made.id)] == ["say keep me"]
    assert client.chat.completions.update(made.id, metadata={"topic": "kept"}).metadata == {"topic": "kept"}
    assert client.chat.completions.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made.id)


def test_stop_and_max_tokens_cut_an_answer(client: OpenAI) -> None:
    stopped = client.chat.completions.create(**asked("say one two three", stop=["three"]))
    assert (stopped.choices[0].message.content or "").strip() == "one two"
    cut = client.chat.completions.create(**asked("say one two three", max_completion_tokens=1))
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("one", "length")


def test_text_and_images_come_as_parts(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "say parts"}]
    answer = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == "parts"


def test_errors_are_the_sdks_own_classes(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
    assert missing.value.param == "model"
    assert missing.value.type == "not_found_error"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**asked("x", temperature=9))
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.APIError, match="the scripted engine broke"):
        list(client.chat.completions.create(**asked("break", stream=True)))


def test_embeddings_come_as_base64_and_as_numbers(client: OpenAI) -> None:
    packed = client.embeddings.create(model="words", input=["a b", "c"])  # asks for base64 by itself
    plain = client.embeddings.with_raw_response.create(model="words", input=["a b", "c"], encoding_format="float")
    numbers = strictly(CreateEmbeddingResponse, plain)
    for one, other in zip(packed.data, numbers.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert packed.usage.prompt_tokens == 3
    assert len(client.embeddings.create(model="words", input="one text").data) == 1
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="words", input="a", dimensions=4)
    assert refused.value.param == "dimensions"


def test_moderations_tell_what_they_think_of_each_input(client: OpenAI) -> None:
    raw = client.moderations.with_raw_response.create(model="the-guard", input=["fine", "a forbidden thing"])
    answer = strictly(ModerationCreateResponse, raw)
    assert [result.flagged for result in answer.results] == [False, True]


def test_completions_continue_texts(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model="scripted", prompt="say hello")
    assert strictly(Completion, raw).choices[0].text == "hello"
    both = client.completions.create(model="scripted", prompt=["say a", "say b"])
    assert [choice.text for choice in both.choices] == ["a", "b"]
    streamed = list(client.completions.create(model="scripted", prompt="say one two", stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == "one two"
    assert streamed[-1].choices[0].finish_reason == "stop"


async def test_many_async_chats_run_side_by_side() -> None:
    async with AsyncOpenAI(base_url=URL + "/v1", api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(*(client.chat.completions.create(**asked(f"say {n}")) for n in range(16)))
        assert [answer.choices[0].message.content for answer in answers] == [str(n) for n in range(16)]
        stream = await client.chat.completions.create(**asked("say a b", stream=True))
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "a b"

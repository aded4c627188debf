"""The scripted provider over gRPC: it obeys the contract that the real one obeys."""

import asyncio
import json

import pytest

from llamastack import v1
from stack_client.content import content, struct, text_of
from stack_client.errors import FailedPreconditionError, UnavailableError, UnsupportedError
from tests.inference.conftest import Node

WEATHER = v1.ToolDefinition(tool_name="get_weather")


async def test_an_answer_streams_word_by_word_and_equals_the_unary_one(scripted: Node) -> None:
    text = "slow " + " ".join(f"w{n}" for n in range(40))
    received = [event async for event in scripted.client.inference.stream_chat("scripted", text)]
    whole = await scripted.client.inference.chat("scripted", text)
    assert "".join(event.progress.delta.text for event in received) == text_of(whole.completion_message.content)
    assert whole.usage.completion_tokens == 40
    assert [event.sequence for event in received] == list(range(1, len(received) + 1))


async def test_tool_calls_stream_as_whole_calls_and_end_with_tool_calls(scripted: Node) -> None:
    received = [event async for event in scripted.client.inference.stream_chat("scripted", "weather?", tools=[WEATHER])]
    deltas = [event.progress.delta for event in received if event.WhichOneof("event") == "progress"]
    assert [delta.WhichOneof("delta") for delta in deltas] == ["text", "tool_call"]
    assert deltas[1].tool_call.parse_status == v1.TOOL_CALL_PARSE_STATUS_SUCCEEDED
    complete = received[-1].complete
    assert complete.finish_reason == v1.FINISH_REASON_TOOL_CALLS
    assert complete.stop_reason == v1.STOP_REASON_END_OF_MESSAGE
    assert list(complete.completion_message.tool_calls) == [deltas[1].tool_call.call]
    assert dict(deltas[1].tool_call.call.arguments) == {"city": "Oslo", "days": 3.0}
    assert json.loads(deltas[1].tool_call.call.arguments_json) == {"city": "Oslo", "days": 3}


@pytest.mark.parametrize(("config", "count"), [(v1.ToolConfig(parallel_tool_calls=False), 1), (None, 2)])
async def test_an_answer_is_held_to_one_call_streamed_and_whole(
    scripted: Node, config: v1.ToolConfig | None, count: int
) -> None:
    received = [
        event
        async for event in scripted.client.inference.stream_chat(
            "scripted", "both", tools=[WEATHER], tool_config=config
        )
    ]
    whole = await scripted.client.inference.chat("scripted", "both", tools=[WEATHER], tool_config=config)
    assert len(whole.completion_message.tool_calls) == count
    assert received[-1].complete.completion_message == whole.completion_message


async def test_without_tools_or_with_choice_none_nothing_is_called(scripted: Node) -> None:
    for options in ({}, {"tools": [WEATHER], "tool_config": v1.ToolConfig(tool_choice="none")}):
        answer = await scripted.client.inference.chat("scripted", "weather?", **options)  # type: ignore[arg-type]
        assert not answer.completion_message.tool_calls
        assert text_of(answer.completion_message.content) == "weather?"


async def test_a_tool_result_is_answered(scripted: Node) -> None:
    result = v1.Message(tool=v1.ToolResponseMessage(call_id="1", content=content("12 degrees")))
    answer = await scripted.client.inference.chat("scripted", ["weather?", result])
    assert text_of(answer.completion_message.content) == "The tool says: 12 degrees"


async def test_an_error_in_the_middle_of_a_stream_arrives_after_the_text_before_it(scripted: Node) -> None:
    seen = []
    with pytest.raises(UnavailableError, match="the script breaks here"):  # noqa: PT012 (the stream fails as it is read)
        async for event in scripted.client.inference.stream_chat("scripted", "break"):
            seen += [event.progress.delta.text]
    assert "".join(seen) == "half an"


async def test_two_hundred_streams_at_once_all_end_whole(scripted: Node) -> None:
    async def one(number: int) -> str:
        question = f"slow {number} " + "x " * 20
        return "".join([
            event.progress.delta.text async for event in scripted.client.inference.stream_chat("scripted", question)
        ])  # fmt: skip

    answers = await asyncio.gather(*(one(number) for number in range(200)))
    assert [answer.split()[0] for answer in answers] == [str(number) for number in range(200)]


async def test_what_a_script_cannot_do_is_refused(scripted: Node) -> None:
    message = v1.Message(user=v1.UserMessage(content=content("Hi")))
    asked = v1.ChatCompletionRequest(model_id="scripted", messages=[message])
    asked.logprobs.token_ids.append(1)
    with pytest.raises(UnsupportedError) as failure:
        await scripted.client.inference.ask(asked)
    assert failure.value.field == "logprobs.token_ids"
    with pytest.raises(UnsupportedError):
        await scripted.client.inference.tokenize("scripted", "Hi")


async def test_every_word_of_a_script_is_certain(scripted: Node) -> None:
    answer = await scripted.client.inference.chat("scripted", "Hi you", logprobs=2)
    assert [(one.chosen.token, one.chosen.logprob, len(one.top)) for one in answer.logprobs] == [
        ("Hi", 0.0, 1),
        (" you", 0.0, 1),
    ]


WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
}
FORMS = [
    v1.ResponseFormat(json_schema=struct(WEATHER_SCHEMA)),
    v1.ResponseFormat(json_object=v1.JsonObjectFormat()),
    v1.ResponseFormat(regex=r"\{.*\}"),
]


@pytest.mark.parametrize("form", FORMS, ids=["schema", "object", "regex"])
async def test_a_reply_of_the_form_that_was_asked_for_is_given(scripted: Node, form: v1.ResponseFormat) -> None:
    answer = await scripted.client.inference.chat("scripted", "as JSON", response_format=form)
    assert json.loads(text_of(answer.completion_message.content)) == {"city": "Oslo", "degrees": 18}


@pytest.mark.parametrize("form", FORMS, ids=["schema", "object", "regex"])
async def test_a_reply_of_another_form_fails_and_names_the_reply(scripted: Node, form: v1.ResponseFormat) -> None:
    with pytest.raises(FailedPreconditionError, match="reply 'in words' does not have the form"):
        await scripted.client.inference.chat("scripted", "in words", response_format=form)


async def test_half_a_form_is_no_form(scripted: Node) -> None:
    with pytest.raises(FailedPreconditionError):
        await scripted.client.inference.chat("scripted", '{"city": "Oslo", ', response_format=FORMS[0])


async def test_a_tool_call_needs_no_form(scripted: Node) -> None:
    answer = await scripted.client.inference.chat("scripted", "weather?", tools=[WEATHER], response_format=FORMS[0])
    assert answer.completion_message.tool_calls


async def test_scripted_embeddings_are_repeatable_and_show_shared_words(scripted: Node) -> None:
    a, b, c = await scripted.client.inference.embed("scripted-embed", ["red fox", "red fox", "tax law"])
    assert a == b != c
    assert len(a) == 16


async def test_a_draining_service_tells_its_streams_to_go_away_and_lets_them_end(scripted: Node) -> None:
    stream = scripted.client.inference.stream_chat("scripted", "slow " + "word " * 100)
    seen = []
    async with asyncio.TaskGroup() as group:
        async for event in stream:
            seen += [event.WhichOneof("event")]
            if seen.count("progress") == 1 and "go_away" not in seen and len(seen) == 2:
                group.create_task(scripted.hosted.drain())
    assert "go_away" in seen
    assert seen[-1] == "complete"

import math
from typing import Any

import pytest

from llamastack import v1
from stack_client import StackClient, content
from stack_client.errors import InvalidArgumentError, UnsupportedError


async def test_chat_answers_a_plain_string(client: StackClient) -> None:
    answer = await client.inference.chat("scripted", "say hello there")
    assert content.text_of(answer.completion_message.content) == "hello there"
    assert answer.finish_reason == v1.FINISH_REASON_STOP
    assert answer.usage.completion_tokens == 2


async def test_chat_answers_a_dialog_of_dictionaries(client: StackClient) -> None:
    dialog = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "say one"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "say two"},
    ]
    answer = await client.inference.chat("scripted", dialog)
    assert content.text_of(answer.completion_message.content) == "two"


async def test_chat_stops_at_max_tokens_and_says_so(client: StackClient) -> None:
    answer = await client.inference.chat("scripted", "say a b c d", max_tokens=2)
    assert content.text_of(answer.completion_message.content) == "a b"
    assert answer.finish_reason == v1.FINISH_REASON_LENGTH


async def test_stream_chat_sends_start_then_pieces_then_the_whole(client: StackClient) -> None:
    events = [event async for event in client.inference.stream_chat("scripted", "say red green blue")]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "start"
    assert set(kinds[1:-1]) == {"progress"}
    assert kinds[-1] == "complete"
    assert "".join(event.progress.delta.text for event in events[1:-1]) == "red green blue"
    assert content.text_of(events[-1].complete.completion_message.content) == "red green blue"
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_completion_continues_a_text(client: StackClient) -> None:
    answer = await client.inference.complete("scripted", "say more words", stop=" words")
    assert answer.content == "more"
    assert answer.finish_reason == v1.FINISH_REASON_STOP


async def test_stream_complete_ends_with_the_whole(client: StackClient) -> None:
    events = [event async for event in client.inference.stream_complete("scripted", "say x y")]
    assert "".join(event.progress.delta for event in events) == "x y"
    assert events[-1].complete.content == "x y"


async def test_embed_gives_a_unit_vector_per_text(client: StackClient) -> None:
    vectors = await client.inference.embed("words", ["a cat", "a cat", "stock market"])
    assert vectors[0] == vectors[1] != vectors[2]
    assert all(math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-6) for vector in vectors)


async def test_embed_takes_a_single_text(client: StackClient) -> None:
    assert len(await client.inference.embed("words", "a cat")) == 1


async def test_a_scripted_model_has_no_tokens(client: StackClient) -> None:
    with pytest.raises(UnsupportedError) as caught:
        await client.inference.tokenize("scripted", "text")
    assert caught.value.field == "model_id"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"temperature": 3.0}, "sampling_params.strategy.top_p.temperature"),
        ({"top_p": 1.5}, "sampling_params.strategy.top_p.top_p"),
        ({"top_k": 0}, "sampling_params.strategy.top_k.top_k"),
        ({"max_tokens": -1}, "sampling_params.max_tokens"),
        ({"stop": [""]}, "sampling_params.stop"),
    ],
)
async def test_sampling_out_of_range_is_refused_by_name(client: StackClient, wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await client.inference.chat("scripted", "say x", **wrong)
    assert caught.value.field == field


@pytest.mark.parametrize("with_temperature_zero", [{"top_p": 0.9}, {"top_k": 5}, {}])
def test_temperature_zero_means_greedy_whatever_else_is_set(with_temperature_zero: dict[str, float]) -> None:
    params = content.sampling(temperature=0.0, **with_temperature_zero)  # type: ignore[arg-type] # plain numbers
    assert params.strategy.WhichOneof("strategy") == "greedy"


def test_a_single_stop_string_is_not_taken_apart() -> None:
    assert list(content.sampling(stop="END").stop) == ["END"]


async def test_a_message_without_a_known_role_is_refused_before_the_call(client: StackClient) -> None:
    with pytest.raises(InvalidArgumentError, match="unknown role 'robot'"):
        await client.inference.chat("scripted", {"role": "robot", "content": "x"})
    with pytest.raises(InvalidArgumentError, match="'content' is missing"):
        await client.inference.chat("scripted", {"role": "user"})

"""What programs with the Python package `openai` ask of a real model: probabilities of tokens, ids, seeds."""

import os
import time
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

MOST_SECONDS = 60.0
CHAT: Any = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def client() -> OpenAI:
    client = OpenAI(base_url=os.environ["GATEWAY_URL"] + "/v1", api_key="none", max_retries=0)
    body = {"model_id": "small", "provider_id": "torch", "provider_model_id": "packaged:smollm2-135m"}
    client.post("/models", body=body, cast_to=object)
    end = time.monotonic() + MOST_SECONDS
    while client.models.retrieve("small").model_extra["state"] == "loading":
        assert time.monotonic() < end
        time.sleep(0.05)
    return client


def test_a_chat_tells_the_probabilities_of_its_tokens(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**CHAT, logprobs=True, top_logprobs=2)
    answer = ChatCompletion.model_validate_json(raw.http_response.content, strict=True)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(token.logprob == token.top_logprobs[0].logprob and len(token.top_logprobs) == 2 for token in tokens)
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == answer.choices[0].message.content


def test_a_streamed_chat_tells_them_too(client: OpenAI) -> None:
    whole = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=1)
    with client.chat.completions.with_streaming_response.create(
        **CHAT, logprobs=True, top_logprobs=1, stream=True
    ) as raw:
        lines = [line.removeprefix("data: ") for line in raw.iter_lines() if line.startswith("data: {")]
    chunks = [ChatCompletionChunk.model_validate_json(line, strict=True) for line in lines]
    told = [token.token for chunk in chunks if (probs := chunk.choices[0].logprobs) for token in probs.content or []]
    assert told == [token.token for token in whole.choices[0].logprobs.content]


def test_the_same_seed_says_the_same(client: OpenAI) -> None:
    lively = {**CHAT, "temperature": 1.5, "max_tokens": 12, "seed": 7}
    first, second = (client.chat.completions.create(**lively).choices[0].message.content for _ in range(2))
    assert first == second


def test_completions_tell_the_probabilities_of_their_tokens(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="small", prompt="The sky is", max_tokens=3, logprobs=2, temperature=0
    )
    choice = Completion.model_validate_json(raw.http_response.content, strict=True).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.text_offset) == 3
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)


def test_completions_echo_their_prompt(client: OpenAI) -> None:
    answer = client.completions.create(model="small", prompt="The sky is", max_tokens=2, echo=True, temperature=0)
    assert answer.choices[0].text.startswith("The sky is ")


def test_a_prompt_may_be_token_ids(client: OpenAI) -> None:
    ids = [504, 6376, 314]
    one = client.completions.create(model="small", prompt=ids, max_tokens=2, temperature=0)
    several = client.completions.create(model="small", prompt=[ids, ids], max_tokens=2, temperature=0)
    assert one.usage.prompt_tokens == 3
    assert [choice.text for choice in several.choices] == [one.choices[0].text] * 2


def test_a_prompt_that_is_too_long_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="small", prompt="word " * 9000)
    assert refused.value.code == "context_length_exceeded"

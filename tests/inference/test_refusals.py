"""What cannot be done is refused by name, before any work: every case that somebody will send sooner or later."""

from typing import Any

import grpc
import pytest

from llamastack import v1
from stack_client.content import content, struct
from stack_client.errors import InvalidArgumentError, NotFoundError, StackError, UnsupportedError, from_rpc_error
from tests.inference.conftest import Node

SMOL = "smollm2-135m"
HI = v1.Message(user=v1.UserMessage(content=content("Hi")))
IMAGE = v1.InterleavedContent(
    items=[v1.ContentItem(image=v1.ImageContent(url=v1.URL(uri="https://example.com/a.png")))]
)
TOOL = v1.ToolDefinition(tool_name="f")


def greedy(**params: Any) -> dict[str, Any]:
    return {"sampling_params": v1.SamplingParams(**params)}


def nucleus(**params: Any) -> dict[str, Any]:
    return greedy(strategy=v1.SamplingStrategy(top_p=v1.TopPSamplingStrategy(**params)))


def top_k(**params: Any) -> dict[str, Any]:
    return greedy(strategy=v1.SamplingStrategy(top_k=v1.TopKSamplingStrategy(**params)))


REFUSED: list[tuple[dict[str, Any], type[StackError], str]] = [
    ({"model_id": ""}, InvalidArgumentError, "model_id"),
    ({"model_id": "llama-9b"}, NotFoundError, "model_id"),
    ({"model_id": "all-minilm-l6-v2"}, InvalidArgumentError, "model_id"),
    ({"messages": []}, InvalidArgumentError, "messages"),
    ({"messages": [v1.Message()]}, InvalidArgumentError, "messages[0]"),
    ({"messages": [v1.Message(user=v1.UserMessage(content=IMAGE))]},
     UnsupportedError, "messages[0].user.content.items[0].image"),
    ({"messages": [v1.Message(user=v1.UserMessage(content=v1.InterleavedContent(items=[v1.ContentItem()])))]},
     InvalidArgumentError, "messages[0].user.content.items[0]"),
    (nucleus(temperature=-1), InvalidArgumentError, "sampling_params.strategy.top_p.temperature"),
    (nucleus(temperature=0), InvalidArgumentError, "sampling_params.strategy.top_p.temperature"),
    (nucleus(temperature=2.5), InvalidArgumentError, "sampling_params.strategy.top_p.temperature"),
    (nucleus(temperature=float("nan")), InvalidArgumentError, "sampling_params.strategy.top_p.temperature"),
    (nucleus(top_p=0), InvalidArgumentError, "sampling_params.strategy.top_p.top_p"),
    (nucleus(top_p=1.5), InvalidArgumentError, "sampling_params.strategy.top_p.top_p"),
    (top_k(top_k=0), InvalidArgumentError, "sampling_params.strategy.top_k.top_k"),
    (greedy(max_tokens=-1), InvalidArgumentError, "sampling_params.max_tokens"),
    (greedy(max_tokens=8192), InvalidArgumentError, "messages"),
    (greedy(repetition_penalty=0), InvalidArgumentError, "sampling_params.repetition_penalty"),
    (greedy(frequency_penalty=3), InvalidArgumentError, "sampling_params.frequency_penalty"),
    (greedy(presence_penalty=-3), InvalidArgumentError, "sampling_params.presence_penalty"),
    (greedy(logit_bias={1: 200}), InvalidArgumentError, "sampling_params.logit_bias[1]"),
    (greedy(stop=[""]), InvalidArgumentError, "sampling_params.stop"),
    (greedy(stop=["x"] * 17), InvalidArgumentError, "sampling_params.stop"),
    ({"logprobs": v1.LogProbConfig(top_k=21)}, InvalidArgumentError, "logprobs.top_k"),
    ({"n": 0}, InvalidArgumentError, "n"),
    ({"n": 17}, InvalidArgumentError, "n"),
    ({"priority": 101}, InvalidArgumentError, "priority"),
    ({"priority": -101}, InvalidArgumentError, "priority"),
    ({"input_shields": ["llama-guard"]}, UnsupportedError, "input_shields"),
    ({"output_shields": ["llama-guard"]}, UnsupportedError, "output_shields"),
    ({"tools": [v1.ToolDefinition()]}, InvalidArgumentError, "tools[0].tool_name"),
    ({"tools": [TOOL, TOOL]}, InvalidArgumentError, "tools[1].tool_name"),
    ({"tool_config": v1.ToolConfig(tool_choice="required")}, InvalidArgumentError, "tool_config.tool_choice"),
    ({"tools": [TOOL], "tool_config": v1.ToolConfig(tool_choice="g")},
     InvalidArgumentError, "tool_config.tool_choice"),
    ({"tools": [TOOL], "tool_config": v1.ToolConfig(tool_choice="f"), "response_format":
      v1.ResponseFormat(json_object=v1.JsonObjectFormat())}, InvalidArgumentError, "response_format"),
    ({"tools": [TOOL],
      "tool_config": v1.ToolConfig(tool_choice="f", tool_prompt_format=v1.TOOL_PROMPT_FORMAT_PYTHON_LIST)},
     UnsupportedError, "tool_config.tool_prompt_format"),
    ({"tools": [TOOL], "tool_config": v1.ToolConfig(tool_prompt_format=v1.TOOL_PROMPT_FORMAT_FUNCTION_TAG)},
     UnsupportedError, "tool_config.tool_prompt_format"),
    ({"tools": [v1.ToolDefinition(tool_name="f", input_schema=struct({"properties": {"x": {"type": "foo"}}}))]},
     InvalidArgumentError, "tools[0].input_schema.properties.x"),
    ({"tool_config": v1.ToolConfig(system_message_behavior=v1.SYSTEM_MESSAGE_BEHAVIOR_REPLACE)}, UnsupportedError,
     "tool_config.system_message_behavior"),
]  # fmt: skip


def chat_request(change: dict[str, Any]) -> v1.ChatCompletionRequest:
    return v1.ChatCompletionRequest(**{"model_id": SMOL, "messages": [HI], **change})


@pytest.mark.parametrize(("change", "kind", "field"), REFUSED, ids=[f"{case[2]}-{i}" for i, case in enumerate(REFUSED)])
async def test_a_request_is_refused_naming_the_field(
    real: Node, change: dict[str, Any], kind: type[StackError], field: str
) -> None:
    stub = v1.InferenceServiceStub(real.client.channel("inference"))
    request = chat_request(change)
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await stub.ChatCompletion(request)
    before = []
    with pytest.raises(grpc.aio.AioRpcError) as streamed:  # noqa: PT012 (the stream fails as it is read)
        async for event in stub.StreamChatCompletion(v1.StreamChatCompletionRequest(request=request)):
            before += [event]
    assert not before  # a stream that was never admitted has no start
    for failure in (unary, streamed):
        error = from_rpc_error(failure.value)
        assert type(error) is kind
        assert error.field == field
        assert error.message


async def test_an_unknown_model_names_those_that_are_served(real: Node) -> None:
    with pytest.raises(
        NotFoundError, match=r"no model 'llama-9b'; this stack serves: all-minilm-l6-v2, scripted, smollm2-135m"
    ):
        await real.client.inference.chat("llama-9b", "Hi")


async def test_a_prompt_longer_than_the_context_says_how_long_it_is(real: Node) -> None:
    with pytest.raises(InvalidArgumentError) as failure:
        await real.client.inference.chat(SMOL, "word " * 9000)
    assert failure.value.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert int(failure.value.metadata["prompt_tokens"]) > 9000
    assert failure.value.metadata["context_length"] == "8192"


async def test_text_that_is_not_utf8_is_refused_as_such(real: Node) -> None:
    broken = chat_request({}).SerializeToString().replace(b"Hi", b"\xff\xfe")
    call = real.client.channel("inference").unary_unary("/llamastack.v1.InferenceService/ChatCompletion")  # type: ignore[call-arg] # bytes in, bytes out
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(broken)
    error = from_rpc_error(failure.value)
    assert isinstance(error, InvalidArgumentError)
    assert "UTF-8" in error.message


async def test_a_message_of_100_mb_is_refused_and_the_next_call_works(real: Node) -> None:
    stub = v1.InferenceServiceStub(real.client.channel("inference"))
    huge = v1.Message(user=v1.UserMessage(content=content("x" * 100_000_000)))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.ChatCompletion(v1.ChatCompletionRequest(model_id=SMOL, messages=[huge]))
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await real.client.inference.chat(SMOL, "Hi", max_tokens=1)).usage.completion_tokens == 1


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("Embed", v1.EmbedRequest(model_id="all-minilm-l6-v2"), "contents"),
        ("Embed", v1.EmbedRequest(model_id=SMOL, contents=[content("x")]), "model_id"),
        ("Embed", v1.EmbedRequest(model_id="all-minilm-l6-v2", contents=[content("x")], output_dimension=8),
         "output_dimension"),
        ("Rerank", v1.RerankRequest(model=SMOL), "model"),
        ("Classify", v1.ClassifyRequest(model_id=SMOL, texts=["x"]), "model_id"),
        ("Tokenize", v1.TokenizeRequest(model_id=SMOL), "input"),
        ("Detokenize", v1.DetokenizeRequest(model_id=SMOL, token_ids=[49_152]), "token_ids[0]"),
        ("Completion", v1.CompletionRequest(model_id=SMOL), "content"),
        ("Completion", v1.CompletionRequest(model_id=SMOL, token_ids=[-1]), "token_ids[0]"),
        ("Completion", v1.CompletionRequest(model_id=SMOL, token_ids=[1], content=content("x")), "token_ids"),
        ("BatchChatCompletion", v1.BatchChatCompletionRequest(model_id=SMOL), "messages_batch"),
        ("BatchCompletion", v1.BatchCompletionRequest(model_id=SMOL), "content_batch"),
    ],
)  # fmt: skip
async def test_the_other_calls_refuse_naming_the_field(real: Node, method: str, request_: Any, field: str) -> None:
    stub = v1.InferenceServiceStub(real.client.channel("inference"))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await getattr(stub, method)(request_)
    assert from_rpc_error(failure.value).field == field

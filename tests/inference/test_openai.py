"""The openai provider against llama.cpp's own server, a real OpenAI-compatible endpoint in a process of its own."""

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from services.inference.config import Dialect, EndpointConfig
from services.inference.providers.openai.answers import StreamReader
from services.inference.providers.openai.endpoint import Endpoint
from services.inference.providers.openai.requests import chat_body, completion_body
from services.llama.checkpoint import find_packaged
from stack_client.calls import unary
from stack_client.content import content, text_of
from stack_client.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
    UnsupportedError,
)
from tests.inference.conftest import Node, running_node
from tests.stacks import environment

pytest.importorskip("xllamacpp", reason="llama.cpp's server is not installed (extra dev)")

KEY = "the-key"
WEATHER = v1.ToolDefinition(
    tool_name="get_weather",
    description="The weather of a city",
    parameters={"city": v1.ToolParamDefinition(param_type="string")},
)
JSON_TOOLS = v1.ToolConfig(tool_prompt_format=v1.TOOL_PROMPT_FORMAT_JSON)
ONE = v1.SamplingParams(max_tokens=12)


@dataclass
class LlamaServer:
    """llama.cpp's server."""

    process: "subprocess.Popen[str]"
    url: str

    def busy_slots(self) -> int:
        request = urllib.request.Request(f"{self.url}/slots", headers={"authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return sum(slot["is_processing"] for slot in json.load(answer))


@contextmanager
def llama_process(kind: str = "chat", port: int = 0) -> Iterator["subprocess.Popen[str]"]:
    try:
        file = find_packaged("smollm2-135m")
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    script = str(Path(__file__).parent / "llama_server.py")
    command = [sys.executable, script, str(file), "smol", kind, str(port), KEY]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def llama_server(kind: str = "chat") -> Iterator[LlamaServer]:
    with llama_process(kind) as process:
        assert process.stdout is not None
        yield LlamaServer(process, process.stdout.readline().strip())


@pytest.fixture(scope="session", autouse=True)
def keys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_LLAMA_KEY", KEY)
        patch.setenv("TEST_WRONG_KEY", "wrong")
        yield


@pytest.fixture(scope="session")
def server() -> Iterator[LlamaServer]:
    with llama_server() as server:
        yield server


def endpoints(url: str, **changes: Any) -> dict[str, Any]:
    """Endpoints of a node: the same server in llama.cpp's dialect and as plain OpenAI."""
    common = {"base_url": f"{url}/v1", "api_key_env": "TEST_LLAMA_KEY", "wait_seconds": 0, **changes}
    return {"llama": {**common, "dialect": "llamacpp"}, "plain": common}


def remote(model_id: str, endpoint: str, **changes: Any) -> dict[str, Any]:
    return {
        "model_id": model_id, "provider_id": "openai", "provider_model_id": "smol", "metadata": {"endpoint": endpoint},
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="session")
async def node(server: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node whose models run at the server."""
    models = [remote("smol", "llama"), remote("plain", "plain")]
    async with running_node(
        tmp_path_factory.mktemp("openai"), models, openai={"endpoints": endpoints(server.url)}
    ) as node:
        yield node


async def test_the_streamed_answer_equals_the_unary_one(node: Node) -> None:
    for model in ("smol", "plain"):
        whole = await node.client.inference.chat(model, "Tell me about foxes.", max_tokens=24)
        events = [e async for e in node.client.inference.stream_chat(model, "Tell me about foxes.", max_tokens=24)]
        text = text_of(whole.completion_message.content)
        assert text
        assert "".join(event.progress.delta.text for event in events) == text
        assert whole.finish_reason == events[-1].complete.finish_reason == v1.FINISH_REASON_LENGTH
        assert whole.completion_message.stop_reason == v1.STOP_REASON_OUT_OF_TOKENS
        assert whole.usage.completion_tokens == events[-1].complete.usage.completion_tokens == 24
        assert whole.usage.prompt_tokens > 5


async def test_the_models_facts_come_from_the_endpoint(node: Node) -> None:
    model = await node.client.models.get("smol")
    assert model.state == v1.MODEL_STATE_READY
    assert dict(model.metadata)["context_length"] == 1024


async def test_a_completion_continues_text_and_token_ids_alike(node: Node) -> None:
    ids = await node.client.inference.tokenize("smol", "The capital of France is")
    by_text = await node.client.inference.complete("smol", "The capital of France is", max_tokens=4)
    request = v1.CompletionRequest(model_id="smol", token_ids=ids, sampling_params=v1.SamplingParams(max_tokens=4))
    by_ids = await stub(node).Completion(request)
    assert by_text.content == by_ids.content
    assert "Paris" in by_text.content
    assert by_ids.usage.prompt_tokens == len(ids)


async def test_tokens_go_there_and_back(node: Node) -> None:
    ids = await node.client.inference.tokenize("smol", "Hello world")
    assert await node.client.inference.detokenize("smol", ids) == "Hello world"
    dialog = v1.Dialog(messages=[user("Hello world")])
    longer = await stub(node).Tokenize(v1.TokenizeRequest(model_id="smol", dialog=dialog))
    assert len(longer.token_ids) > len(ids)
    assert longer.max_context == 1024
    with pytest.raises(UnsupportedError, match="has no call for token ids"):
        await node.client.inference.tokenize("plain", "Hello world")


async def test_a_tool_call_is_put_together_from_its_pieces(node: Node) -> None:
    dialog: list[v1.Message] = []
    for city in ("Rome", "Paris", "Berlin"):  # so small a model calls by example only
        call = v1.ToolCall(call_id=city, tool_name="get_weather", arguments_json=json.dumps({"city": city}))
        dialog += [
            user(f"weather in {city}?"),
            v1.Message(assistant=v1.CompletionMessage(tool_calls=[call])),
            v1.Message(tool=v1.ToolResponseMessage(call_id=city, content=content("sunny"))),
        ]
    request = v1.ChatCompletionRequest(
        model_id="smol", messages=[*dialog, user("weather in Oslo?")], tools=[WEATHER],
        tool_config=v1.ToolConfig(tool_choice="get_weather"), sampling_params=v1.SamplingParams(max_tokens=60),
    )  # fmt: skip
    events = [e async for e in stub(node).StreamChatCompletion(v1.StreamChatCompletionRequest(request=request))]
    [call] = events[-1].complete.completion_message.tool_calls
    assert call.tool_name == "get_weather"
    assert call.call_id
    assert list(dict(call.arguments)) == ["city"]
    assert json.loads(call.arguments_json) == dict(call.arguments)
    assert events[-1].complete.finish_reason == v1.FINISH_REASON_TOOL_CALLS
    assert events[-1].complete.completion_message.stop_reason == v1.STOP_REASON_END_OF_MESSAGE


async def test_a_schema_and_a_choice_are_kept(node: Node) -> None:
    schema: dict[str, Any] = {
        "type": "object", "required": ["age", "kind"], "additionalProperties": False,
        "properties": {"age": {"type": "integer", "maximum": 99}, "kind": {"enum": ["fox", "owl"]}},
    }  # fmt: skip
    asked = v1.ResponseFormat()
    asked.json_schema.update(schema)
    for model in ("smol", "plain"):
        request = v1.ChatCompletionRequest(
            model_id=model, messages=[user("Describe an animal.")], response_format=asked,
            sampling_params=v1.SamplingParams(max_tokens=60),
        )  # fmt: skip
        answer = json.loads(text_of((await stub(node).ChatCompletion(request)).completion_message.content))
        assert isinstance(answer["age"], int)
        assert answer["kind"] in {"fox", "owl"}
    choice = v1.ResponseFormat(choice=v1.ChoiceFormat(choices=['sí "quoted"', "nej\\"]))
    request = v1.ChatCompletionRequest(model_id="smol", messages=[user("Yes?")], response_format=choice)
    answer = await stub(node).ChatCompletion(request)
    assert text_of(answer.completion_message.content) in choice.choice.choices


async def test_log_probabilities_come_with_every_token(node: Node) -> None:
    for top in (0, 2):
        logprobs = v1.LogProbConfig(top_k=top)
        chat = v1.ChatCompletionRequest(model_id="smol", messages=[user("Hi")], sampling_params=ONE, logprobs=logprobs)
        text = v1.CompletionRequest(model_id="smol", content=content("One two"), sampling_params=ONE, logprobs=logprobs)
        answer, continuation = await stub(node).ChatCompletion(chat), await stub(node).Completion(text)
        said = text_of(answer.completion_message.content)
        for positions, whole in ((answer.logprobs, said), (continuation.logprobs, continuation.content)):
            assert "".join(position.chosen.token for position in positions) == whole
            assert all(position.chosen.logprob <= 0 and position.chosen.token_id > 0 for position in positions)
            assert all(len(position.top) == top for position in positions)


async def test_several_answers_and_seeds_repeat(node: Node) -> None:
    sampling = v1.SamplingParams(
        max_tokens=12, seed=7, strategy=v1.SamplingStrategy(top_k=v1.TopKSamplingStrategy(top_k=20)),
        repetition_penalty=1.1,
    )  # fmt: skip
    request = v1.ChatCompletionRequest(model_id="smol", messages=[user("Sing!")], n=2, sampling_params=sampling)
    one, two = [await stub(node).ChatCompletion(request) for _ in range(2)]
    texts = [[text_of(choice.completion_message.content) for choice in answer.choices] for answer in (one, two)]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sampling_params": v1.SamplingParams(repetition_penalty=1.2)}, "sampling_params.repetition_penalty"),
        ({"response_format": v1.ResponseFormat(regex="a+")}, "response_format.regex"),
        ({"response_format": v1.ResponseFormat(choice=v1.ChoiceFormat(choices=["a"]))}, "response_format.choice"),
        ({"response_format": v1.ResponseFormat(grammar=v1.Grammar(lark="start: A"))}, "response_format.grammar"),
        ({"tool_config": JSON_TOOLS}, "tool_config.tool_prompt_format"),
    ],
)  # fmt: skip
async def test_what_openai_has_no_word_for_is_refused_by_name(node: Node, change: dict[str, Any], field: str) -> None:
    request = v1.ChatCompletionRequest(model_id="plain", messages=[user("Hi")], **change)
    with pytest.raises(UnsupportedError) as refused:
        await unary(stub(node).ChatCompletion(request))
    assert refused.value.field == field


async def test_a_prompt_that_is_too_long_is_the_callers_to_shorten(node: Node) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await node.client.inference.chat("smol", "word " * 3000, max_tokens=1)
    assert refused.value.reason == "CONTEXT_LENGTH_EXCEEDED"


async def test_what_the_endpoints_model_cannot_read_is_unsupported(node: Node) -> None:
    image = v1.ContentItem(image=v1.ImageContent(data=b"\x89PNG rest"))
    message = v1.Message(user=v1.UserMessage(content=v1.InterleavedContent(items=[image])))
    with pytest.raises(UnsupportedError, match="image input is not supported"):
        await unary(stub(node).ChatCompletion(v1.ChatCompletionRequest(model_id="smol", messages=[message])))


async def test_embeddings_come_one_per_text(tmp_path: Path) -> None:
    with llama_server("embedding") as server:
        models = [remote("vectors", "llama", model_type="embedding")]
        async with running_node(tmp_path, models, openai={"endpoints": endpoints(server.url)}) as node:
            assert dict((await node.client.models.get("vectors")).metadata)["embedding_dimension"] == 576
            vectors = await node.client.inference.embed("vectors", ["a fox", "an owl", "a fox"])
            assert vectors[0] == pytest.approx(vectors[2], abs=1e-3)
            assert vectors[0] != pytest.approx(vectors[1], abs=1e-3)
            with pytest.raises(UnsupportedError, match="text_truncation"):
                await node.client.inference.embed("vectors", ["a"], text_truncation=v1.TEXT_TRUNCATION_END)


async def test_leaving_a_stream_frees_the_endpoints_slot(node: Node, server: LlamaServer) -> None:
    async with node.client.inference.stream_chat("smol", "Count to a thousand.", max_tokens=900) as events:
        async for event in events:
            if event.progress.delta.text:
                break
        assert await asyncio.to_thread(server.busy_slots) == 1
    async with asyncio.timeout(10):
        while await asyncio.to_thread(server.busy_slots):
            pass


async def test_a_server_that_is_killed_ends_streams_with_unavailable(tmp_path: Path) -> None:
    with llama_server() as server:
        async with running_node(
            tmp_path, [remote("smol", "llama")], openai={"endpoints": endpoints(server.url)}
        ) as node:
            with pytest.raises(UnavailableError, match="broke off its answer"):  # noqa: PT012 (fails as it is read)
                async for event in node.client.inference.stream_chat("smol", "Count!", max_tokens=900):
                    if event.progress.delta.text:
                        server.process.kill()
            with pytest.raises(UnavailableError, match="cannot be reached"):
                await node.client.inference.chat("smol", "Hi", max_tokens=1)


async def test_more_than_the_endpoint_may_have_in_flight_is_refused(server: LlamaServer, tmp_path: Path) -> None:
    providers = {"openai": {"endpoints": endpoints(server.url, max_in_flight=1)}}
    async with running_node(tmp_path, [remote("smol", "llama")], **providers) as node:
        async with node.client.inference.stream_chat("smol", "Count!", max_tokens=900) as events:
            await anext(events)
            with pytest.raises(ResourceExhaustedError) as refused:
                await node.client.inference.chat("smol", "Hi", max_tokens=1)
            assert refused.value.retry_after == 1.0


async def test_models_that_cannot_be_served_say_why(server: LlamaServer, tmp_path: Path) -> None:
    places = {
        **endpoints(server.url),
        "locked": {"base_url": f"{server.url}/v1", "api_key_env": "TEST_WRONG_KEY", "wait_seconds": 0},
        "nobody": {"base_url": "http://127.0.0.1:9/v1", "wait_seconds": 0},
    }
    models = [
        remote("unknown", "llama", provider_model_id="gpt-9"),
        remote("away", "nobody"),
        remote("nowhere", "elsewhere"),
        remote("locked", "locked"),
        {"model_id": "scripted", "provider_id": "scripted"},
    ]
    async with running_node(tmp_path, models, openai={"endpoints": places}) as node:
        said = {model.identifier: model.state_message for model in await node.client.models.list()}
        assert "has no model 'gpt-9'; it lists: smol" in said["unknown"]
        assert "cannot be reached" in said["away"]
        assert "there is no endpoint 'elsewhere'" in said["nowhere"]


async def test_a_model_waits_for_its_endpoint_to_start(tmp_path: Path, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    providers = {"openai": {"endpoints": endpoints(url, wait_seconds=30)}}
    with llama_process(port=unused_tcp_port):  # begins to listen while the node asks
        async with running_node(tmp_path, [remote("smol", "llama")], **providers) as node:
            assert (await node.client.models.wait_ready("smol", timeout=30)).state == v1.MODEL_STATE_READY


def test_an_endpoint_that_could_not_be_used_is_refused_by_the_configuration() -> None:
    with pytest.raises(ValueError, match="api_key_env: the environment variable NOT_SET_ANYWHERE is not set"):
        EndpointConfig(base_url="http://there/v1", api_key_env="NOT_SET_ANYWHERE")
    with pytest.raises(ValueError, match="base_url: 'there:80' is no URL"):
        EndpointConfig(base_url="there:80")


def test_the_endpoints_errors_become_ours() -> None:
    endpoint = Endpoint("there", EndpointConfig(base_url="http://there/v1"))
    expected: Sequence[tuple[int, type[StackError]]] = [
        (400, InvalidArgumentError), (401, FailedPreconditionError), (403, FailedPreconditionError),
        (404, NotFoundError), (422, InvalidArgumentError), (429, ResourceExhaustedError), (500, UnavailableError),
        (501, UnsupportedError), (503, UnavailableError),
    ]  # fmt: skip
    for status, kind in expected:
        with pytest.raises(kind, match=r"there.*too many cooks") as refused:
            endpoint.refuse(status, '{"error": {"message": "too many cooks"}}', {"retry-after": "7"})
        assert type(refused.value) is kind
        assert refused.value.retry_after == (7.0 if status in {429, 500, 503} else None)


@pytest.mark.parametrize("dialect", ["openai", "vllm", "sglang", "llamacpp"])
def test_sampling_says_the_same_in_every_dialect(dialect: Dialect) -> None:
    top_p = v1.SamplingStrategy(top_p=v1.TopPSamplingStrategy(temperature=0.5, top_p=0.9))
    sampling = v1.SamplingParams(
        strategy=top_p, max_tokens=5, stop=["x"], seed=3, frequency_penalty=0.5, logit_bias={4: 2.0}
    )
    request = v1.ChatCompletionRequest(messages=[user("Hi")], sampling_params=sampling)
    body = chat_body(request, model="m", dialect=dialect, context=99)
    common = {
        "model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5, "max_tokens": 5, "seed": 3,
        "stop": ["x"], "frequency_penalty": 0.5, "logit_bias": {"4": 2.0}, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    neutral: dict[Dialect, dict[str, Any]] = {
        "openai": {},
        "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
        "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
        "llamacpp": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "repeat_last_n": 99},
    }
    assert body.pop("top_p") == pytest.approx(0.9)
    assert body == {**common, **neutral[dialect]}


@pytest.mark.parametrize("dialect", ["openai", "sglang", "llamacpp"])
def test_a_priority_is_refused_by_endpoints_that_have_none(dialect: Dialect) -> None:
    chat = v1.ChatCompletionRequest(messages=[user("Hi")], priority=3)
    assert chat_body(chat, model="m", dialect="vllm")["priority"] == -3  # its lower numbers go first
    with pytest.raises(UnsupportedError, match="priority"):
        chat_body(chat, model="m", dialect=dialect)
    text = v1.CompletionRequest(content=content("a"), priority=3, sampling_params=v1.SamplingParams(max_tokens=1))
    with pytest.raises(UnsupportedError, match="priority"):
        completion_body(text, model="m", dialect=dialect)


def test_completions_without_a_limit_are_refused_where_the_endpoint_has_its_own() -> None:
    request = v1.CompletionRequest(content=content("a"))
    assert completion_body(request, model="m", dialect="llamacpp")["max_tokens"] == -1
    with pytest.raises(UnsupportedError, match="max_tokens"):
        completion_body(request, model="m", dialect="openai")


def test_images_go_along_as_data() -> None:
    image = v1.ContentItem(image=v1.ImageContent(data=b"\x89PNG rest"))
    request = v1.ChatCompletionRequest(
        messages=[v1.Message(user=v1.UserMessage(content=v1.InterleavedContent(items=[image])))]
    )
    [part] = chat_body(request, model="m", dialect="openai")["messages"][0]["content"]
    assert part["image_url"]["url"].startswith("data:image/png;base64,")
    image.image.url.uri = "file:///etc/passwd"
    with pytest.raises(InvalidArgumentError, match="no http, https or data URL"):
        chat_body(
            v1.ChatCompletionRequest(
                messages=[v1.Message(user=v1.UserMessage(content=v1.InterleavedContent(items=[image])))]
            ),
            model="m",
            dialect="openai",
        )


class Heard:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls: list[v1.ToolCall] = []
        self.logprobs: list[v1.TokenLogProbs] = []

    def admitted(self) -> None:
        """Not asked for."""

    def text(self, text: str, *, tokens: int, logprobs: Sequence[v1.TokenLogProbs] = ()) -> None:
        self.texts.append(text)
        self.logprobs.extend(logprobs)

    def tool_call(self, call: v1.ToolCall) -> None:
        self.calls.append(call)


def test_a_call_that_was_cut_is_text() -> None:
    heard = Heard()
    reader = StreamReader(heard, top_logprobs=None)
    piece = {"index": 0, "id": "1", "function": {"name": "f", "arguments": '{"a": '}}
    reader.read({"choices": [{"delta": {"tool_calls": [piece]}, "finish_reason": "length"}]})
    assert reader.end().finish_reason == v1.FINISH_REASON_LENGTH
    assert (heard.texts, heard.calls) == (['f({"a": )'], [])


def test_one_call_at_a_time_is_passed_on_and_kept_to_whatever_the_endpoint_does() -> None:
    request = v1.ChatCompletionRequest(
        messages=[user("x")],
        tools=[v1.ToolDefinition(tool_name="f")],
        tool_config=v1.ToolConfig(parallel_tool_calls=False),
    )
    assert chat_body(request, model="m", dialect="openai")["parallel_tool_calls"] is False
    request.tool_config.ClearField("parallel_tool_calls")
    assert "parallel_tool_calls" not in chat_body(request, model="m", dialect="openai")
    heard = Heard()
    reader = StreamReader(heard, top_logprobs=None, several_calls=False)
    pieces = [{"index": index, "id": str(index), "function": {"name": "f", "arguments": "{}"}} for index in range(2)]
    reader.read({"choices": [{"delta": {"tool_calls": pieces}, "finish_reason": "tool_calls"}]})
    assert reader.end().finish_reason == v1.FINISH_REASON_TOOL_CALLS
    assert [call.call_id for call in heard.calls] == ["0"]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_that_an_endpoint_tells_apart_stand_before_the_answer_where_they_are_asked_for(name: str) -> None:
    deltas = [{name: "I "}, {name: "wonder."}, {"content": "Hello"}, {"content": " there"}]
    for asked, text in ((True, "<think>I wonder.</think>\n\nHello there"), (False, "Hello there")):
        heard = Heard()
        reader = StreamReader(heard, top_logprobs=None, thoughts=asked)
        for delta in deltas:
            reader.read({"choices": [{"delta": delta}]})
        reader.read({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        reader.end()
        assert "".join(heard.texts) == text


def test_the_older_form_of_log_probabilities_is_read_too() -> None:
    heard = Heard()
    given = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -2.0, "a": -0.5}]}
    StreamReader(heard, top_logprobs=1).read({"choices": [{"text": "a", "logprobs": given}]})
    [position] = heard.logprobs
    assert (position.chosen.token, position.chosen.logprob, [other.token for other in position.top]) == (
        "a",
        -0.5,
        ["a"],
    )


def test_an_answer_without_an_end_is_an_error() -> None:
    reader = StreamReader(Heard(), top_logprobs=None)
    reader.read({"choices": [{"delta": {"content": "a"}, "finish_reason": "abort"}]})
    with pytest.raises(UnavailableError, match="abort"):
        reader.end()


def user(text: str) -> v1.Message:
    return v1.Message(user=v1.UserMessage(content=content(text)))


def stub(node: Node) -> Any:
    return v1.InferenceServiceStub(node.client.channel("inference"))


@pytest.mark.parametrize("form", ["chat", "completion"])
def test_tokens_asked_for_are_read_from_a_vllms_answer(form: str) -> None:
    others = {"token_id:5": -0.5, "token_id:9": -7.0, "token_id:3": -3.0}
    given: dict[str, Any] = {"tokens": ["token_id:5"], "token_logprobs": [-0.5], "top_logprobs": [others]}
    if form == "chat":
        top = [{"token": name, "logprob": value} for name, value in others.items()]
        given = {"content": [{"token": "token_id:5", "logprob": -0.5, "top_logprobs": top}]}
    heard = Heard()
    chunk = {"choices": [{"text": "word", "logprobs": given}]}
    StreamReader(heard, top_logprobs=0, asked={9: "nine", 3: "three"}).read(chunk)
    [position] = heard.logprobs
    assert (position.chosen.token, position.chosen.token_id) == ("word", 5)
    assert [(entry.token, entry.token_id, entry.logprob) for entry in position.asked] == [
        ("nine", 9, -7.0),
        ("three", 3, -3.0),
    ]
    with pytest.raises(UnsupportedError, match=r"logprobs\.token_ids"):
        StreamReader(heard, top_logprobs=0, asked={4: "four"}).read(chunk)


def test_tokens_are_asked_for_in_vllms_words_and_refused_elsewhere() -> None:
    request = v1.CompletionRequest(
        model_id="m", token_ids=[1], sampling_params=ONE, logprobs=v1.LogProbConfig(token_ids=[9, 3])
    )
    body = completion_body(request, model="m", dialect="vllm")
    assert body["logprob_token_ids"] == [9, 3]
    assert body["return_tokens_as_token_ids"] is True
    for dialect in ("openai", "llamacpp", "sglang"):
        with pytest.raises(UnsupportedError, match=r"logprobs\.token_ids"):
            completion_body(request, model="m", dialect=dialect)
    request.logprobs.top_k = 2
    with pytest.raises(UnsupportedError, match="top_k"):
        completion_body(request, model="m", dialect="vllm")

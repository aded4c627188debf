"""Bad input, slow and vanishing clients: clear errors, nothing left behind."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import psutil
import pytest
import zstandard

from llamastack import v1
from tests.gateway.conftest import read_events
from tests.stacks import SERVICES, StackProcess, stack_process

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "say hi"}]}
WRONG: list[Any] = [None, True, -1, 1.5, "x", "", [], {}, [None], [[]], {"a": {}}, "\u0000", 2**70, "9" * 50]


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


def pack(data: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    return gzip.compress(data) if encoding == "gzip" else zlib.compress(data)


async def until(condition: Callable[[], Awaitable[bool]], *, what: str) -> None:
    """Wait on a condition with a bound."""
    for _ in range(500):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"did not happen: {what}")


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'"x"', b"nul", b"\xff\xfe", b'{"a": NaN}', b'{"model": "\\ud800"}', b"[" * 100_000, b'{"a":' * 9000],
)
async def test_a_body_that_is_no_json_object_is_refused_with_words(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "tools": [], "stop": [], "temperature": 0, "response_format": None, "seed": 1,
                                  "stream_options": None, "logit_bias": {}, "n": 1, "tool_choice": None,
                                  "logprobs": False, "top_logprobs": None, "max_tokens": 5, "stream": False}),
        ("/v1/completions", {"model": "scripted", "prompt": "x", "n": 1, "echo": False, "logprobs": None, "stop": []}),
        ("/v1/embeddings", {"model": "words", "input": "x", "encoding_format": "float", "dimensions": None}),
        ("/v1/responses", {"model": "scripted", "input": "say x", "tools": [], "tool_choice": "auto", "text": {},
                           "metadata": {}, "temperature": 0, "include": [], "reasoning": {}, "store": True}),
        ("/v1/inference/chat-completion", {"model_id": "scripted", "messages": CHAT["messages"], "tools": [],
                                           "sampling_params": {}, "tool_config": {}, "response_format": None}),
        ("/v1/agents", {"agent_config": {"model": "scripted", "instructions": "", "toolgroups": []}}),
        ("/v1/moderations", {"input": "x", "model": "none"}),
        ("/v1/conversations", {"items": [], "metadata": {}}),
        ("/v1/vector-dbs", {"vector_db_id": "abuse", "embedding_model": "words"}),
        ("/v1/tool-runtime/invoke", {"tool_name": "nothing", "kwargs": {}}),
    ],
)  # fmt: skip
async def test_wrong_types_in_any_field_never_break_the_server(
    http: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    for key in [*body, "unknown"]:
        for wrong in WRONG:
            answer = await http.post(path, content=json.dumps({**body, key: wrong}))
            assert answer.status_code < 500 or answer.status_code == 501, (path, key, wrong, answer.text)
            if answer.status_code >= 400:
                assert answer.json()["error"]["message"], (path, key, wrong)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_packed_bodies_are_unpacked(http: httpx.AsyncClient, encoding: str) -> None:
    data = json.dumps(CHAT).encode()
    packed = pack(data, encoding)
    answer = await http.post("/v1/chat/completions", content=packed, headers={"content-encoding": encoding})
    assert answer.json()["choices"][0]["message"]["content"] == "hi"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_bomb_is_refused_before_it_fills_the_memory(http: httpx.AsyncClient, encoding: str) -> None:
    bomb = b" " * (64 << 20)
    packed = pack(bomb, encoding)
    answer = await http.post("/v1/chat/completions", content=packed, headers={"content-encoding": encoding})
    assert answer.status_code == 413


async def test_unknown_packing_and_damaged_packing_are_refused(http: httpx.AsyncClient) -> None:
    unknown = await http.post("/v1/chat/completions", content=b"x", headers={"content-encoding": "snappy"})
    damaged = await http.post("/v1/chat/completions", content=b"not gzip", headers={"content-encoding": "gzip"})
    assert (unknown.status_code, damaged.status_code) == (415, 400)


async def test_a_body_over_the_limit_is_413(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", content=b" " * (17 << 20))
    assert answer.status_code == 413


async def test_unknown_paths_and_methods_are_told_apart(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/nothing")).status_code == 404
    answer = await http.delete("/v1/chat/completions")
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]


async def test_every_answer_has_ids_for_the_logs(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert len(answer.headers["x-trace-id"]) == 32
    strange = await http.get("/v1/models", headers={"x-request-id": "bad id;drop"})
    assert strange.headers["x-request-id"].startswith("req_")


async def in_flight(stack: StackProcess) -> int:
    """Calls that the inference service is handling."""
    async with grpc.aio.insecure_channel(stack.addresses["inference"]) as channel:
        status = await v1.InspectServiceStub(channel).GetStatus(v1.GetStatusRequest())
        return int(status.calls_in_flight)


async def idle(stack: StackProcess) -> int:
    """The count of calls once those of earlier tests have ended."""

    async def nothing() -> bool:
        return await in_flight(stack) == 1  # the question itself

    await until(nothing, what="the inference service has nothing to do")
    return 1


async def test_a_client_that_hangs_up_ends_the_work_behind_its_stream(
    gateway_stack: StackProcess, http: httpx.AsyncClient
) -> None:
    before = await idle(gateway_stack)
    working = 0
    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "hang"}]}
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if "three" in line:  # leaving the loop closes the connection already
                working = await in_flight(gateway_stack)
                break
    assert working == before + 1

    async def freed() -> bool:
        return await in_flight(gateway_stack) == before

    await until(freed, what="the call of the inference service ends")


async def test_a_client_that_hangs_up_ends_the_work_behind_its_call(gateway_stack: StackProcess) -> None:
    before = await idle(gateway_stack)
    _, writer = await connect(gateway_stack.url)
    data = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "hang"}]}).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
    await writer.drain()

    async def working() -> bool:
        return await in_flight(gateway_stack) == before + 1

    async def freed() -> bool:
        return await in_flight(gateway_stack) == before

    await until(working, what="the call reaches the inference service")
    writer.close()
    await until(freed, what="the call of the inference service ends")


@pytest.fixture
async def hurried() -> AsyncIterator[StackProcess]:
    """A gateway with short patience."""
    with stack_process(gateway={"read_seconds": 0.3, "heartbeat_seconds": 0.2, "max_requests": 3}) as stack:
        stack.start(*SERVICES)
        stack.start("gateway")
        yield stack


async def test_slow_clients_are_cut_off_and_silent_streams_show_life(hurried: StackProcess) -> None:
    reader, writer = await connect(hurried.url)
    writer.write(b"GET /v1/mod")  # the rest never comes
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    reader, writer = await connect(hurried.url)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    assert b"408" in await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "hang"}]}
    async with (
        httpx.AsyncClient(base_url=hurried.url, timeout=20) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        seen = 0
        async for line in response.aiter_lines():
            seen += line == ": keep-alive"
            if seen == 2:
                break
    assert seen == 2


async def test_too_many_requests_at_once_are_refused_and_served_later(hurried: StackProcess) -> None:
    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "hang"}]}
    async with httpx.AsyncClient(base_url=hurried.url, timeout=20) as client:
        streams = [client.stream("POST", "/v1/chat/completions", json=body) for _ in range(3)]
        for stream in streams:
            await stream.__aenter__()
        refused = await client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code in {429, 503}
        assert "retry-after" in refused.headers
        assert (await client.get("/v1/health")).status_code == 200
        for stream in streams:
            await stream.__aexit__(None, None, None)

        async def served() -> bool:
            return (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200

        await until(served, what="a chat is answered again")


async def test_many_idle_connections_cost_little_and_leave_nothing(gateway_stack: StackProcess) -> None:
    process = psutil.Process(gateway_stack.pid("gateway"))
    files, memory = process.num_fds(), process.memory_info().rss
    opened = [await connect(gateway_stack.url) for _ in range(400)]
    async with httpx.AsyncClient(base_url=gateway_stack.url, timeout=20) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert process.memory_info().rss - memory < 40 << 20
    for _, writer in opened:
        writer.close()

    async def closed() -> bool:
        return process.num_fds() <= files + 10

    await until(closed, what="the connections are closed")


async def test_streams_cut_off_by_the_hundred_leave_no_call_behind(
    gateway_stack: StackProcess, http: httpx.AsyncClient
) -> None:
    before = await idle(gateway_stack)
    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "slowly a b c d e f g"}]}

    async def begin_and_leave() -> None:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for _ in response.aiter_bytes():
                break

    for _ in range(5):
        await asyncio.gather(*(begin_and_leave() for _ in range(20)))

    async def freed() -> bool:
        return await in_flight(gateway_stack) == before

    await until(freed, what="all calls of the inference service end")
    async with http.stream("POST", "/v1/chat/completions", json={**body, "messages": CHAT["messages"]}) as response:
        assert (await read_events(response))[-1] == "[DONE]"

"""The gateway stops or dies while it works: streams are told, batches go on, nothing is done twice."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import until
from tests.stacks import StackProcess, stack_process

BEHIND = ("inference", "memory", "agents")
LONG = "slowly " + " ".join(f"word{number}" for number in range(100))


@pytest.fixture(scope="module")
def stack() -> Iterator[StackProcess]:
    """A stack whose gateway may be stopped."""
    with stack_process() as stack:
        stack.start(*BEHIND)
        stack.start("gateway")
        yield stack


async def _last_event(stack: StackProcess, path: str, body: dict[str, Any], hung: asyncio.Event) -> Any:
    data = ""
    async with (
        httpx.AsyncClient(base_url=stack.url, timeout=60) as client,
        client.stream("POST", path, json={**body, "stream": True}) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
            if "three" in line:
                hung.set()
    return json.loads(data)


async def test_streams_that_do_not_end_are_told_that_the_gateway_stops(stack: StackProcess) -> None:
    messages = [{"role": "user", "content": "hang"}]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"model": "scripted", "messages": messages}),
        ("/v1/inference/chat-completion", {"model_id": "scripted", "messages": messages}),
        ("/v1/responses", {"model": "scripted", "input": "hang"}),
    ]
    hung = [asyncio.Event() for _ in asked]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        streams = [
            group.create_task(_last_event(stack, path, body, event))
            for (path, body), event in zip(asked, hung, strict=True)
        ]
        for event in hung:
            await event.wait()
        await asyncio.to_thread(stack.stop, "gateway")
    chat, native, response = (stream.result() for stream in streams)
    assert chat["error"]["code"] == native["error"]["code"] == "draining"
    assert (response["type"], response["code"]) == ("error", "draining")
    await asyncio.to_thread(stack.start, "gateway")


async def test_streams_of_a_dead_engine_end_with_an_error_that_says_what_to_do(stack: StackProcess) -> None:
    hung = asyncio.Event()
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hang"}]}
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        stream = group.create_task(_last_event(stack, "/v1/chat/completions", body, hung))
        await hung.wait()
        await asyncio.to_thread(stack.stop, *BEHIND, kill=True)
    error = stream.result()["error"]
    assert error["code"] == "unavailable"
    assert "call again" in error["message"]
    await asyncio.to_thread(stack.start, *BEHIND)


async def test_a_gateway_without_the_service_that_keeps_files_says_that_batches_need_it() -> None:
    with stack_process() as alone:
        file = alone.home / "stack.yaml"
        config = json.loads(file.read_text())
        config["addresses"] = {"gateway": config["addresses"]["gateway"]}
        file.write_text(json.dumps(config))
        await asyncio.to_thread(alone.start, "gateway")
        async with httpx.AsyncClient(base_url=alone.url, timeout=30) as client:
            refused = await client.get("/v1/batches")
            assert refused.status_code == 501
            assert "addresses.memory" in refused.json()["error"]["message"]
            assert (await client.get("/v1/providers")).json() == {"data": []}
            assert (await client.get("/v1/health")).status_code == 200


async def test_a_batch_that_outlives_its_gateway_stores_each_response_once(stack: StackProcess) -> None:
    body = {"model": "scripted", "input": LONG}
    row = json.dumps({"custom_id": "one", "method": "POST", "url": "/v1/responses", "body": body})
    async with httpx.AsyncClient(base_url=stack.url, timeout=60) as client:
        uploaded = await client.post("/v1/files", files={"file": ("b.jsonl", row)}, data={"purpose": "batch"})
        asked = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/responses", "completion_window": "24h"}
        batch = (await client.post("/v1/batches", json=asked)).json()["id"]

        async def stored() -> list[str]:
            found = (await client.get("/v1/responses")).json()["data"]
            return [one["status"] for one in found if one["input"][0]["content"][0]["text"] == LONG]

        async def running() -> bool | None:
            return "in_progress" in await stored() or None

        await until(running)
        await asyncio.to_thread(stack.stop, "gateway", kill=True)
        await asyncio.to_thread(stack.start, "gateway")

        async def ended() -> dict[str, Any] | None:
            found = (await client.get(f"/v1/batches/{batch}")).json()
            return found if found["status"] == "completed" else None

        # A lease that a dead process left behind is taken over when it has run out.
        assert (await until(ended, seconds=60))["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
        assert await stored() == ["completed"]

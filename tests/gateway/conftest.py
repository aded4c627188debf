"""The whole stack with its gateway, shared by the tests of HTTP, and plain HTTP clients for it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import httpx
import pytest

from tests.stacks import SERVICES, StackProcess, stack_process

T = TypeVar("T")
LARGEST_UPLOAD = 4 * 1024 * 1024


@pytest.fixture(scope="session")
def gateway_stack() -> Iterator[StackProcess]:
    """The services in one process, the gateway in another; `url` is where HTTP is served."""
    with stack_process(traces=True, gateway={"max_upload_bytes": LARGEST_UPLOAD}) as stack:
        stack.start(*SERVICES, "telemetry")
        stack.start("gateway")
        yield stack


@pytest.fixture
async def http(gateway_stack: StackProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway_stack.url, timeout=60) as client:
        yield client


async def read_events(response: httpx.Response) -> list[Any]:
    """The events of a stream as JSON; `[DONE]` stays a string."""
    events = []
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            events.append(data if data == "[DONE]" else json.loads(data))
    return events


async def until(look: Callable[[], Awaitable[T | None]], *, seconds: float = 30) -> T:
    """What `look` gives once it gives something."""
    async with asyncio.timeout(seconds):
        while (found := await look()) is None:
            await asyncio.sleep(0.02)
    return found

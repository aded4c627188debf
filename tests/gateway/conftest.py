"""The whole stack with its gateway, shared by the tests of HTTP, and plain HTTP clients for it."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.stacks import SERVICES, StackProcess, stack_process


@pytest.fixture(scope="session")
def gateway_stack() -> Iterator[StackProcess]:
    """The services in one process, the gateway in another; `url` is where HTTP is served."""
    with stack_process(traces=True) as stack:
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

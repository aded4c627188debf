"""Clients of the shared stack."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest

from llamastack import v1
from stack_client import StackClient, SyncStackClient
from tests.stacks import StackProcess

BOUND_SECONDS = 20.0

Script = Callable[..., Awaitable[str]]
InFlight = Callable[[int], Awaitable[None]]


@pytest.fixture
async def client(stack: StackProcess) -> AsyncIterator[StackClient]:
    async with StackClient(stack.addresses) as client:
        yield client


@pytest.fixture
def sync_client(stack: StackProcess) -> Iterator[SyncStackClient]:
    with SyncStackClient(stack.addresses) as client:
        yield client


_numbers = itertools.count(1)


@pytest.fixture
async def script(client: StackClient) -> AsyncIterator[Script]:
    """Registers a model that follows the rules given; returns its identifier."""
    registered: list[str] = []

    async def register(*rules: Mapping[str, Any]) -> str:
        name = f"script-{next(_numbers)}"
        await client.models.register(name, provider_id="scripted", metadata={"script": list(rules)})
        await client.models.wait_ready(name)
        registered.append(name)
        return name

    yield register
    for name in registered:
        await client.models.unregister(name)


@pytest.fixture
async def calls_in_flight(client: StackClient) -> InFlight:
    """Waits until the inference service handles that many calls."""
    inspect: Any = v1.InspectServiceStub(client.channel("inference"))

    async def wait(count: int) -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                status = await inspect.GetStatus(v1.GetStatusRequest())
                if status.calls_in_flight - 1 == count:  # but for our own
                    return
                await asyncio.sleep(0.02)

    return wait

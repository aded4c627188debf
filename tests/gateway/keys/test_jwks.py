"""Reading a key set while several requests want it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from services.gateway.keys.jwks import FRESH_SECONDS, KeySet
from stack_client.errors import UnavailableError
from tests.gateway.keys.issuer import ec_key, public

ONE = ec_key()


class Source:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked = asyncio.Semaphore(0)
        self.count = 0
        self.keys = [public(ONE, "one")]
        self.moment = 0.0

    async def load(self) -> Mapping[str, Any]:
        self.count += 1
        self.asked.release()
        await self.gate.wait()
        return {"keys": self.keys}

    def clock(self) -> float:
        return self.moment


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def keys(source: Source) -> KeySet:
    return KeySet(source.load, clock=source.clock)


async def test_requests_that_come_while_keys_are_read_first_wait_for_them(source: Source, keys: KeySet) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(keys.key("one", "ES256")) for _ in range(5)]
        await source.asked.acquire()
        late = group.create_task(keys.key("one", "ES256"))
        await asyncio.sleep(0)
        source.gate.set()
    assert all(task.result() is not None for task in [*tasks, late])
    assert source.count == 1


async def test_a_reader_that_is_cancelled_leaves_the_reading_to_the_next(source: Source, keys: KeySet) -> None:
    first = asyncio.ensure_future(keys.key("one", "ES256"))
    await source.asked.acquire()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    source.gate.set()
    assert await keys.key("one", "ES256") is not None


async def test_known_keys_are_used_while_one_request_reads_again(source: Source, keys: KeySet) -> None:
    source.gate.set()
    await keys.key("one", "ES256")
    source.gate.clear()
    source.moment += FRESH_SECONDS
    async with asyncio.TaskGroup() as group:
        await source.asked.acquire()
        reader = group.create_task(keys.key("one", "ES256"))
        await source.asked.acquire()
        assert await keys.key("one", "ES256") is not None
        unknown = group.create_task(keys.key("two", "ES256"))
        await asyncio.sleep(0)
        source.keys.append(public(ec_key(), "two"))
        source.gate.set()
    assert reader.result() is not None
    assert unknown.result() is not None, "it waited for the reading that went on"
    assert source.count == 2


async def test_a_cancelled_reading_again_is_not_begun_by_every_forged_token(source: Source, keys: KeySet) -> None:
    source.gate.set()
    await keys.key("one", "ES256")
    source.gate.clear()
    source.moment += FRESH_SECONDS
    await source.asked.acquire()
    reader = asyncio.ensure_future(keys.key("forged", "ES256"))
    await source.asked.acquire()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await keys.key("forged", "ES256") is None
    assert await keys.key("one", "ES256") is not None
    assert source.count == 2


async def test_a_key_set_that_cannot_be_read_is_said_so_to_all_who_wait() -> None:
    async def load() -> Mapping[str, Any]:
        await asyncio.sleep(0)
        raise UnavailableError("the provider is away")

    keys = KeySet(load)
    results = await asyncio.gather(*(keys.key("one", "ES256") for _ in range(3)), return_exceptions=True)
    assert all("the provider is away" in str(result) for result in results)

"""Key-value banks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct, Value

from llamastack import v1
from services.memory import entries as module
from services.runtime.background import Signals
from services.runtime.moments import SECOND, now
from stack_client.calls import EventStream, unary
from stack_client.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from tests.memory.mesh import MemoryMesh

Name = Callable[[], str]


class Bank:
    """A new bank and short calls of it."""

    def __init__(self, mesh: MemoryMesh, bank_id: str, tenant: str = "") -> None:
        self.stub, self.bank_id = mesh.banks, bank_id
        self.metadata = [("x-tenant", tenant)] if tenant else None

    async def put(self, key: str, data: bytes = b"x", **fields: Any) -> v1.Entry:
        value: dict[str, Any] = {} if "json" in fields else {"data": data}
        request = v1.PutEntryRequest(bank_id=self.bank_id, key=key, **value, **fields)
        return (await unary(self.stub.PutEntry(request, metadata=self.metadata))).entry  # type: ignore[no-any-return]

    async def get(self, *keys: str) -> v1.GetEntriesResponse:
        request = v1.GetEntriesRequest(bank_id=self.bank_id, keys=keys)
        return await unary(self.stub.GetEntries(request, metadata=self.metadata))

    async def delete(self, key: str, **fields: Any) -> v1.DeleteEntryResponse:
        request = v1.DeleteEntryRequest(bank_id=self.bank_id, key=key, **fields)
        return await unary(self.stub.DeleteEntry(request, metadata=self.metadata))

    async def scan(self, prefix: str = "", **fields: Any) -> v1.ScanEntriesResponse:
        request = v1.ScanEntriesRequest(bank_id=self.bank_id, prefix=prefix, **fields)
        return await unary(self.stub.ScanEntries(request, metadata=self.metadata))

    @asynccontextmanager
    async def watch(self, prefix: str = "", **fields: Any) -> AsyncIterator[EventStream[v1.WatchEntriesResponse]]:
        request = v1.WatchEntriesRequest(bank_id=self.bank_id, prefix=prefix, **fields)
        async with EventStream(self.stub.WatchEntries(request, metadata=self.metadata)) as stream:
            yield stream


async def new(mesh: MemoryMesh, name: Name, **params: Any) -> Bank:
    return Bank(mesh, (await mesh.bank(name(), keyvalue=params)).identifier)


async def take(stream: EventStream[v1.WatchEntriesResponse], count: int) -> list[v1.WatchEntriesResponse]:
    events: list[v1.WatchEntriesResponse] = []
    async with asyncio.timeout(20):
        async for event in stream:
            events.append(event)
            if len(events) == count:
                break
    return events


async def test_what_was_put_is_got_back_as_json_or_bytes(either: MemoryMesh, name: Name) -> None:
    bank = await new(either, name)
    facts = Struct()
    facts.update({"from": "me"})
    json = Value(string_value="ä")
    first = await bank.put("a", json=json, metadata=facts)
    second = await bank.put("b\0", b"\0\xff")
    answer = await bank.get("b\0", "missing", "a")
    assert list(answer.entries) == [second, first]
    assert (first.version, first.json, first.metadata, first.HasField("expires_at")) == (1, json, facts, False)
    assert second.data == b"\0\xff"
    assert list(answer.missing_keys) == ["missing"]
    assert (await bank.put("a", b"")).version == 2
    assert (await bank.get("a")).entries[0].WhichOneof("value") == "data"


async def test_ten_writers_that_compare_and_set_one_key_make_exactly_one_change_a_round(
    either: MemoryMesh, name: Name
) -> None:
    bank = await new(either, name)
    for version in range(4):
        tries = [bank.put("k", str(index).encode(), if_version=version) for index in range(10)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        won = [result for result in results if isinstance(result, v1.Entry)]
        lost = [result for result in results if isinstance(result, ConflictError)]
        assert (len(won), len(lost)) == (1, 9)
        assert {error.metadata["version"] for error in lost} == {str(version + 1)}
        assert (await bank.get("k")).entries[0].data == won[0].data


async def test_a_deleted_key_starts_again_at_version_one(either: MemoryMesh, name: Name) -> None:
    bank = await new(either, name)
    await bank.put("k")
    await bank.put("k")
    with pytest.raises(ConflictError, match="version 2"):
        await bank.delete("k", if_version=1)
    gone = await bank.delete("k", if_version=2)
    assert gone.deleted
    again = await bank.delete("k", if_version=2)
    assert not again.deleted
    assert again.revision >= gone.revision
    with pytest.raises(ConflictError, match="does not exist") as caught:
        await bank.put("k", if_version=2)
    assert caught.value.metadata["version"] == "0"
    assert (await bank.put("k", if_version=0)).version == 1


async def test_a_repeated_request_is_answered_as_before_and_writes_once(either: MemoryMesh, name: Name) -> None:
    bank = await new(either, name)
    one = name()
    first = await bank.put("k", b"1", request_id=one)
    await bank.put("k", b"2")
    assert await bank.put("k", b"1", request_id=one) == first
    assert (await bank.get("k")).entries[0].data == b"2"
    with pytest.raises(InvalidArgumentError) as caught:
        await bank.put("k", b"3", request_id=one)
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_keys_are_scanned_in_byte_order_page_by_page(either: MemoryMesh, name: Name) -> None:
    bank = await new(either, name)
    keys = ["a", "aB", "ab", "a\U0010ffff", "a￿", "aé", "b", "B", "a_", "a%", "ac"]
    for key in keys:
        await bank.put(key)
    for prefix in ("", "a", "a￿", "a\U0010ffff", "none"):
        wanted = sorted((key for key in keys if key.startswith(prefix)), key=str.encode)
        found, token = [], ""
        while True:
            page = await bank.scan(prefix, page_size=3, page_token=token, keys_only=True)
            found += [entry.key for entry in page.data]
            assert not any(entry.WhichOneof("value") for entry in page.data)
            token = page.next_page_token
            if not token:
                break
        assert found == wanted


async def test_pages_of_large_values_are_shorter_than_asked_for(mesh: MemoryMesh, name: Name) -> None:
    bank = await new(mesh, name)
    for index in range(14):
        await bank.put(f"{index:02}", bytes(1024 * 1024))
    page = await bank.scan()
    assert 1 <= len(page.data) < 4
    rest = await bank.scan(page_token=page.next_page_token)
    assert rest.data[0].key == f"{len(page.data):02}"
    assert len((await bank.scan(keys_only=True)).data) == 14
    with pytest.raises(ResourceExhaustedError, match="fewer keys"):
        await bank.get(*(f"{index:02}" for index in range(14)))
    with pytest.raises(ResourceExhaustedError, match="fewer keys"):
        await bank.get("00", "01", "02", "03")
    assert len((await bank.get("00", "01")).entries) == 2


async def test_a_page_token_of_another_prefix_is_refused(mesh: MemoryMesh, name: Name) -> None:
    bank = await new(mesh, name)
    await bank.put("a1")
    await bank.put("a2")
    token = (await bank.scan("a", page_size=1)).next_page_token
    with pytest.raises(InvalidArgumentError, match="another list"):
        await bank.scan("", page_token=token)


async def test_an_entry_whose_life_ended_is_gone_and_the_watcher_is_told(either: MemoryMesh, name: Name) -> None:
    bank = await new(either, name, default_ttl_seconds=3600)
    stays = await bank.put("stays")
    assert stays.expires_at.seconds - stays.updated_at.seconds == 3600
    start = (await bank.scan()).revision
    await bank.put("short", ttl_seconds=1)
    async with bank.watch(resume_after_revision=start) as stream:
        put, expired = await take(stream, 2)
    assert put.put.key == "short"
    assert (expired.deleted.key, expired.deleted.expired) == ("short", True)
    assert list((await bank.get("short")).missing_keys) == ["short"]
    assert [entry.key for entry in (await bank.scan()).data] == ["stays"]
    assert (await bank.put("short", if_version=0)).version == 1


async def test_before_the_sweeper_came_an_ended_entry_counts_as_gone(
    either: MemoryMesh, name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = await new(either, name)
    await bank.put("k", ttl_seconds=100)
    later = now() + 200 * SECOND
    monkeypatch.setattr(module, "now", lambda: later)
    assert list((await bank.get("k")).missing_keys) == ["k"]
    assert not (await bank.scan()).data
    assert not (await bank.delete("k")).deleted
    assert (await bank.put("k", if_version=0)).version == 1


async def test_a_watcher_sees_every_change_of_its_prefix_in_order(either: MemoryMesh, name: Name) -> None:
    bank = await new(either, name)
    await bank.put("a/before")
    async with bank.watch("a/", resume_after_revision=0) as stream:
        assert [event.put.key for event in await take(stream, 1)] == ["a/before"]
        await asyncio.gather(*(bank.put(f"{letter}/{index}") for letter in "ab" for index in range(60)))
        await bank.delete("a/7")
        events = await take(stream, 61)
    assert [event.sequence for event in events] == list(range(2, 63))
    assert {event.put.key for event in events[:60]} == {f"a/{index}" for index in range(60)}
    revisions = [event.put.revision for event in events[:60]]
    assert revisions == sorted(set(revisions))
    assert events[-1].deleted == v1.EntryDeleted(key="a/7", revision=events[-1].deleted.revision)
    async with bank.watch("a/", resume_after_revision=revisions[29]) as stream:
        again = await take(stream, 31)
    assert [event.WhichOneof("event") for event in again] == ["put"] * 30 + ["deleted"]
    assert [event.put.revision for event in again[:30]] == revisions[30:]


async def test_a_watch_without_a_revision_begins_now_and_ends_with_the_bank(either: MemoryMesh, name: Name) -> None:
    bank = await new(either, name)
    await bank.put("old")
    async with bank.watch() as stream:
        # Only what is put after the watch began is seen; that it began is seen by what it sees.
        async def keep_putting() -> None:
            while True:
                await bank.put("new")

        putting = asyncio.create_task(keep_putting())
        (first,) = await take(stream, 1)
        putting.cancel()
        assert first.put.key == "new"
        request = v1.UnregisterMemoryBankRequest(memory_bank_id=bank.bank_id)
        await asyncio.wait([putting])
        await unary(either.banks.UnregisterMemoryBank(request))
        async with asyncio.timeout(20):
            rest = [event async for event in stream]
    assert rest[-1].WhichOneof("event") == "closed"
    assert {event.WhichOneof("event") for event in rest[:-1]} <= {"put"}


async def test_a_resume_point_whose_changes_were_forgotten_is_refused(
    either: MemoryMesh, name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_REVISIONS", 20)
    bank = await new(either, name)
    last = [await bank.put("k") for _ in range(128)][-1]
    with pytest.raises(OutOfRangeError, match="no longer kept") as caught:
        async with bank.watch(resume_after_revision=5) as stream:
            await take(stream, 1)
    assert caught.value.reason == "RESUME_POINT_GONE"
    async with bank.watch(resume_after_revision=int(caught.value.metadata["oldest_sequence"]) - 1) as stream:
        assert (await take(stream, 20))[-1].put.revision == last.revision
    with pytest.raises(OutOfRangeError, match="made anew"):
        async with bank.watch(resume_after_revision=last.revision + 1) as stream:
            await take(stream, 1)


async def test_the_log_is_also_bounded_in_bytes(mesh: MemoryMesh, name: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 10_000)
    bank = await new(mesh, name)
    for _ in range(64):
        await bank.put("k", bytes(1000))
    with pytest.raises(OutOfRangeError):
        async with bank.watch(resume_after_revision=40) as stream:
            await take(stream, 1)
    async with bank.watch(resume_after_revision=54) as stream:
        assert len(await take(stream, 10)) == 10


async def test_a_change_of_another_process_reaches_the_watcher(either: MemoryMesh, name: Name) -> None:
    bank = await new(either, name)
    async with bank.watch(resume_after_revision=0) as stream:
        signals, either.node.entries.signals = either.node.entries.signals, Signals()  # nobody is told
        try:
            await bank.put("k")
            assert (await take(stream, 1))[0].put.key == "k"
        finally:
            either.node.entries.signals = signals


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"key": ""}, "key is empty"),
        ({"key": "é" * 257}, "514 bytes"),
        ({"key": "k", "json": Value()}, "value is missing"),
        ({"key": "k", "json": Value(number_value=float("nan"))}, "finite"),
        ({"key": "k", "ttl_seconds": 0}, "ttl_seconds is 0"),
        ({"key": "k", "metadata": Struct(fields={"a": Value(number_value=float("inf"))})}, "metadata"),
    ],
)
async def test_a_put_that_cannot_be_is_refused_by_name(
    mesh: MemoryMesh, name: Name, fields: dict[str, Any], words: str
) -> None:
    bank = await new(mesh, name)
    with pytest.raises(InvalidArgumentError, match=words):
        await bank.put(**fields)


async def test_bad_reads_are_refused(mesh: MemoryMesh, name: Name) -> None:
    bank = await new(mesh, name)
    for keys, words in (([], "allowed: 1 to"), (["k"] * 1001, "allowed: 1 to"), (["k", ""], r"keys\[1\] is empty")):
        with pytest.raises(InvalidArgumentError, match=words):
            await bank.get(*keys)
    with pytest.raises(InvalidArgumentError, match="prefix"):
        await bank.scan("x" * 513)
    with pytest.raises(InvalidArgumentError, match="page_size"):
        await bank.scan(page_size=1001)
    with pytest.raises(InvalidArgumentError, match="key is empty"):
        await bank.delete("")
    with pytest.raises(ResourceExhaustedError, match="1048577 bytes") as caught:
        await bank.put("k", bytes(1024 * 1024 + 1))
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


async def test_banks_of_other_kinds_and_unknown_ones_are_refused(mesh: MemoryMesh, name: Name) -> None:
    graph = Bank(mesh, (await mesh.bank(name(), graph={})).identifier)
    with pytest.raises(FailedPreconditionError, match="kind graph"):
        await graph.put("k")
    with pytest.raises(NotFoundError, match="nowhere"):
        await Bank(mesh, "nowhere").scan()
    with pytest.raises(NotFoundError, match="nowhere"):
        async with Bank(mesh, "nowhere").watch() as stream:
            await take(stream, 1)


async def test_tenants_never_see_each_others_entries(either: MemoryMesh, name: Name) -> None:
    bank_id = name()
    tenants = [Bank(either, bank_id, tenant) for tenant in ("red", "blue")]
    params = v1.BankParams(keyvalue=v1.KeyValueBankParams())
    request = v1.RegisterMemoryBankRequest(memory_bank_id=bank_id, params=params)
    for index, bank in enumerate(tenants):
        await unary(either.banks.RegisterMemoryBank(request, metadata=bank.metadata))
        await bank.put("k", str(index).encode(), request_id="same")
    assert [(await bank.get("k")).entries[0].data for bank in tenants] == [b"0", b"1"]
    await tenants[0].delete("k")
    assert [entry.data for entry in (await tenants[1].scan()).data] == [b"1"]
    with pytest.raises(NotFoundError):
        await Bank(either, bank_id).get("k")

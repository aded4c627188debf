"""The RPC edge: who sees what, repeats, pages, refusals."""

import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from tests.gateway.batches.world import CHAT, World, gateway, jsonl, request

WRONG: list[dict[str, Any]] = [
    {"endpoint": ""},
    {"endpoint": "/v1/files"},
    {"completion_window": ""},
    {"completion_window": "7d"},
    {"input_file_id": ""},
    {"metadata": {str(n): "" for n in range(17)}},
    {"metadata": {"k": "v" * 513}},
    {"metadata": {"": "v"}},
    {"idempotency_key": ""},
    {"idempotency_key": "k" * 257},
]


@pytest.mark.parametrize("change", WRONG, ids=range(len(WRONG)))
async def test_what_no_batch_can_be_is_refused_by_field(world: World, change: dict[str, Any]) -> None:
    fields = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h", **change}
    with pytest.raises(InvalidArgumentError) as refused:
        await unary(world.stub.CreateBatch(v1.CreateBatchRequest(**fields)))
    assert refused.value.field == next(iter(change))


async def test_a_file_must_be_there_be_for_batches_and_not_be_too_large(tmp_path: Path, memory: str) -> None:
    async with gateway(tmp_path, memory, max_file_bytes=1000) as world:
        with pytest.raises(NotFoundError) as missing:
            await world.client.batches.create("file-none")
        assert missing.value.field == "input_file_id"
        other = await world.upload([request("a")], purpose="assistants")
        with pytest.raises(InvalidArgumentError, match="purpose batch"):
            await world.client.batches.create(other)
        large = await world.upload([request("a", padding="x" * 1000)])
        with pytest.raises(ResourceExhaustedError) as refused:
            await world.client.batches.create(large)
        assert refused.value.reason == "MESSAGE_TOO_LARGE"


async def test_a_repeat_is_the_same_batch_and_a_key_with_other_parameters_is_refused(world: World) -> None:
    file_id = await world.upload([request("a")])
    first = await world.client.batches.create(file_id, idempotency_key="k", metadata={"a": "1", "b": "2"})
    again = await world.client.batches.create(file_id, idempotency_key="k", metadata={"b": "2", "a": "1"})
    assert again.id == first.id
    with pytest.raises(AlreadyExistsError, match=first.id):
        await world.client.batches.create(file_id, idempotency_key="k")
    name = str(uuid.uuid4())
    one = await world.client.batches.create(file_id, request_id=name)
    await world.client.batches.wait(one.id)
    await world.client.files.delete(file_id)
    two = await world.client.batches.create(file_id, request_id=name)
    assert two == one, "the first answer, also when the file is gone"
    with pytest.raises(InvalidArgumentError) as reused:
        await world.client.batches.create(file_id, "/v1/embeddings", request_id=name)
    assert reused.value.reason == "REQUEST_ID_REUSED"
    assert len(await world.client.batches.list()) == 2


async def test_a_batch_is_seen_by_its_tenant_only_and_reads_its_tenants_files(world: World) -> None:
    ada = (("x-tenant", "ada"),)
    files: Any = v1.FilesServiceStub(world.client.channel("memory"))
    content = jsonl([request("a"), request("b", do="refuse")])
    pieces = [
        v1.UploadFileRequest(header=v1.FileUploadHeader(filename="in.jsonl", purpose=v1.FILE_PURPOSE_BATCH)),
        v1.UploadFileRequest(data=content),
        v1.UploadFileRequest(end=v1.FileUploadEnd()),
    ]
    file = (await files.UploadFile(iter(pieces), metadata=ada)).file
    create = v1.CreateBatchRequest(input_file_id=file.id, endpoint=CHAT, completion_window="24h", idempotency_key="k")
    with pytest.raises(NotFoundError):
        await unary(world.stub.CreateBatch(create))
    batch = (await world.stub.CreateBatch(create, metadata=ada)).batch
    watch = world.stub.WatchBatch(v1.WatchBatchRequest(batch_id=batch.id), metadata=ada)
    done = [event async for event in watch][-1].completed
    assert {tenant for _, tenant in world.script.calls} == {"ada"}
    for file_id in (done.output_file_id, done.error_file_id):
        await files.GetFile(v1.GetFileRequest(file_id=file_id), metadata=ada)
        with pytest.raises(NotFoundError):
            await world.client.files.get(file_id)
    for call in (world.client.batches.get, world.client.batches.cancel, world.client.batches.wait):
        with pytest.raises(NotFoundError, match=batch.id):
            await call(batch.id)
    assert await world.client.batches.list() == []
    with pytest.raises(NotFoundError):
        await world.client.batches.list(after=batch.id)
    assert [one.id for one in (await world.stub.ListBatches(v1.ListBatchesRequest(), metadata=ada)).data] == [batch.id]


async def test_batches_are_listed_newest_first_in_pages(world: World) -> None:
    file_id = await world.upload([request("a")])
    made = [(await world.client.batches.create(file_id)).id for _ in range(5)][::-1]
    assert [one.id for one in await world.client.batches.list()] == made
    first = await world.stub.ListBatches(v1.ListBatchesRequest(page_size=2))
    assert [one.id for one in first.data] == made[:2]
    second = await world.stub.ListBatches(v1.ListBatchesRequest(page_size=2, page_token=first.next_page_token))
    assert [one.id for one in second.data] == made[2:4]
    after = await world.stub.ListBatches(v1.ListBatchesRequest(page_size=2, after=made[2]))
    assert [one.id for one in after.data] == made[3:]
    assert not after.next_page_token
    both = v1.ListBatchesRequest(after=made[0], page_token=first.next_page_token)
    with pytest.raises(InvalidArgumentError):
        await unary(world.stub.ListBatches(both))


async def test_what_has_ended_cannot_be_cancelled(world: World) -> None:
    done = await world.run([request("a")])
    with pytest.raises(FailedPreconditionError, match="completed"):
        await world.client.batches.cancel(done.id)


async def test_watching_from_beyond_the_last_event_is_refused(world: World) -> None:
    done = await world.run([request("a")])
    with pytest.raises(OutOfRangeError):
        async for _ in world.client.batches.watch(done.id, after_sequence=done.last_sequence + 1):
            pass
    with pytest.raises(InvalidArgumentError):
        await world.client.batches.get("")


async def test_a_watcher_that_leaves_does_not_stop_the_batch(world: World) -> None:
    batch = await world.start([request("a", do="hang")])
    async with world.client.batches.watch(batch.id) as events:
        async for _ in events:
            break
    call = world.stub.WatchBatch(v1.WatchBatchRequest(batch_id=batch.id), timeout=0.05)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        async for _ in call:
            pass
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    world.script.release.set()
    assert (await world.client.batches.wait(batch.id)).status == v1.BATCH_STATUS_COMPLETED

"""Vector stores in the shapes of OpenAI."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.memory.tables import banks, chunks
from services.runtime.moments import now
from stack_client.calls import EventStream, unary
from stack_client.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    StackError,
    UnavailableError,
)
from tests.memory.mesh import MemoryMesh

Name = Callable[[], str]
IN_PROGRESS = v1.VECTOR_STORE_FILE_STATUS_IN_PROGRESS
COMPLETED = v1.VECTOR_STORE_FILE_STATUS_COMPLETED
CANCELLED = v1.VECTOR_STORE_FILE_STATUS_CANCELLED
FAILED = v1.VECTOR_STORE_FILE_STATUS_FAILED


def facts(**values: Any) -> Struct:
    message = Struct()
    message.update(values)
    return message


class Stores:
    """Short calls of the service for one tenant."""

    def __init__(self, mesh: MemoryMesh, tenant: str = "") -> None:
        self.mesh = mesh
        self.stub = mesh.stub(v1.VectorStoresServiceStub)
        self.files = mesh.stub(v1.FilesServiceStub)
        self.metadata = [("x-tenant", tenant)] if tenant else None

    async def call(self, method: str, **fields: Any) -> Any:
        request = getattr(v1, f"{method}Request")(**fields)
        return await unary(getattr(self.stub, method)(request, metadata=self.metadata))

    async def upload(self, text: str, filename: str = "a.txt") -> str:
        header = v1.FileUploadHeader(filename=filename, purpose=v1.FILE_PURPOSE_ASSISTANTS)
        parts = [v1.UploadFileRequest(header=header)]
        if text:
            parts.append(v1.UploadFileRequest(data=text.encode()))
        parts.append(v1.UploadFileRequest(end=v1.FileUploadEnd()))
        answer = await unary(self.files.UploadFile(iter(parts), metadata=self.metadata))
        return answer.file.id  # type: ignore[no-any-return]

    async def create(self, **fields: Any) -> v1.VectorStore:
        return (await self.call("CreateVectorStore", **fields)).vector_store  # type: ignore[no-any-return]

    async def get(self, store: str) -> v1.VectorStore:
        return (await self.call("GetVectorStore", vector_store_id=store)).vector_store  # type: ignore[no-any-return]

    async def attach(self, store: str, file: str, **fields: Any) -> v1.VectorStoreFile:
        answer = await self.call("CreateVectorStoreFile", vector_store_id=store, file_id=file, **fields)
        return answer.vector_store_file  # type: ignore[no-any-return]

    async def file(self, store: str, file: str) -> v1.VectorStoreFile:
        answer = await self.call("GetVectorStoreFile", vector_store_id=store, file_id=file)
        return answer.vector_store_file  # type: ignore[no-any-return]

    async def loaded(self, store: str, *files: str) -> list[v1.VectorStoreFile]:
        """The files when none of them is being loaded any more."""
        async with asyncio.timeout(60):
            while True:
                found = [await self.file(store, file) for file in files]
                if all(one.status != IN_PROGRESS for one in found):
                    return found

    async def search(self, store: str, *query: str, **fields: Any) -> v1.SearchVectorStoreResponse:
        return await self.call("SearchVectorStore", vector_store_id=store, query=query, **fields)  # type: ignore[no-any-return]


async def filled(mesh: MemoryMesh, *texts: str, **fields: Any) -> tuple[Stores, str, list[str]]:
    """A store with a loaded file for each text."""
    stores = Stores(mesh)
    files = [await stores.upload(text, f"{index}.txt") for index, text in enumerate(texts)]
    store = await stores.create(file_ids=files, **fields)
    for one in await stores.loaded(store.id, *files):
        assert one.status == COMPLETED, one.last_error
    return stores, store.id, files


async def test_a_store_is_created_filled_searched_changed_and_deleted(either: MemoryMesh) -> None:
    stores = Stores(either)
    created = await stores.create(name="Papers", description="Old ones", metadata=facts(owner="me"))
    assert created.id.startswith("vs_")
    assert (created.name, created.description, created.status) == (
        "Papers",
        "Old ones",
        v1.VECTOR_STORE_STATUS_COMPLETED,
    )
    assert (created.embedding_model, created.embedding_dimension) == ("words", 16)
    assert created.metadata["owner"] == "me"

    file = await stores.upload("Whales are the largest animals of the sea.", "whales.txt")
    attached = await stores.attach(created.id, file, attributes=facts(year=1999, wet=True))
    assert (attached.id, attached.vector_store_id) == (file, created.id)
    assert attached.chunking_strategy.WhichOneof("strategy") == "auto"
    (loaded,) = await stores.loaded(created.id, file)
    assert (loaded.status, loaded.HasField("last_error")) == (COMPLETED, False)
    assert loaded.usage_bytes > 40

    answer = await stores.search(created.id, "largest animals")
    (result,) = answer.data
    assert (result.file_id, result.filename, dict(result.attributes)) == (
        file,
        "whales.txt",
        {"year": 1999, "wet": True},
    )
    assert result.content[0].text == "Whales are the largest animals of the sea."
    assert 0 < result.score <= 1
    assert (list(answer.search_query), answer.has_more) == (["largest animals"], False)

    changed = await stores.call("UpdateVectorStore", vector_store_id=created.id, name="Whales")
    assert (changed.vector_store.name, changed.vector_store.description) == ("Whales", "Old ones")
    assert changed.vector_store.file_counts == v1.VectorStoreFileCounts(completed=1, total=1)
    assert changed.vector_store.usage_bytes == loaded.usage_bytes

    gone = await stores.call("DeleteVectorStore", vector_store_id=created.id)
    assert (gone.id, gone.deleted) == (created.id, True)
    for method in ("GetVectorStore", "DeleteVectorStore", "ListVectorStoreFiles"):
        with pytest.raises(NotFoundError, match=created.id):
            await stores.call(method, vector_store_id=created.id)


async def test_the_content_of_a_file_is_listed_in_pages(either: MemoryMesh) -> None:
    text = "\n\n".join(f"Paragraph {index} tells of {'many ' * 60}things." for index in range(12))
    chunking = v1.ChunkingStrategy(
        static=v1.StaticChunkingStrategy(
            static=v1.StaticChunkingConfig(max_chunk_size_tokens=100, chunk_overlap_tokens=0)
        )
    )
    stores, store, (file,) = await filled(either, text, chunking_strategy=chunking)
    assert (await stores.file(store, file)).chunking_strategy == chunking
    found: list[str] = []
    token = ""
    while True:
        page = await stores.call(
            "ListVectorStoreFileContent", vector_store_id=store, file_id=file, page_size=3, page_token=token,
            include_embeddings=True, include_metadata=True,
        )  # fmt: skip
        assert (page.file_id, page.filename) == (file, "0.txt")
        assert all(len(one.embedding) == 16 for one in page.data)
        spans = [one.chunk_metadata.span for one in page.data]
        assert [text[span.start : span.end] for span in spans] == [one.text for one in page.data]
        found += [one.text for one in page.data]
        token = page.next_page_token
        if not token:
            break
    assert len(found) > 3
    plain = await stores.call("ListVectorStoreFileContent", vector_store_id=store, file_id=file)
    assert [one.text for one in plain.data] == found
    assert not any(one.embedding or one.HasField("chunk_metadata") for one in plain.data)


async def test_filters_look_at_attributes_also_after_they_change(either: MemoryMesh) -> None:
    stores, store, (one, two) = await filled(either, "red apples", "green apples")
    filters = v1.MetadataFilter(comparison=v1.ComparisonFilter(type=v1.FILTER_OPERATOR_EQ, key="kind"))
    filters.comparison.value.string_value = "sour"
    assert not (await stores.search(store, "apples", filters=filters)).data
    fields = {"vector_store_id": store, "file_id": two}
    answer = await stores.call("UpdateVectorStoreFile", **fields, attributes=facts(kind="sour"))
    assert dict(answer.vector_store_file.attributes) == {"kind": "sour"}
    for mode in (v1.SEARCH_MODE_VECTOR, v1.SEARCH_MODE_KEYWORD, v1.SEARCH_MODE_HYBRID):
        found = await stores.search(store, "apples", filters=filters, search_mode=mode)
        assert [(hit.file_id, dict(hit.attributes)) for hit in found.data] == [(two, {"kind": "sour"})]
    await stores.call("UpdateVectorStoreFile", **fields, attributes=facts())
    assert not (await stores.search(store, "apples", filters=filters)).data
    assert len((await stores.search(store, "apples")).data) == 2
    assert one != two


async def test_attributes_that_change_while_a_file_is_loaded_reach_its_chunks(mesh: MemoryMesh) -> None:
    stores = Stores(mesh)
    store = (await stores.create()).id
    file = await stores.upload("pears " * 500)
    await stores.attach(store, file, attributes=facts(version=1))
    await stores.call("UpdateVectorStoreFile", vector_store_id=store, file_id=file, attributes=facts(version=2))
    await stores.loaded(store, file)
    found = await stores.search(store, "pears")
    assert {hit.attributes["version"] for hit in found.data} == {2}


async def test_a_detached_file_leaves_no_chunks_even_while_it_was_being_loaded(either: MemoryMesh) -> None:
    stores = Stores(either)
    store = (await stores.create()).id
    files = [await stores.upload(f"plums number {index} " * 300) for index in range(4)]
    for file in files:
        await stores.attach(store, file)
    await stores.loaded(store, files[0])
    for file in files:
        await stores.call("DeleteVectorStoreFile", vector_store_id=store, file_id=file)
        with pytest.raises(NotFoundError, match="has no file"):
            await stores.file(store, file)
        with pytest.raises(NotFoundError):
            await stores.call("DeleteVectorStoreFile", vector_store_id=store, file_id=file)
    assert not (await stores.call("ListVectorStoreFiles", vector_store_id=store)).data
    async with asyncio.timeout(60):
        while await stores.mesh.node.store_parts.files.running(await _bank(either, store)):
            await stores.get(store)
    assert await _chunks(either, store) == 0
    async with asyncio.timeout(60):
        while True:
            try:
                await stores.attach(store, files[1])
                break
            except UnavailableError:  # it is still being detached
                continue
    assert (await stores.loaded(store, files[1]))[0].status == COMPLETED


async def _bank(mesh: MemoryMesh, store: str) -> Any:
    return await mesh.node.store_parts.stores.get(store, tenant="")


async def _chunks(mesh: MemoryMesh, store: str) -> int:
    bank = await _bank(mesh, store)
    async with mesh.node._database.read() as connection:
        query = sa.select(sa.func.count()).where(chunks.c.bank == bank.number)
        return int((await connection.execute(query)).scalar_one())


async def test_a_file_that_cannot_be_read_fails_by_itself(either: MemoryMesh) -> None:
    stores = Stores(either)
    good, bad = await stores.upload("fine words"), await stores.upload("\0\0damaged\0", "b.txt")
    store = (await stores.create(file_ids=[good, bad])).id
    first, second = await stores.loaded(store, good, bad)
    assert (first.status, second.status) == (COMPLETED, FAILED)
    assert second.last_error.code in {"invalid_file", "unsupported_file"}
    assert second.last_error.message
    counts = (await stores.get(store)).file_counts
    assert counts == v1.VectorStoreFileCounts(completed=1, failed=1, total=2)
    with pytest.raises(FailedPreconditionError, match="not loaded"):
        await stores.call("ListVectorStoreFileContent", vector_store_id=store, file_id=bad)
    listed = await stores.call("ListVectorStoreFiles", vector_store_id=store, filter=FAILED)
    assert [one.id for one in listed.data] == [bad]


async def test_a_file_that_is_attached_already_stays_as_it_is(either: MemoryMesh) -> None:
    stores, store, (file,) = await filled(either, "once")
    again = await stores.attach(store, file, attributes=facts(other=1))
    assert (again.status, dict(again.attributes)) == (COMPLETED, {})
    assert (await stores.get(store)).file_counts.total == 1


async def test_repeated_requests_are_answered_as_before(either: MemoryMesh, name: Name) -> None:
    stores, one, two = Stores(either), name(), name()
    answers = await asyncio.gather(*(stores.create(name="x", request_id=one) for _ in range(10)))
    assert len({answer.id for answer in answers}) == 1
    file, store = await stores.upload("text"), answers[0].id
    await asyncio.gather(*(stores.attach(store, file, request_id=two) for _ in range(10)))
    with pytest.raises(InvalidArgumentError) as caught:
        await stores.create(name="y", request_id=one)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    await stores.loaded(store, file)


async def test_a_batch_tells_of_each_file_and_ends_once(either: MemoryMesh) -> None:
    stores, store, (old,) = await filled(either, "an old file")
    files = [await stores.upload(f"text number {index}") for index in range(5)]
    files += [await stores.upload("\0", "broken.txt")]
    created = await stores.call(
        "CreateVectorStoreFileBatch", vector_store_id=store, file_ids=[*files, old], attributes=facts(lot=7)
    )
    batch = created.vector_store_file_batch
    assert batch.id.startswith("vsfb_")
    named = {"vector_store_id": store, "batch_id": batch.id}
    async with asyncio.timeout(60):
        events = [event async for event in stores_watch(stores, **named)]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].WhichOneof("event") == "progress"
    assert sorted(event.file.id for event in events if event.HasField("file")) == sorted(files)
    assert [event.WhichOneof("event") for event in events].count("completed") == 1
    assert events[-1].completed.file_counts == v1.VectorStoreFileCounts(completed=6, failed=1, total=7)
    assert events[-1].completed.last_sequence == len(events)
    again = [event async for event in stores_watch(stores, **named, resume_after_sequence=3)]
    assert again == events[3:]
    late = [event async for event in stores_watch(stores, **named, resume_after_sequence=len(events))]
    assert late == events[-1:]
    with pytest.raises(OutOfRangeError, match="last event"):
        _ = [event async for event in stores_watch(stores, **named, resume_after_sequence=len(events) + 1)]
    with pytest.raises(FailedPreconditionError, match="has completed"):
        await stores.call("CancelVectorStoreFileBatch", **named)
    got = (await stores.call("GetVectorStoreFileBatch", **named)).vector_store_file_batch
    assert (got.status, got.last_sequence) == (COMPLETED, len(events))
    listed = await stores.call("ListVectorStoreFileBatches", vector_store_id=store)
    assert list(listed.data) == [got]
    inside = await stores.call("ListVectorStoreFileBatchFiles", **named, order=v1.SORT_ORDER_ASC)
    assert [one.id for one in inside.data] == [old, *files]
    assert {dict(one.attributes).get("lot") for one in inside.data} == {None, 7}


def stores_watch(stores: Stores, **fields: Any) -> EventStream[v1.WatchVectorStoreFileBatchResponse]:
    request = v1.WatchVectorStoreFileBatchRequest(**fields)
    return EventStream(stores.stub.WatchVectorStoreFileBatch(request, metadata=stores.metadata))


async def test_a_cancelled_batch_stops_and_what_was_loaded_stays(either: MemoryMesh) -> None:
    stores = Stores(either)
    store = (await stores.create()).id
    files = [await stores.upload(f"text number {index} " * 2000, f"{index}.txt") for index in range(40)]
    entries = [
        v1.VectorStoreBatchEntry(file_id=file, attributes=facts(place=index)) for index, file in enumerate(files)
    ]
    answer = await stores.call("CreateVectorStoreFileBatch", vector_store_id=store, files=entries)
    named = {"vector_store_id": store, "batch_id": answer.vector_store_file_batch.id}
    await stores.call("CancelVectorStoreFileBatch", **named)
    async with asyncio.timeout(60):
        events = [event async for event in stores_watch(stores, **named)]
    last = events[-1]
    assert last.WhichOneof("event") == "cancelled"
    counts = last.cancelled.file_counts
    assert counts.cancelled > 0
    assert counts.completed + counts.cancelled == counts.total == 40
    assert (await stores.call("CancelVectorStoreFileBatch", **named)).vector_store_file_batch.status == CANCELLED
    assert (await stores.get(store)).status == v1.VECTOR_STORE_STATUS_COMPLETED
    assert (
        len((await stores.call("ListVectorStoreFiles", vector_store_id=store, filter=COMPLETED)).data)
        == counts.completed
    )


async def test_deleting_a_store_stops_what_is_being_loaded(either: MemoryMesh) -> None:
    stores = Stores(either)
    files = [await stores.upload(f"text number {index} " * 2000, f"{index}.txt") for index in range(20)]
    store = (await stores.create(file_ids=files)).id
    number = (await _bank(either, store)).number
    await stores.call("DeleteVectorStore", vector_store_id=store)
    async with either.node._database.read() as connection:
        left = sa.select(sa.func.count()).where(chunks.c.bank == number)
        assert (await connection.execute(left)).scalar_one() == 0
    assert (await stores.attach((await stores.create()).id, files[0])).id == files[0]


async def test_an_expired_store_is_shown_but_empty_and_not_searched(either: MemoryMesh) -> None:
    end = v1.VectorStoreExpiration(anchor="last_active_at", days=1)
    stores, store, (file,) = await filled(either, "apples", expires_after=end)
    before = await stores.get(store)
    assert before.expires_at.seconds - before.last_active_at.seconds == 24 * 3600
    bank = await _bank(either, store)
    async with either.node._database.write() as connection:  # a day later
        await connection.execute(sa.update(banks).where(banks.c.number == bank.number).values(expires_at=now() - 1))
    found = await stores.get(store)
    assert (found.status, found.file_counts.total, found.usage_bytes) == (v1.VECTOR_STORE_STATUS_EXPIRED, 0, 0)
    with pytest.raises(FailedPreconditionError, match="expired"):
        await stores.search(store, "apples")
    with pytest.raises(FailedPreconditionError, match="expired"):
        await stores.attach(store, file)
    with pytest.raises(NotFoundError):
        await unary(either.banks.GetMemoryBank(v1.GetMemoryBankRequest(memory_bank_id=store)))
    await either.node.store_parts.sweep()
    assert await _chunks(either, store) == 0
    revision = (await _bank(either, store)).revision
    await either.node.store_parts.sweep()
    assert (await _bank(either, store)).revision == revision  # nothing is left to be swept
    assert not (await stores.call("ListVectorStoreFiles", vector_store_id=store)).data
    assert store in {one.id for one in (await stores.call("ListVectorStores", page_size=1000)).data}
    await stores.call("DeleteVectorStore", vector_store_id=store)


async def test_stores_are_listed_newest_first_and_from_any_place(either: MemoryMesh, name: Name) -> None:
    stores = Stores(either, tenant="lister")
    ids = [(await stores.create(name=str(index))).id for index in range(5)]
    params = v1.BankParams(vector=v1.VectorBankParams())
    bank = v1.RegisterMemoryBankRequest(memory_bank_id=name(), params=params)
    await unary(either.banks.RegisterMemoryBank(bank, metadata=stores.metadata))
    ids.append(bank.memory_bank_id)

    async def listed(**fields: Any) -> tuple[list[str], str]:
        page = await stores.call("ListVectorStores", **fields)
        return [one.id for one in page.data], page.next_page_token

    newest = ids[::-1]
    assert await listed() == (newest, "")
    page, token = await listed(page_size=4)
    assert (page, (await listed(page_size=4, page_token=token))[0]) == (newest[:4], newest[4:])
    assert (await listed(order=v1.SORT_ORDER_ASC))[0] == ids
    assert (await listed(after=newest[1], page_size=2))[0] == newest[2:4]
    assert (await listed(before=newest[4], page_size=2))[0] == newest[2:4]
    with pytest.raises(InvalidArgumentError, match="another list"):
        await listed(page_size=4, page_token=token, order=v1.SORT_ORDER_ASC)
    with pytest.raises(InvalidArgumentError, match="only one of"):
        await listed(after=ids[0], before=ids[1])
    with pytest.raises(NotFoundError, match="nowhere"):
        await listed(after="nowhere")
    assert (await stores.get(bank.memory_bank_id)).name == bank.memory_bank_id
    await stores.call("UpdateVectorStore", vector_store_id=bank.memory_bank_id, name="A name")
    assert (await stores.get(bank.memory_bank_id)).name == "A name"


async def test_several_queries_are_joined_by_rank_and_pages_follow_each_other(either: MemoryMesh) -> None:
    texts = ["red apples", "green pears", "red cherries", "yellow plums", "blue grapes", "red red wine"]
    stores, store, files = await filled(either, *texts)
    both = await stores.search(store, "red apples", "green pears")
    assert {hit.file_id for hit in both.data[:2]} == set(files[:2])
    assert list(both.search_query) == ["red apples", "green pears"]
    for mode in (v1.SEARCH_MODE_VECTOR, v1.SEARCH_MODE_HYBRID):
        whole = await stores.search(store, "red apples", search_mode=mode)
        scores = [hit.score for hit in whole.data]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        found, token = [], ""
        while True:
            page = await stores.search(store, "red apples", search_mode=mode, max_num_results=2, page_token=token)
            found += list(page.data)
            token = page.next_page
            assert page.has_more == bool(token)
            if not token:
                break
        assert found == list(whole.data)
        assert found[0].file_id == files[0]
        options = v1.RankingOptions(score_threshold=scores[1])
        assert len((await stores.search(store, "red apples", search_mode=mode, ranking_options=options)).data) >= 2
        strict = v1.RankingOptions(score_threshold=1.0)
        few = await stores.search(store, "red apples", search_mode=mode, ranking_options=strict)
        assert len(few.data) < len(texts)


async def test_rankers_weigh_the_legs(mesh: MemoryMesh) -> None:
    stores, store, _files = await filled(
        mesh, "red apples", "green pears", "red cherries and many other words of fruit"
    )

    async def ranked(**options: Any) -> list[tuple[str, float]]:
        answer = await stores.search(
            store, "red fruit", search_mode=v1.SEARCH_MODE_HYBRID, ranking_options=v1.RankingOptions(**options)
        )
        return [(hit.file_id, hit.score) for hit in answer.data]

    by_vector = [hit.file_id for hit in (await stores.search(store, "red fruit")).data]
    assert [one for one, _score in await ranked(ranker="weighted", alpha=1.0)] == by_vector
    assert await ranked(ranker="weighted", weights={"vector": 3.0, "keyword": 1.0}) == await ranked(
        ranker="weighted", alpha=0.75
    )
    only = v1.HybridSearchWeights(embedding_weight=1, text_weight=0)
    assert [one for one, _score in await ranked(ranker="rrf", hybrid_search=only)] == by_vector
    assert await ranked() == await ranked(ranker="default-2024-11-15") == await ranked(ranker="rrf", impact_factor=60)
    with pytest.raises(NotFoundError, match="rerank model"):
        await ranked(ranker="neural")


async def test_a_model_rewrites_the_query_first(mesh: MemoryMesh) -> None:
    stores, store, _files = await filled(mesh, "red apples")
    answer = await stores.search(store, "apples please", rewrite_query=True)
    assert answer.search_query[0]
    assert len(answer.data) == 1


@pytest.mark.parametrize(
    ("method", "fields", "words"),
    [
        ("CreateVectorStore", {"name": "x" * 257}, "name"),
        ("CreateVectorStore", {"name": "a\0"}, "name"),
        ("CreateVectorStore", {"description": "x" * 2001}, "description has 2001"),
        ("CreateVectorStore", {"embedding_dimension": 7}, "embedding_dimension is 7"),
        ("CreateVectorStore", {"embedding_model": "scripted"}, "no embedding model"),
        ("CreateVectorStore", {"metadata": facts(a=float("nan"))}, "finite"),
        ("CreateVectorStore", {"chunking_strategy": v1.ChunkingStrategy()}, "chunking_strategy is for file_ids"),
        ("CreateVectorStore", {"expires_after": v1.VectorStoreExpiration(anchor="x", days=1)}, "anchor"),
        (
            "CreateVectorStore",
            {"expires_after": v1.VectorStoreExpiration(anchor="last_active_at", days=366)},
            "days is 366; allowed: 1 to 365",
        ),
        ("UpdateVectorStore", {"expires_after": v1.VectorStoreExpiration()}, "anchor"),
        ("CreateVectorStoreFile", {}, "file_id is empty"),
        ("CreateVectorStoreFile", {"file_id": "f", "attributes": facts(**{f"k{n}": 1 for n in range(17)})}, "17 keys"),
        ("CreateVectorStoreFile", {"file_id": "f", "attributes": facts(**{"k" * 65: 1})}, "64 characters"),
        ("CreateVectorStoreFile", {"file_id": "f", "attributes": facts(k="v" * 513)}, "at most 512"),
        ("CreateVectorStoreFile", {"file_id": "f", "attributes": facts(k=[1])}, "attributes.k: give a string"),
        ("CreateVectorStoreFile", {"file_id": "f", "attributes": facts(k=None)}, "attributes.k: give a string"),
        (
            "CreateVectorStoreFile",
            {
                "file_id": "f",
                "chunking_strategy": v1.ChunkingStrategy(
                    static=v1.StaticChunkingStrategy(static=v1.StaticChunkingConfig(max_chunk_size_tokens=99))
                ),
            },
            "max_chunk_size_tokens is 99",
        ),
        ("CreateVectorStoreFileBatch", {}, "give file_ids or files"),
        (
            "CreateVectorStoreFileBatch",
            {"file_ids": ["a"], "files": [v1.VectorStoreBatchEntry(file_id="b")]},
            "give file_ids or files",
        ),
        ("CreateVectorStoreFileBatch", {"file_ids": ["a", "a"]}, "given twice"),
        ("CreateVectorStoreFileBatch", {"files": [v1.VectorStoreBatchEntry()]}, r"files\[0\].file_id is empty"),
        ("CreateVectorStoreFileBatch", {"file_ids": [str(n) for n in range(2001)]}, "at most 2000"),
        ("GetVectorStoreFileBatch", {}, "batch_id is empty"),
        ("SearchVectorStore", {}, "query has 0"),
        ("SearchVectorStore", {"query": ["a", " "]}, r"query\[1\] is empty"),
        ("SearchVectorStore", {"query": ["a"], "max_num_results": 51}, "allowed: 1 to 50"),
        ("SearchVectorStore", {"query": ["a"], "page_token": "x"}, "page_token"),
        (
            "SearchVectorStore",
            {"query": ["a"], "ranking_options": v1.RankingOptions(ranker="best")},
            "ranker is 'best'",
        ),
        ("SearchVectorStore", {"query": ["a"], "ranking_options": v1.RankingOptions(alpha=0.5)}, "alpha belongs to"),
        (
            "SearchVectorStore",
            {"query": ["a"], "ranking_options": v1.RankingOptions(score_threshold=1.5)},
            "score_threshold is 1.5",
        ),
        (
            "SearchVectorStore",
            {"query": ["a"], "ranking_options": v1.RankingOptions(ranker="weighted", weights={"other": 1})},
            "no leg 'other'",
        ),
        (
            "SearchVectorStore",
            {"query": ["a"], "ranking_options": v1.RankingOptions(ranker="rrf", impact_factor=0)},
            "impact_factor is 0",
        ),
        ("ListVectorStoreFiles", {"page_size": -1}, "page_size"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    mesh: MemoryMesh, method: str, fields: dict[str, Any], words: str
) -> None:
    stores = Stores(mesh)
    if method != "CreateVectorStore":
        fields = {"vector_store_id": (await stores.create()).id, **fields}
    with pytest.raises(InvalidArgumentError, match=words):
        await stores.call(method, **fields)


async def test_unknown_things_are_named(mesh: MemoryMesh) -> None:
    stores = Stores(mesh)
    store = (await stores.create()).id
    for method, fields, words in (
        ("CreateVectorStore", {"file_ids": ["file-none"]}, "file-none"),
        ("CreateVectorStoreFile", {"vector_store_id": store, "file_id": "file-none"}, "file-none"),
        ("CreateVectorStoreFileBatch", {"vector_store_id": store, "file_ids": ["file-none"]}, "file-none"),
        ("GetVectorStoreFileBatch", {"vector_store_id": store, "batch_id": "vsfb_none"}, "vsfb_none"),
        ("UpdateVectorStoreFile", {"vector_store_id": store, "file_id": "file-none"}, "file-none"),
        ("SearchVectorStore", {"vector_store_id": "vs_none", "query": ["a"]}, "vs_none"),
        ("CreateVectorStore", {"embedding_model": "none"}, "none"),
    ):
        with pytest.raises(NotFoundError, match=words):
            await stores.call(method, **fields)


async def test_tenants_never_see_each_others_stores_and_files(either: MemoryMesh) -> None:
    red, blue = Stores(either, "red"), Stores(either, "blue")
    file = await red.upload("secret words")
    store = (await red.create(file_ids=[file])).id
    await red.loaded(store, file)
    assert store not in {one.id for one in (await blue.call("ListVectorStores")).data}
    own = (await blue.create()).id
    for method, fields in (
        ("GetVectorStore", {}),
        ("DeleteVectorStore", {}),
        ("UpdateVectorStore", {}),
        ("ListVectorStoreFiles", {}),
        ("SearchVectorStore", {"query": ["secret"]}),
        ("DeleteVectorStoreFile", {"file_id": file}),
        ("ListVectorStoreFileContent", {"file_id": file}),
    ):
        with pytest.raises(NotFoundError):
            await blue.call(method, vector_store_id=store, **fields)
    with pytest.raises(NotFoundError, match=file):
        await blue.attach(own, file)
    with pytest.raises(StackError):
        await blue.call("CreateVectorStoreFileBatch", vector_store_id=own, file_ids=[file])
    assert len((await red.search(store, "secret")).data) == 1


async def test_ten_clients_at_once_attach_each_file_once(either: MemoryMesh) -> None:
    stores = Stores(either)
    store = (await stores.create()).id
    files = [await stores.upload(f"text of file {index}") for index in range(5)]
    answers = await asyncio.gather(*(stores.attach(store, files[index % 5]) for index in range(10)))
    assert [answer.id for answer in answers] == files * 2
    await stores.loaded(store, *files)
    assert (await stores.get(store)).file_counts == v1.VectorStoreFileCounts(completed=5, total=5)


async def test_a_watched_batch_of_a_deleted_store_ends_the_watch(mesh: MemoryMesh) -> None:
    stores = Stores(mesh)
    store = (await stores.create()).id
    files = [await stores.upload("many words " * 3000, f"{index}.txt") for index in range(10)]
    answer = await stores.call("CreateVectorStoreFileBatch", vector_store_id=store, file_ids=files)
    watch = stores_watch(stores, vector_store_id=store, batch_id=answer.vector_store_file_batch.id)
    deleting = asyncio.create_task(stores.call("DeleteVectorStore", vector_store_id=store))
    async with asyncio.timeout(60):
        (ended,) = await asyncio.gather(_last(watch), return_exceptions=True)
    assert ended in {"cancelled", "completed"} or isinstance(ended, NotFoundError)
    await deleting


async def _last(watch: EventStream[v1.WatchVectorStoreFileBatchResponse]) -> str | None:
    """Name of a stream's last event."""
    return [event.WhichOneof("event") async for event in watch][-1]

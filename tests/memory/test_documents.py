"""Documents in banks, over gRPC: stored once, changed whole, deleted completely, seen by their tenant alone."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
)
from stack_client.memory import DocumentLike, document
from tests.memory.mesh import MemoryMesh

Name = Callable[[], str]
LONG = "\n\n".join(f"Paragraph {number} speaks of subject{number} and of nothing else at all." for number in range(40))


async def bank(mesh: MemoryMesh, name: Name, kind: str = "vector", **params: Any) -> str:
    made = await mesh.bank(name(), **{kind: params or {"chunk_size_in_tokens": 64} if kind == "vector" else params})
    return made.identifier


async def test_a_document_sent_twice_is_stored_once(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    first = await mesh.client.memory.insert(where, {"id": "a", "text": LONG})
    second = await mesh.client.memory.insert(where, {"id": "a", "text": LONG})
    assert (first.inserted, first.unchanged) == (1, 0)
    assert first.chunks > 3
    assert (second.inserted, second.replaced, second.unchanged, second.chunks) == (0, 0, 1, 0)
    hits = await mesh.client.memory.search(where, "subject7", k=100)
    assert len({hit.chunk_id for hit in hits}) == len(hits) == first.chunks


async def test_a_changed_document_keeps_the_chunks_that_did_not_change(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    before = await mesh.client.memory.insert(where, {"id": "a", "text": LONG})
    after = await mesh.client.memory.insert(where, {"id": "a", "text": f"{LONG}\n\nOne more line about zebras."})
    assert after.replaced == 1
    assert 0 < after.chunks < before.chunks
    best = (await mesh.client.memory.search(where, "zebras", mode="keyword", k=1))[0]
    assert "zebras" in best.text


async def test_spans_of_hits_are_places_in_the_documents_text(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    await mesh.client.memory.insert(where, {"id": "a", "text": f"Ünïcödé 🦓 first.\n\n{LONG}"})
    text = await mesh.client.memory.document(where, "a")
    for hit in await mesh.client.memory.search(where, "subject11 Ünïcödé", k=50):
        assert hit.span is not None
        assert text[hit.span[0] : hit.span[1]] == hit.text


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
async def test_a_deleted_document_is_found_in_no_mode(mesh: MemoryMesh, name: Name, mode: str) -> None:
    where = await bank(mesh, name)
    await mesh.client.memory.insert(where, [{"id": "a", "text": "apples are red"}, {"id": "b", "text": "plums"}])
    assert await mesh.client.memory.delete_documents(where, "a", "missing") == 1
    hits = await mesh.client.memory.search(where, "apples are red", mode=mode, k=10)
    assert "a" not in {hit.document_id for hit in hits}
    assert [one.document_id for one in await mesh.client.memory.documents(where)] == ["b"]


async def test_deleting_by_filter_takes_exactly_what_matches(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    documents = [{"id": str(n), "text": f"number {n}", "metadata": {"n": n, "even": n % 2 == 0}} for n in range(10)]
    await mesh.client.memory.insert(where, documents)
    assert await mesh.client.memory.delete_documents(where, where={"even": True, "n": {"gte": 4}}) == 3
    assert {one.document_id for one in await mesh.client.memory.documents(where)} == set("0123579")


async def test_an_update_with_an_old_etag_changes_nothing(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    await mesh.client.memory.insert(where, [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}])
    a, b = sorted(await mesh.client.memory.documents(where), key=lambda one: one.document_id)
    changes = [
        v1.DocumentChange(document_id="a", content=document("three").content, etag=a.etag),
        v1.DocumentChange(document_id="b", content=document("four").content, etag=a.etag),
    ]
    assert a.etag != b.etag
    with pytest.raises(ConflictError, match="'b' was changed"):
        await unary(mesh.banks.UpdateDocuments(v1.UpdateDocumentsRequest(bank_id=where, documents=changes)))
    assert await mesh.client.memory.document(where, "a") == "one"
    changes[1].etag = b.etag
    answer = await mesh.banks.UpdateDocuments(v1.UpdateDocumentsRequest(bank_id=where, documents=changes))
    assert [one.etag for one in answer.documents] != [a.etag, b.etag]
    assert await mesh.client.memory.document(where, "b") == "four"


async def test_new_metadata_alone_can_be_filtered_by_at_once(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    await mesh.client.memory.insert(where, {"id": "a", "text": "one", "metadata": {"colour": "red"}})
    change = v1.DocumentChange(document_id="a")
    change.metadata.update({"colour": "blue"})
    await mesh.banks.UpdateDocuments(v1.UpdateDocumentsRequest(bank_id=where, documents=[change]))
    assert await mesh.client.memory.search(where, "one", where={"colour": "red"}) == []
    (hit,) = await mesh.client.memory.search(where, "one", where={"colour": "blue"})
    assert hit.metadata == {"colour": "blue"}


async def test_one_refused_document_does_not_keep_the_others_out(mesh: MemoryMesh, name: Name) -> None:
    fields = [v1.MetadataField(name="year", type=v1.METADATA_FIELD_TYPE_NUMBER)]
    where = await bank(mesh, name, metadata_fields=fields)
    documents: list[DocumentLike] = [
        {"id": "a", "text": "one", "metadata": {"year": "old"}},
        {"id": "b", "text": "two"},
    ]
    answer = await mesh.client.memory.insert(where, documents)
    assert answer.inserted == 1
    assert answer.failures[0].document_id == "a"
    assert "is not a number" in answer.failures[0].error.message


async def test_a_request_id_answers_a_repeat_and_refuses_another_body(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    request = v1.InsertDocumentsRequest(bank_id=where, documents=[document("one")], request_id=f"{where}-1")
    assert await mesh.banks.InsertDocuments(request) == await mesh.banks.InsertDocuments(request)
    request.documents[0].content.content.items[0].text = "two"
    with pytest.raises(InvalidArgumentError, match="used before with another body"):
        await unary(mesh.banks.InsertDocuments(request))


async def test_tenants_never_see_each_others_rows(mesh: MemoryMesh, name: Name) -> None:
    where = name()
    mine, yours = (("x-tenant", "mine"),), (("x-tenant", "yours"),)
    make = v1.RegisterMemoryBankRequest(memory_bank_id=where, params=v1.BankParams(vector=v1.VectorBankParams()))
    await mesh.banks.RegisterMemoryBank(make, metadata=mine)
    insert = v1.InsertDocumentsRequest(bank_id=where, documents=[document("a secret")])
    await mesh.banks.InsertDocuments(insert, metadata=mine)
    query = v1.QueryDocumentsRequest(bank_id=where, query=document("a secret").content.content)
    with pytest.raises(NotFoundError):
        await unary(mesh.banks.QueryDocuments(query, metadata=yours))
    await mesh.banks.RegisterMemoryBank(make, metadata=yours)
    with pytest.raises(FailedPreconditionError, match="no documents"):
        await unary(mesh.banks.QueryDocuments(query, metadata=yours))
    assert len((await mesh.banks.QueryDocuments(query, metadata=mine)).chunks) == 1


async def test_ten_writers_of_one_document_leave_one_of_their_versions_whole(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    texts = [LONG.replace("Paragraph", f"Writer{number}") for number in range(10)]
    async with asyncio.TaskGroup() as group:
        for text in texts:
            group.create_task(mesh.client.memory.insert(where, {"id": "a", "text": text}))
    stored = await mesh.client.memory.document(where, "a")
    assert stored in texts
    hits = await mesh.client.memory.search(where, "subject1", k=1000)
    assert {hit.text for hit in hits} <= {stored[hit.span[0] : hit.span[1]] for hit in hits if hit.span}
    assert len(hits) == (await mesh.client.memory.documents(where))[0].chunk_count


async def test_a_document_whose_life_has_ended_is_gone_at_once(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    await mesh.client.memory.insert(where, {"id": "a", "text": "short lived"}, ttl_seconds=1)
    await mesh.client.memory.insert(where, {"id": "b", "text": "long lived"})
    async with asyncio.timeout(10):
        while len(await mesh.client.memory.search(where, "lived", k=10)) > 1:
            await asyncio.sleep(0.05)
    assert [one.document_id for one in await mesh.client.memory.documents(where)] == ["b"]


@pytest.mark.parametrize("kind", ["keyvalue", "graph"])
async def test_banks_of_other_kinds_take_no_documents(mesh: MemoryMesh, name: Name, kind: str) -> None:
    where = (await mesh.bank(name(), **{kind: {}})).identifier
    with pytest.raises(FailedPreconditionError, match=f"kind {kind}"):
        await mesh.client.memory.insert(where, "text")


async def test_an_image_is_refused_by_name(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    image = v1.ContentItem(image=v1.ImageContent(data=b"png"))
    content = v1.ContentOrUrl(content=v1.InterleavedContent(items=[image]))
    with pytest.raises(InvalidArgumentError, match="image"):
        await mesh.client.memory.insert(where, v1.RAGDocument(document_id="a", content=content))


async def test_a_keyword_bank_searches_declared_fields_with_their_boosts(mesh: MemoryMesh, name: Name) -> None:
    where = (await mesh.client.memory.create(name(), "keyword", searched={"content": 1, "title": 5})).identifier
    documents = [
        {"id": "in-text", "text": "the whale swims " * 3, "metadata": {"title": "sea"}},
        {"id": "in-title", "text": "it swims far and swims long", "metadata": {"title": "whale"}},
    ]
    await mesh.client.memory.insert(where, documents)
    hits = await mesh.client.memory.search(where, "whale")
    assert [hit.document_id for hit in hits] == ["in-title", "in-text"]
    with pytest.raises(UnsupportedError, match="without vectors"):
        await mesh.client.memory.search(where, "whale", mode="hybrid")


async def test_a_bank_given_another_model_is_searched_with_its_embeddings(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    await mesh.client.memory.insert(where, [{"id": str(n), "text": f"number {n} of many"} for n in range(20)])
    job = await mesh.client.memory.reembed(where, "words-again")
    async with mesh.client.memory.watch_job(job.job_id) as events:
        kinds = [event.WhichOneof("event") async for event in events]
    assert kinds[-1] == "completed"
    made = await mesh.client.memory.get(where)
    assert made.params.vector.embedding_model == "words-again"
    hits = await mesh.client.memory.search(where, "number 7 of many", mode="vector", k=20)
    assert len(hits) == 20
    assert hits[0].document_id == "7"
    assert (await mesh.client.memory.insert(where, {"id": "0", "text": "number 0 of many"})).unchanged == 0


async def test_a_bank_that_was_made_anew_does_not_answer_requests_of_the_old_one(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    request = v1.InsertDocumentsRequest(bank_id=where, documents=[document("one")], request_id=f"{where}-again")
    await mesh.banks.InsertDocuments(request)
    await mesh.client.memory.delete(where)
    with pytest.raises(NotFoundError):
        await unary(mesh.banks.InsertDocuments(request))
    await mesh.client.memory.create(where)
    await mesh.banks.InsertDocuments(request)
    assert len(await mesh.client.memory.documents(where)) == 1


async def test_writes_go_on_while_a_bank_is_embedded_anew(mesh: MemoryMesh, name: Name) -> None:
    where = await bank(mesh, name)
    await mesh.client.memory.insert(where, [{"id": f"old{n}", "text": f"text {n}"} for n in range(50)])
    job = await mesh.client.memory.reembed(where)
    for number in range(30):
        await mesh.client.memory.insert(where, {"id": f"new{number}", "text": f"another text {number}"})
    async with mesh.client.memory.watch_job(job.job_id) as events:
        kinds = [event.WhichOneof("event") async for event in events]
    assert kinds[-1] == "completed"
    assert len(await mesh.client.memory.search(where, "text", mode="vector", k=200)) == 80

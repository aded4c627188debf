"""Ingestion jobs: accepted durably, worked on document by document, watched from any point, cancelled, taken over."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from llamastack import v1
from services.memory.bank import Bank
from services.memory.documents import DocumentStore, Stored
from services.memory.embedder import EmbeddingModel
from services.memory.job_runner import JobRunner
from services.memory.jobs import JobStore, LeaseLostError
from services.memory.tables import chunks, documents, job_events, jobs
from services.memory.text import DraftDocument
from stack_client.calls import EventStream, unary
from stack_client.content import content, struct
from stack_client.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    StackError,
    UnavailableError,
)
from tests.memory.ingest.test_files import upload
from tests.memory.mesh import MemoryMesh

Name = Callable[[], str]


def document(document_id: str, text: str, **options: Any) -> v1.RAGDocument:
    return v1.RAGDocument(document_id=document_id, content=v1.ContentOrUrl(content=content(text)), **options)


async def create(mesh: MemoryMesh, bank: str, *sent: v1.RAGDocument, **options: Any) -> v1.Job:
    if sent:
        options["documents"] = v1.IngestionDocuments(documents=sent)
    request = v1.CreateIngestionJobRequest(bank_id=bank, **options)
    response: Any = await unary(mesh.banks.CreateIngestionJob(request))
    job: v1.Job = response.job
    return job


async def watch(mesh: MemoryMesh, job_id: str, *, after: int = 0) -> list[Any]:
    """All events after one, up to the last."""
    request = v1.WatchIngestionJobRequest(job_id=job_id, resume_after_sequence=after)
    async with asyncio.timeout(60):
        return [event async for event in EventStream[Any](mesh.banks.WatchIngestionJob(request))]


async def job_of(mesh: MemoryMesh, job_id: str) -> v1.Job:
    response = await unary(mesh.banks.GetIngestionJob(v1.GetIngestionJobRequest(job_id=job_id)))
    job: v1.Job = response.job
    return job


async def texts(mesh: MemoryMesh, bank: str) -> dict[str, list[str]]:
    """Texts of the chunks of a bank by document."""
    number = (await mesh.node._banks.get(bank, tenant="")).number
    query = (
        sa.select(documents.c.document_id, chunks.c.text)
        .join(chunks, chunks.c.document == documents.c.number, isouter=True)
        .where(documents.c.bank == number)
        .order_by(documents.c.document_id, chunks.c.place)
    )
    result: dict[str, list[str]] = {}
    async with mesh.node._database.read() as connection:
        for document_id, text in await connection.execute(query):
            result.setdefault(document_id, []).append(text)
    return result


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


class Gate(DocumentStore):
    """Stores when it is told to."""

    def __init__(self, mesh: MemoryMesh, *, failures: list[StackError] | None = None) -> None:
        super().__init__(mesh.node._database, mesh.node._catalog, mesh.node._embedder)
        self.open = asyncio.Event()
        self.waiting = 0
        self.failures = failures or []

    async def put(self, bank: Bank, draft: DraftDocument) -> Stored:
        if self.failures:
            raise self.failures.pop(0)
        self.waiting += 1
        await self.open.wait()
        return await super().put(bank, draft)

    async def reembed(
        self, bank: Bank, model: EmbeddingModel, *, report: Callable[[int, int], Awaitable[None]]
    ) -> None:
        await self.open.wait()
        await super().reembed(bank, model, report=report)


@pytest.fixture
async def bank(either: MemoryMesh, name: Name) -> str:
    one = name()
    await either.bank(one, vector={})
    return one


@pytest.fixture
async def gated(either: MemoryMesh) -> AsyncIterator[Gate]:
    """A worker whose store waits."""
    gate = Gate(either)
    async with _runner(either, gate):
        yield gate


async def test_a_job_ingests_its_documents_and_tells_of_each(working: MemoryMesh, bank: str) -> None:
    job = await create(
        working, bank, document("a", "Alpha text."), document("b.csv", "x,y\n1,2\n", mime_type="text/csv")
    )
    assert (job.status, job.kind, job.progress.total) == (v1.JOB_STATUS_SCHEDULED, "ingestion", 2)
    events = await watch(working, job.job_id)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].state.status == v1.JOB_STATUS_SCHEDULED
    assert events[1].state.status == v1.JOB_STATUS_IN_PROGRESS
    handled = {event.document.document_id: event.document for event in events if event.HasField("document")}
    assert {one: (event.chunks, event.unchanged) for one, event in handled.items()} == {
        "a": (1, False),
        "b.csv": (1, False),
    }
    done = events[-1].completed
    assert (done.progress.done, done.metadata["inserted"], done.metadata["chunks"]) == (2, 2, 2)
    assert done.completed_at.seconds >= done.started_at.seconds >= done.created_at.seconds
    assert await texts(working, bank) == {"a": ["Alpha text."], "b.csv": ["x: 1\ny: 2"]}
    assert await job_of(working, job.job_id) == done


async def test_only_what_changed_is_ingested_again(working: MemoryMesh, bank: str) -> None:
    first = await create(working, bank, document("a", "Alpha."), document("b", "Beta."))
    await watch(working, first.job_id)
    again = await create(working, bank, document("a", "Alpha."), document("b", "Beta two."))
    done = (await watch(working, again.job_id))[-1].completed
    assert (done.metadata["unchanged"], done.metadata["replaced"]) == (1, 1)
    assert (await texts(working, bank))["b"] == ["Beta two."]


async def test_a_document_that_fails_does_not_fail_the_job(working: MemoryMesh, bank: str) -> None:
    bad = document("bad.json", '{"a": ', mime_type="application/json")
    job = await create(working, bank, document("a", "Alpha."), bad)
    events = await watch(working, job.job_id)
    [failed] = [event.document for event in events if event.document.HasField("error")]
    assert failed.document_id == "bad.json"
    assert "no well-formed JSON" in failed.error.message
    assert failed.error.reason == v1.ERROR_REASON_INVALID_VALUE
    assert events[-1].completed.metadata["failed"] == 1


async def test_files_and_urls_become_documents(working: MemoryMesh, bank: str) -> None:
    file = await upload(working, b"# Title\n\nFrom a file.", filename="notes.md")
    facts = struct({"team": "red"})
    job = await create(working, bank, files=v1.IngestionFiles(file_ids=[file.id], metadata=facts))
    await watch(working, job.job_id)
    urls = [v1.URL(uri="data:text/plain,From%20a%20URL."), v1.URL(uri="http://127.0.0.1:1/secret")]
    job = await create(working, bank, urls=v1.IngestionUrls(urls=urls))
    events = await watch(working, job.job_id)
    [failed] = [event.document for event in events if event.document.HasField("error")]
    assert "not public" in failed.error.message
    found = await texts(working, bank)
    assert sorted(text for all_texts in found.values() for text in all_texts) == [
        "# Title\n\nFrom a file.", "From a URL."
    ]  # fmt: skip
    number = (await working.node._banks.get(bank, tenant="")).number
    async with working.node._database.read() as connection:
        query = sa.select(documents).where(documents.c.bank == number, documents.c.file_id == file.id)
        row = (await connection.execute(query)).mappings().one()
    assert (row["source"], row["metadata"], row["mime_type"]) == ("notes.md", {"team": "red"}, "text/markdown")


async def test_the_cutting_asked_for_is_used(working: MemoryMesh, bank: str) -> None:
    sizes = v1.StaticChunkingConfig(max_chunk_size_tokens=100, chunk_overlap_tokens=0)
    strategy = v1.ChunkingStrategy(static=v1.StaticChunkingStrategy(static=sizes))
    text = " ".join(f"w{number:03d}" for number in range(250))
    job = await create(working, bank, document("a", text), chunking_strategy=strategy)
    await watch(working, job.job_id)
    assert [len(part.split()) for part in (await texts(working, bank))["a"]] == [100, 100, 50]


async def test_a_model_writes_the_context_of_each_chunk(working: MemoryMesh, bank: str) -> None:
    sizes = v1.ContextualChunkingConfig(
        max_chunk_size_tokens=100, chunk_overlap_tokens=0, context_prompt="{{CHUNK_CONTENT}}"
    )
    strategy = v1.ChunkingStrategy(contextual=v1.ContextualChunkingStrategy(contextual=sizes))
    text = " ".join(f"w{number:03d}" for number in range(250))
    job = await create(working, bank, document("a", text), chunking_strategy=strategy)
    await watch(working, job.job_id)
    number = (await working.node._banks.get(bank, tenant="")).number
    async with working.node._database.read() as connection:
        query = sa.select(chunks.c.context, chunks.c.text).where(chunks.c.bank == number).order_by(chunks.c.place)
        rows = (await connection.execute(query)).all()
    assert len(rows) == 3
    assert all(row.context and row.text.startswith("w") for row in rows)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "give documents"),
        ({"documents": v1.IngestionDocuments()}, "0 documents"),
        ({"documents": v1.IngestionDocuments(documents=[v1.RAGDocument()])}, "document_id"),
        ({"documents": v1.IngestionDocuments(documents=[document("a", "x"), document("a", "y")])}, "twice"),
        ({"documents": v1.IngestionDocuments(documents=[v1.RAGDocument(document_id="a")])}, "content"),
        ({"urls": v1.IngestionUrls(urls=[v1.URL()])}, "urls.urls"),
        ({"documents": v1.IngestionDocuments(documents=[document("a", "x")]), "ttl_seconds": 0}, "ttl_seconds"),
        (
            {
                "documents": v1.IngestionDocuments(documents=[document("a", "x")]),
                "chunking_strategy": v1.ChunkingStrategy(
                    static=v1.StaticChunkingStrategy(static=v1.StaticChunkingConfig(max_chunk_size_tokens=20))
                ),
            },
            "100 to 4096",
        ),
    ],
)
async def test_jobs_that_make_no_sense_are_refused(
    mesh: MemoryMesh, name: Name, options: dict[str, Any], what: str
) -> None:
    one = name()
    await mesh.bank(one, vector={})
    with pytest.raises(InvalidArgumentError, match=what):
        await create(mesh, one, **options)


async def test_images_banks_of_other_kinds_and_unknown_files_are_refused(mesh: MemoryMesh, name: Name) -> None:
    vector, graph, keyword = name(), name(), name()
    await mesh.bank(vector, vector={})
    await mesh.bank(graph, graph={})
    await mesh.bank(keyword, keyword={})
    image = v1.RAGDocument(document_id="a")
    image.content.content.items.add().image.data = b"x"
    with pytest.raises(InvalidArgumentError, match="image"):
        await create(mesh, vector, image)
    with pytest.raises(FailedPreconditionError, match="graph"):
        await create(mesh, graph, document("a", "x"))
    with pytest.raises(FailedPreconditionError, match="no embeddings"):
        await create(mesh, keyword, reembed=v1.Reembedding())
    with pytest.raises(NotFoundError, match="file-none"):
        await create(mesh, vector, files=v1.IngestionFiles(file_ids=["file-none"]))
    with pytest.raises(NotFoundError, match="nowhere"):
        await create(mesh, "nowhere", document("a", "x"))
    with pytest.raises(NotFoundError, match="job-none"):
        await watch(mesh, "job-none")


async def test_a_repeat_is_the_same_job_and_another_under_its_name_is_refused(
    working: MemoryMesh, bank: str, name: Name
) -> None:
    key, job_id = name(), name()
    first = await create(working, bank, document("a", "x"), request_id=key)
    assert await create(working, bank, document("a", "x"), request_id=key) == first
    with pytest.raises(InvalidArgumentError, match="used before"):
        await create(working, bank, document("a", "y"), request_id=key)
    named = await create(working, bank, document("b", "x"), job_id=job_id)
    assert (await create(working, bank, document("b", "x"), job_id=job_id)).created_at == named.created_at
    with pytest.raises(AlreadyExistsError, match=job_id):
        await create(working, bank, document("b", "y"), job_id=job_id)


async def test_a_watcher_may_come_at_any_point_and_sees_the_end_once(working: MemoryMesh, bank: str) -> None:
    job = await create(working, bank, *(document(f"d{number}", f"Text {number}.") for number in range(6)))
    events = await watch(working, job.job_id)
    for after in range(len(events)):
        assert await watch(working, job.job_id, after=after) == events[after:]
    assert await watch(working, job.job_id, after=len(events)) == events[-1:], "a late one sees how it ended"
    with pytest.raises(OutOfRangeError, match="last event"):
        await watch(working, job.job_id, after=len(events) + 1)


async def test_events_of_old_jobs_are_forgotten_but_for_the_last(working: MemoryMesh, bank: str) -> None:
    job = await create(working, bank, document("a", "x"))
    events = await watch(working, job.job_id)
    async with working.node._database.write() as connection:
        change = sa.update(jobs).where(jobs.c.job_id == job.job_id).values(completed_at=1)
        await connection.execute(change)
    await working.node.ingestion.jobs.sweep()
    with pytest.raises(OutOfRangeError) as failure:
        await watch(working, job.job_id)
    oldest = int(failure.value.metadata["oldest_sequence"])
    assert await watch(working, job.job_id, after=oldest - 1) == events[-1:]


async def test_a_cancelled_job_keeps_what_was_done_and_stops(either: MemoryMesh, bank: str, gated: Gate) -> None:
    job = await create(either, bank, *(document(f"d{number}", f"Text {number}.") for number in range(20)))

    async def begun() -> bool:
        return gated.waiting > 0

    await until(begun)
    with pytest.raises(FailedPreconditionError, match=job.job_id):
        await unary(either.banks.UnregisterMemoryBank(v1.UnregisterMemoryBankRequest(memory_bank_id=bank)))
    request = v1.CancelIngestionJobRequest(job_id=job.job_id)
    answer = (await unary(either.banks.CancelIngestionJob(request))).job
    assert answer.status in {v1.JOB_STATUS_CANCELLING, v1.JOB_STATUS_CANCELLED}
    events = await watch(either, job.job_id)
    assert events[-1].HasField("cancelled")
    assert [event for event in events if event.WhichOneof("event") in {"completed", "failed"}] == []
    again = (await unary(either.banks.CancelIngestionJob(request))).job
    assert again.status == v1.JOB_STATUS_CANCELLED
    await unary(either.banks.UnregisterMemoryBank(v1.UnregisterMemoryBankRequest(memory_bank_id=bank)))


async def test_a_job_that_nobody_has_begun_is_cancelled_at_once_and_one_that_ended_cannot_be(
    either: MemoryMesh, bank: str
) -> None:
    job = await create(either, bank, document("a", "x"))
    answer = await unary(either.banks.CancelIngestionJob(v1.CancelIngestionJobRequest(job_id=job.job_id)))
    assert answer.job.status == v1.JOB_STATUS_CANCELLED
    async with _runner(either, either.node._documents):
        other = await create(either, bank, document("a", "x"))
        await watch(either, other.job_id)
    with pytest.raises(FailedPreconditionError, match="completed"):
        await unary(either.banks.CancelIngestionJob(v1.CancelIngestionJobRequest(job_id=other.job_id)))
    assert await texts(either, bank) == {"a": ["x"]}


async def test_what_is_unavailable_is_tried_again_and_said(either: MemoryMesh, bank: str) -> None:
    gate = Gate(either, failures=[UnavailableError("the model is asleep"), UnavailableError("still asleep")])
    gate.open.set()
    async with _runner(either, gate):
        job = await create(either, bank, document("a", "x"))
        events = await watch(either, job.job_id)
    said = [event.state.progress.message for event in events if event.HasField("state")]
    assert said[2:] == ["waiting: the model is asleep", "waiting: still asleep"]
    assert events[-1].completed.metadata["inserted"] == 1


async def test_a_job_fails_when_its_model_is_gone(either: MemoryMesh, bank: str) -> None:
    gate = Gate(either, failures=[NotFoundError("no model any more", reason="MODEL_NOT_FOUND")])
    gate.open.set()
    async with _runner(either, gate):
        job = await create(either, bank, *(document(f"d{number}", "x") for number in range(3)))
        events = await watch(either, job.job_id)
    assert events[-1].failed.error.message == "no model any more"
    assert (await job_of(either, job.job_id)).status == v1.JOB_STATUS_FAILED


async def test_a_bug_over_one_document_fails_that_document_alone(either: MemoryMesh, bank: str) -> None:
    class Broken(DocumentStore):
        async def put(self, bank: Bank, draft: DraftDocument) -> Stored:
            if draft.document_id == "a":
                raise ZeroDivisionError("a bug")
            return await super().put(bank, draft)

    async with _runner(either, Broken(either.node._database, either.node._catalog, either.node._embedder)):
        job = await create(either, bank, document("a", "x"), document("b", "y"))
        done = (await watch(either, job.job_id))[-1].completed
    assert (done.metadata["failed"], done.metadata["inserted"]) == (1, 1)


async def test_a_stopped_worker_gives_its_job_back_and_the_next_goes_on(either: MemoryMesh, bank: str) -> None:
    gate = Gate(either)
    async with _runner(either, gate):
        job = await create(either, bank, *(document(f"d{number}", f"Text {number}.") for number in range(6)))

        async def begun() -> bool:
            return gate.waiting > 0

        await until(begun)
    async with _runner(either, either.node._documents):
        events = await watch(either, job.job_id)
    assert events[-1].completed.metadata["inserted"] == 6
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_a_worker_that_lost_its_lease_writes_nothing_more(either: MemoryMesh, bank: str) -> None:
    store = JobStore(either.node._database, lease_seconds=0.0)
    job = await create(either, bank, document("a", "x"))
    first = await store.claim("one")
    second = await store.claim("two")
    assert first is not None
    assert second is not None
    assert second.fence == first.fence + 1
    for work in (store.extend(first), store.note(first, "?"), store.finish(first, v1.JOB_STATUS_COMPLETED)):
        with pytest.raises(LeaseLostError):
            await work
    await store.finish(second, v1.JOB_STATUS_COMPLETED)
    with pytest.raises(LeaseLostError):
        await store.finish(second, v1.JOB_STATUS_COMPLETED)
    assert (await watch(either, job.job_id))[-1].HasField("completed")


async def test_two_workers_share_the_jobs_and_do_each_once(either: MemoryMesh, bank: str) -> None:
    store = either.node._documents
    made = [await create(either, bank, document(f"d{number}", f"T {number}.")) for number in range(8)]
    async with _runner(either, store), _runner(either, store):
        for job in made:
            done = (await watch(either, job.job_id))[-1].completed
            assert done.metadata["inserted"] == 1
    async with either.node._database.read() as connection:
        query = sa.select(sa.func.count()).select_from(job_events).join(jobs, jobs.c.number == job_events.c.job)
        count = (await connection.execute(query.where(jobs.c.job_id.in_([job.job_id for job in made])))).scalar_one()
    assert count == 8 * 4


async def test_a_bank_is_embedded_anew(working: MemoryMesh, bank: str) -> None:
    await watch(working, (await create(working, bank, document("a", "x"))).job_id)
    job = await create(working, bank, reembed=v1.Reembedding())
    events = await watch(working, job.job_id)
    done = events[-1].completed
    assert (done.kind, done.progress.done, done.progress.total, done.progress.unit) == ("reembedding", 1, 1, "chunks")


async def test_jobs_are_listed_newest_first_by_bank_and_status(either: MemoryMesh, bank: str) -> None:
    made = [(await create(either, bank, document("a", str(number)))).job_id for number in range(4)]
    await unary(either.banks.CancelIngestionJob(v1.CancelIngestionJobRequest(job_id=made[1])))

    async def listed(**options: Any) -> tuple[list[str], str]:
        response = await unary(either.banks.ListIngestionJobs(v1.ListIngestionJobsRequest(bank_id=bank, **options)))
        return [job.job_id for job in response.data], response.next_page_token

    first, token = await listed(page_size=3)
    second, end = await listed(page_size=3, page_token=token)
    assert (first + second, end) == (made[::-1], "")
    assert (await listed(statuses=[v1.JOB_STATUS_CANCELLED]))[0] == [made[1]]
    with pytest.raises(InvalidArgumentError, match="page_token"):
        await listed(page_token=token, statuses=[v1.JOB_STATUS_FAILED])
    for job_id in made[2:] + made[:1]:
        await unary(either.banks.CancelIngestionJob(v1.CancelIngestionJobRequest(job_id=job_id)))


async def test_a_file_that_a_job_reads_is_not_deleted(either: MemoryMesh, bank: str) -> None:
    file = await upload(either, b"text")
    job = await create(either, bank, files=v1.IngestionFiles(file_ids=[file.id]))
    delete = functools.partial(either.stub(v1.FilesServiceStub).DeleteFile, v1.DeleteFileRequest(file_id=file.id))
    with pytest.raises(FailedPreconditionError, match=job.job_id):
        await unary(delete())
    await unary(either.banks.CancelIngestionJob(v1.CancelIngestionJobRequest(job_id=job.job_id)))
    await unary(delete())


def _runner(mesh: MemoryMesh, store: DocumentStore) -> JobRunner:
    runner = mesh.node.ingestion.runner(store, jobs_at_once=2)
    runner._retry = 0.01
    return runner

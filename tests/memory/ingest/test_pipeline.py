"""From a source to a draft: what makes a document the same, contexts that fail, whose is whose."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llamastack import v1
from services.memory.cut.context import ContextWriter
from services.memory.cut.cutter import Cutting, bank_sizes, cutting_of
from services.memory.embedder import pieces as word_pieces
from services.memory.pipeline import Source, recipe
from services.memory.text import Piece
from stack_client.calls import unary
from stack_client.content import struct
from stack_client.errors import InvalidArgumentError, NotFoundError
from tests.memory.ingest.test_files import pieces as upload_pieces
from tests.memory.mesh import MemoryMesh

Name = Callable[[], str]
SOURCE = Source(document_id="a", data=b"Text.", name="a.txt", metadata={"team": "red"})
CUTTING = Cutting(size=100, overlap=10)


class Words:
    window = 60

    async def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        return word_pieces(text)


async def bank_of(mesh: MemoryMesh, name: str, **params: Any) -> Any:
    await mesh.bank(name, **params)
    return await mesh.node._banks.get(name, tenant="")


async def test_everything_that_chunks_depend_on_makes_another_recipe(mesh: MemoryMesh, name: Name) -> None:
    bank = await bank_of(mesh, name(), vector={})
    same = recipe(bank, SOURCE, CUTTING)
    assert recipe(bank, replace(SOURCE, metadata={"team": "red"}), CUTTING) == same
    assert recipe(bank, SOURCE, replace(CUTTING, context_at_once=9)) == same
    others = [
        recipe(bank, replace(SOURCE, data=b"Text!"), CUTTING),
        recipe(bank, replace(SOURCE, metadata={"team": "blue"}), CUTTING),
        recipe(bank, replace(SOURCE, mime_type="text/markdown"), CUTTING),
        recipe(bank, replace(SOURCE, name="b.txt"), CUTTING),
        recipe(bank, replace(SOURCE, expires_at=5), CUTTING),
        recipe(bank, SOURCE, replace(CUTTING, size=101)),
        recipe(bank, SOURCE, replace(CUTTING, strategy="static")),
        recipe(bank, SOURCE, replace(CUTTING, context_model="")),
        recipe(replace(bank, embedding_model="other"), SOURCE, CUTTING),
    ]
    assert len({same, *others}) == 10


async def test_what_is_unchanged_is_not_even_read(
    mesh: MemoryMesh, name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = await bank_of(mesh, name(), keyword={})
    pipeline, store = mesh.node.ingestion.pipeline, mesh.node._documents
    stored = await pipeline.ingest(bank, SOURCE, CUTTING, store)
    assert (stored.status, stored.chunks) == ("inserted", 1)

    async def unread(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was read")

    monkeypatch.setattr(pipeline._parser, "parse", unread)
    assert await pipeline.ingest(bank, SOURCE, CUTTING, store) is None


async def test_metadata_that_break_the_banks_declarations_are_refused(mesh: MemoryMesh, name: Name) -> None:
    fields = [{"name": "team", "type": v1.METADATA_FIELD_TYPE_NUMBER}]
    bank = await bank_of(mesh, name(), keyword={"metadata_fields": fields})
    with pytest.raises(InvalidArgumentError, match="team"):
        await mesh.node.ingestion.pipeline.prepare(bank, SOURCE, CUTTING)


async def test_a_line_of_context_that_fails_is_left_out_and_the_document_comes_again(
    mesh: MemoryMesh, name: Name
) -> None:
    bank = await bank_of(mesh, name(), keyword={})
    pipeline = mesh.node.ingestion.pipeline
    cutting = replace(CUTTING, context_model="no-such-model")
    prepared = await pipeline.prepare(bank, SOURCE, cutting)
    assert prepared.contexts_failed == 1
    [chunk] = prepared.draft.chunks
    assert chunk.piece.context == ""
    assert prepared.draft.recipe_hash != recipe(bank, SOURCE, cutting)


async def test_a_context_fits_beside_its_piece_into_what_the_model_reads(mesh: MemoryMesh) -> None:
    channel = mesh.node._context.open_channel("inference")
    try:
        prompt = "{{WHOLE_DOCUMENT}} / {{CHUNK_CONTENT}}"
        cutting = replace(CUTTING, context_model="scripted", context_prompt=prompt)
        text = "One two three. " * 40
        piece = Piece(text=text[:150], start=0, stop=150, tokens=40)
        written = await ContextWriter(channel).write(text, [piece], cutting, tokens=Words())
        [found] = written.pieces
        assert found.context
        assert (found.text, found.start, found.stop) == (piece.text, 0, 150)
        assert found.tokens == 40 + len(word_pieces(found.context)) <= Words.window
        with pytest.raises(InvalidArgumentError, match="CHUNK_CONTENT"):
            await ContextWriter(channel).write(text, [piece], replace(cutting, context_prompt="?"), tokens=Words())
    finally:
        await channel.close(None)


async def test_strategies_map_to_sizes_within_their_bounds(mesh: MemoryMesh, name: Name) -> None:
    bank = await bank_of(mesh, name(), vector={"chunk_size_in_tokens": 200, "overlap_size_in_tokens": 20})
    assert cutting_of(None, bank, window=512) == Cutting(size=200, overlap=20)
    assert cutting_of(None, bank, window=100) == Cutting(size=100, overlap=10)
    static = v1.ChunkingStrategy(static=v1.StaticChunkingStrategy())
    assert cutting_of(static, bank, window=256) == Cutting(strategy="static", size=800, overlap=400)
    contextual = v1.ChunkingStrategy(contextual=v1.ContextualChunkingStrategy())
    found = cutting_of(contextual, bank, window=350)
    assert (found.size, found.overlap, found.context_model) == (350, 200, "")
    assert bank_sizes(await bank_of(mesh, name(), keyword={}), window=256) == (256, 32)
    for config in (
        v1.ContextualChunkingConfig(max_concurrency=65),
        v1.ContextualChunkingConfig(timeout_seconds=0),
        v1.ContextualChunkingConfig(max_chunk_size_tokens=200, chunk_overlap_tokens=200),
    ):
        strategy = v1.ChunkingStrategy(contextual=v1.ContextualChunkingStrategy(contextual=config))
        with pytest.raises(InvalidArgumentError):
            cutting_of(strategy, bank, window=512)


async def test_tenants_see_neither_files_nor_jobs_of_each_other(either: MemoryMesh, name: Name) -> None:
    mine, theirs = [("x-tenant", "mine")], [("x-tenant", "theirs")]
    files, banks, bank = either.stub(v1.FilesServiceStub), either.banks, name()

    async def sent() -> Any:
        for message in upload_pieces(b"text"):
            yield message

    file = (await unary(files.UploadFile(sent(), metadata=mine))).file
    register = v1.RegisterMemoryBankRequest(memory_bank_id=bank, params=v1.BankParams(keyword=v1.KeywordBankParams()))
    for tenant in (mine, theirs):
        await unary(banks.RegisterMemoryBank(register, metadata=tenant))
    job = v1.CreateIngestionJobRequest(
        bank_id=bank, job_id=name(), files=v1.IngestionFiles(file_ids=[file.id], metadata=struct({}))
    )
    await unary(banks.CreateIngestionJob(job, metadata=mine))
    for call in (
        files.GetFile(v1.GetFileRequest(file_id=file.id), metadata=theirs),
        files.DeleteFile(v1.DeleteFileRequest(file_id=file.id), metadata=theirs),
        banks.CreateIngestionJob(job, metadata=theirs),
        banks.GetIngestionJob(v1.GetIngestionJobRequest(job_id=job.job_id), metadata=theirs),
        banks.CancelIngestionJob(v1.CancelIngestionJobRequest(job_id=job.job_id), metadata=theirs),
    ):
        with pytest.raises(NotFoundError):
            await unary(call)
    for listed in (
        files.ListFiles(v1.ListFilesRequest(), metadata=theirs),
        banks.ListIngestionJobs(v1.ListIngestionJobsRequest(), metadata=theirs),
    ):
        assert list((await unary(listed)).data) == []
    await unary(banks.CancelIngestionJob(v1.CancelIngestionJobRequest(job_id=job.job_id), metadata=mine))

"""NULs, numbers that are not finite, and what errors tell."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.struct_pb2 import Struct, Value

from llamastack import v1
from services.memory.database import Database, StoreError
from services.memory.strings import TEXTS, clean
from stack_client.calls import unary
from stack_client.content import content, text_of
from stack_client.errors import InvalidArgumentError
from tests.memory.mesh import MemoryMesh

Name = Callable[[], str]
NAN = Struct(fields={"a": Value(number_value=math.nan)})
INFINITE = Struct(fields={"a": Value(number_value=math.inf)})


def nul(**fields: str) -> Struct:
    result = Struct()
    result.update(fields)
    return result


@pytest.mark.parametrize("bad", [NAN, INFINITE], ids=["nan", "infinity"])
async def test_numbers_that_are_not_finite_refuse_their_document_alone(
    mesh: MemoryMesh, name: Name, bad: Struct
) -> None:
    where = (await mesh.bank(name(), vector={})).identifier
    documents = [
        v1.RAGDocument(document_id="bad", content=v1.ContentOrUrl(content=content("one")), metadata=bad),
        v1.RAGDocument(document_id="good", content=v1.ContentOrUrl(content=content("two"))),
    ]
    answer = await unary(mesh.banks.InsertDocuments(v1.InsertDocumentsRequest(bank_id=where, documents=documents)))
    assert [one.document_id for one in answer.failures] == ["bad"]
    assert "documents[0].metadata: only finite numbers" in answer.failures[0].error.message
    assert answer.inserted == 1
    chunks = v1.InsertChunksRequest(vector_db_id=where, chunks=[v1.Chunk(content=content("x"), metadata=bad)])
    with pytest.raises(InvalidArgumentError, match="finite"):
        await unary(mesh.stub(v1.VectorIOServiceStub).InsertChunks(chunks))
    job = v1.CreateIngestionJobRequest(bank_id=where, documents=v1.IngestionDocuments(documents=documents))
    with pytest.raises(InvalidArgumentError, match="finite"):
        await unary(mesh.banks.CreateIngestionJob(job))


@pytest.mark.parametrize(
    ("method", "message", "field"),
    [
        ("GetMemoryBank", v1.GetMemoryBankRequest(memory_bank_id="a\0"), "memory_bank_id"),
        ("GetDocuments", v1.GetDocumentsRequest(bank_id="b", document_ids=["x", "a\0"]), "document_ids"),
        ("GetEntries", v1.GetEntriesRequest(bank_id="a\0", keys=["x"]), "bank_id"),
        (
            "InsertDocuments",
            v1.InsertDocumentsRequest(bank_id="b", documents=[v1.RAGDocument(metadata=nul(a="\0"))]),
            r"documents\[0\].metadata.fields.a.string_value",
        ),
        ("GetIngestionJob", v1.GetIngestionJobRequest(job_id="a\0"), "job_id"),
        ("DeleteGraph", v1.DeleteGraphRequest(bank_id="a", entity_ids=["a\0"]), "entity_ids"),
    ],
)
async def test_a_nul_in_a_string_is_refused_by_the_fields_name(
    either: MemoryMesh, method: str, message: Any, field: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{field} holds a NUL"):
        await unary(getattr(either.banks, method)(message))


async def test_a_nul_in_the_keys_of_metadata_is_refused(either: MemoryMesh) -> None:
    metadata = Struct(fields={"a\0": Value(bool_value=True)})
    request = v1.InsertDocumentsRequest(bank_id="b", documents=[v1.RAGDocument(metadata=metadata)])
    with pytest.raises(InvalidArgumentError, match="NUL"):
        await unary(either.banks.InsertDocuments(request))


async def test_a_question_with_a_nul_is_asked_without_it(either: MemoryMesh, name: Name) -> None:
    where = (await either.bank(name(), vector={})).identifier
    await either.client.memory.insert(where, [{"id": "a", "text": "fine\0 words"}])
    (hit,) = await either.client.memory.search(where, "fine\0 words\0")
    assert hit.document_id == "a"
    keyword = v1.QueryKeywordRequest(bank_id=where, text="wor\0ds", prefixes=["f\0i"])
    assert clean(keyword) == v1.QueryKeywordRequest(bank_id=where, text="words", prefixes=["fi"])
    assert (await unary(either.banks.QueryKeyword(keyword))).hits


def test_texts_that_are_cleaned_exist() -> None:
    for full_name in TEXTS:
        message, _, field = full_name.rpartition(".")
        assert field in getattr(v1, message.rpartition(".")[2]).DESCRIPTOR.fields_by_name
    request = v1.QueryDocumentsRequest(query=content("a\0b"))
    assert text_of(clean(request).query) == "ab"  # type: ignore[attr-defined]


async def test_an_error_of_the_database_tells_callers_no_address(either: MemoryMesh) -> None:
    database: Database = either.node._database
    with pytest.raises(StoreError) as raised:
        async with database.read() as connection:
            await connection.execute(sa.text("SELECT nothing FROM nowhere"))
    assert str(database.url.database) not in raised.value.message
    assert "nowhere" not in raised.value.message
    assert "the service's log says why" in raised.value.message


async def test_a_search_mode_or_threshold_that_cannot_be_is_refused(mesh: MemoryMesh, name: Name) -> None:
    where = (await mesh.bank(name(), vector={})).identifier
    await mesh.client.memory.insert(where, [{"id": "a", "text": "x"}])
    for params, words in (
        (v1.MemoryQueryParams(mode=99), "params.mode: 99"),  # type: ignore[arg-type]
        (v1.MemoryQueryParams(score_threshold=math.nan), "params.score_threshold is nan"),
    ):
        request = v1.QueryDocumentsRequest(bank_id=where, query=content("x"), params=params)
        with pytest.raises(InvalidArgumentError, match=words):
            await unary(mesh.banks.QueryDocuments(request))


async def test_a_chunk_whose_place_cannot_be_is_refused(mesh: MemoryMesh, name: Name) -> None:
    where = (await mesh.bank(name(), vector={})).identifier
    for facts, words in (
        (v1.ChunkMetadata(span=v1.TextSpan(start=5, end=2)), "span ends at 2"),
        (v1.ChunkMetadata(page=0), "page is 0"),
    ):
        chunk = v1.Chunk(content=content("x"), chunk_metadata=facts)
        request = v1.InsertChunksRequest(vector_db_id=where, chunks=[chunk])
        with pytest.raises(InvalidArgumentError, match=words):
            await unary(mesh.stub(v1.VectorIOServiceStub).InsertChunks(request))


async def test_files_are_listed_by_no_status_that_does_not_exist(mesh: MemoryMesh) -> None:
    stub = mesh.stub(v1.VectorStoresServiceStub)
    store = (await unary(stub.CreateVectorStore(v1.CreateVectorStoreRequest()))).vector_store
    request = v1.ListVectorStoreFilesRequest(vector_store_id=store.id, filter=99)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="99 is no status"):
        await unary(stub.ListVectorStoreFiles(request))

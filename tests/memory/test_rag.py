"""The RAG tool: text for prompts out of banks."""

from collections.abc import Callable
from typing import Any

import pytest

from llamastack import v1
from services.memory.guarded import Guard
from stack_client.calls import unary
from stack_client.content import content, text_of
from stack_client.errors import InvalidArgumentError, PermissionDeniedError
from stack_client.memory import document
from tests.memory.mesh import MemoryMesh

Name = Callable[[], str]


def rag(mesh: MemoryMesh) -> Any:
    return mesh.stub(v1.RAGToolServiceStub)


async def filled(mesh: MemoryMesh, name: Name, *texts: str, **metadata: Any) -> str:
    bank = (await mesh.client.memory.create(name())).identifier
    documents = [{"id": f"d{place}", "text": text, "metadata": metadata} for place, text in enumerate(texts)]
    await mesh.client.memory.insert(bank, documents)
    return bank


async def query(mesh: MemoryMesh, question: str, *banks: str, **config: Any) -> v1.RAGQueryResult:
    request = v1.QueryRAGRequest(
        content=content(question), vector_db_ids=banks, query_config=v1.RAGQueryConfig(**config)
    )
    response: v1.QueryRAGResponse = await unary(rag(mesh).QueryRAG(request))
    return response.result


@pytest.mark.parametrize("mode", [v1.SEARCH_MODE_VECTOR, v1.SEARCH_MODE_KEYWORD, v1.SEARCH_MODE_HYBRID])
async def test_the_best_passage_of_all_databases_stands_first(mesh: MemoryMesh, name: Name, mode: Any) -> None:
    others = [await filled(mesh, name, f"The capital gains tax of year {year}.") for year in range(6)]
    last = await filled(mesh, name, "The capital of Mongolia is Ulaanbaatar.")
    result = await query(mesh, "capital of Mongolia", *others, last, mode=mode)
    assert text_of(result.metadata.chunks[0]) == "The capital of Mongolia is Ulaanbaatar."
    assert result.metadata.vector_db_ids[0] == last
    assert list(result.metadata.scores) == sorted(result.metadata.scores, reverse=True)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 3000000000 }}",
        "{{ 1 / 0 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ nothing }}",
        "{{ 'x' * 200000 }}",
    ],
)
async def test_a_template_that_costs_too_much_ends_alone(mesh: MemoryMesh, name: Name, template: str) -> None:
    bank = await filled(mesh, name, "text")
    generator = v1.QueryGeneratorConfig(llm=v1.LLMQueryGeneratorConfig(model="scripted", template=template))
    with pytest.raises(InvalidArgumentError, match="cannot be rendered") as caught:
        await query(mesh, "x", bank, query_generator_config=generator)
    assert len(caught.value.message) < 1000


async def test_a_model_writes_the_query_from_the_template(mesh: MemoryMesh, name: Name) -> None:
    bank = await filled(mesh, name, "Zebras have stripes.", "Bread is baked.")
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    generator = v1.QueryGeneratorConfig(llm=v1.LLMQueryGeneratorConfig(model="scripted", template=template))
    result = await query(mesh, "Zebras have stripes.", bank, query_generator_config=generator, max_chunks=1)
    assert text_of(result.metadata.chunks[0]) == "Zebras have stripes."


async def test_names_and_metadata_are_judged_as_the_text_is(mesh: MemoryMesh, name: Name) -> None:
    class Strict:
        async def run_shield(self, shield: str, message: v1.Message, *, surface: str) -> v1.RunShieldResponse:
            evil = "EVIL" in text_of(message.user.content)
            action = v1.SAFETY_ACTION_BLOCK if evil else v1.SAFETY_ACTION_ALLOW
            return v1.RunShieldResponse(verdict=v1.Verdict(action=action))

    bank = await filled(mesh, name, "Good text.", kind="fine")
    await mesh.client.memory.insert(bank, {"id": "in-metadata", "text": "Good text too.", "metadata": {"a": "EVIL"}})
    await mesh.client.memory.insert(bank, {"id": "EVIL name", "text": "Good text as well."})
    guard, before = mesh.node._guard, mesh.node._guard._safety
    assert isinstance(guard, Guard)
    guard._safety = Strict()  # type: ignore[assignment]
    try:
        result = await query(mesh, "good text", bank)
    finally:
        guard._safety = before
    assert list(result.metadata.document_ids) == ["d0"]
    assert "EVIL" not in text_of(result.content)


async def test_documents_go_in_in_the_size_asked_for(mesh: MemoryMesh, name: Name) -> None:
    bank = (await mesh.client.memory.create(name())).identifier
    text = " ".join(f"word{number}" for number in range(400))
    request = v1.InsertRAGDocumentsRequest(
        vector_db_id=bank, documents=[document({"id": "a", "text": text})], chunk_size_in_tokens=64
    )
    first = await rag(mesh).InsertRAGDocuments(request)
    assert first.chunks > 10
    again = await rag(mesh).InsertRAGDocuments(request)
    assert (again.chunks, list(again.unchanged_document_ids)) == (0, ["a"])


async def test_one_document_that_is_refused_is_refused_for_its_own_reason(mesh: MemoryMesh, name: Name) -> None:
    bank = (await mesh.client.memory.create(name())).identifier
    with pytest.raises(PermissionDeniedError):
        await mesh.client.memory.insert(bank, {"id": "a", "url": "http://127.0.0.1:9/"})

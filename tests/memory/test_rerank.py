"""Ordering by a rerank model, in every search that offers it."""

import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.content import content
from stack_client.errors import InvalidArgumentError, NotFoundError
from tests.memory.mesh import MODELS, RERANK, MemoryMesh, memory_mesh

Name = Callable[[], str]
QUESTION = "which bread is sold on night trains"
TEXTS = {
    "bread": "bread bread bread bread",  # words alone put it first: it says little else
    "trains": "The night trains are old.",
    "both": "Rye bread, which is sold on night trains, costs more than one would think, as every traveller knows.",
    "whales": "Whales are mammals of the sea.",
}
SHARES = {"both": 1.0, "trains": 2 / 7, "bread": 1 / 7, "whales": 0.0}
"""Of the question's seven words."""


@pytest.fixture(scope="module")
async def ranked() -> AsyncIterator[MemoryMesh]:
    """Memory beside an inference service that has a rerank model."""
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:  # paths of sockets must be short
        async with memory_mesh(Path(folder), models=[*MODELS, RERANK]) as running:
            await running.client.models.wait_ready(str(RERANK["model_id"]), timeout=30)
            yield running


async def filled(mesh: MemoryMesh, name: str, kind: str = "vector") -> str:
    """A bank of the texts."""
    bank = await mesh.client.memory.create(name, kind)
    await mesh.client.memory.insert(bank.identifier, [{"id": key, "text": text} for key, text in TEXTS.items()])
    return bank.identifier


@pytest.mark.parametrize("model", ["", "shares"])
@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
async def test_documents_are_ordered_by_the_model(ranked: MemoryMesh, name: Name, mode: str, model: str) -> None:
    bank = await filled(ranked, name())
    options: dict[str, Any] = {"mode": mode, "ranker": "neural", "rerank_model": model}
    hits = await ranked.client.memory.search(bank, QUESTION, k=4, **options)
    assert [hit.document_id for hit in hits] == [key for key in SHARES if key != "whales" or mode != "keyword"]
    assert [hit.score for hit in hits] == pytest.approx([SHARES[hit.document_id] for hit in hits])
    best = await ranked.client.memory.search(bank, QUESTION, k=1, **options)
    assert [hit.document_id for hit in best] == ["both"]
    above = await ranked.client.memory.search(bank, QUESTION, k=4, score_threshold=0.2, **options)
    assert [hit.document_id for hit in above] == ["both", "trains"]


async def test_chunks_are_ordered_by_the_model(ranked: MemoryMesh, name: Name) -> None:
    stub = ranked.stub(v1.VectorIOServiceStub)
    bank = await filled(ranked, name())
    params = v1.ChunkQueryParams(
        max_chunks=4, mode=v1.SEARCH_MODE_HYBRID, ranker=v1.Ranker(neural=v1.NeuralRanker(model="shares"))
    )
    answer = await stub.QueryChunks(v1.QueryChunksRequest(vector_db_id=bank, query=content(QUESTION), params=params))
    found = [chunk.metadata["document_id"] for chunk in answer.chunks]
    assert found == list(SHARES)
    assert list(answer.scores) == pytest.approx(list(SHARES.values()))


def legs(vector: str, words: str) -> list[v1.QueryLeg]:
    """A leg by embedding and one by words."""
    return [
        v1.QueryLeg(bank_id=vector, name="v", vector=v1.VectorLeg(query=content(QUESTION))),
        v1.QueryLeg(bank_id=words, name="w", keyword=v1.KeywordLeg(text=QUESTION)),
    ]


async def test_what_several_legs_found_is_ordered_by_the_model(ranked: MemoryMesh, name: Name) -> None:
    bank = await filled(ranked, name())
    words = await filled(ranked, name(), "keyword")
    request = v1.QueryHybridRequest(legs=legs(bank, words), rerank=v1.NeuralRanker())
    hits = (await ranked.banks.QueryHybrid(request)).hits
    assert [hit.chunk.document_id for hit in hits] == list(SHARES)
    assert [hit.score for hit in hits] == pytest.approx(list(SHARES.values()))
    assert dict(hits[0].ranks).keys() == {"v", "w"}


async def test_an_explanation_tells_the_joined_score_and_the_models(ranked: MemoryMesh, name: Name) -> None:
    bank = await filled(ranked, name())
    plain = v1.QueryHybridRequest(legs=legs(bank, bank))
    request = v1.QueryHybridRequest(legs=legs(bank, bank), rerank=v1.NeuralRanker(model="shares"))
    joined = {hit.chunk.chunk_id: hit.score for hit in (await ranked.banks.QueryHybrid(plain)).hits}
    hits = (await ranked.banks.QueryHybrid(request)).hits
    ids = [hit.chunk.chunk_id for hit in hits]
    why = (await ranked.banks.ExplainQuery(v1.ExplainQueryRequest(request=request, chunk_ids=ids))).explanations
    assert [one.rank for one in why] == [1, 2, 3, 4]
    for hit, one in zip(hits, why, strict=True):
        assert one.rerank_score == hit.score
        assert one.score == pytest.approx(joined[one.chunk_id])
        assert one.score == pytest.approx(sum(leg.contribution for leg in one.legs))
    without = (await ranked.banks.ExplainQuery(v1.ExplainQueryRequest(request=plain, chunk_ids=ids))).explanations
    assert not any(one.HasField("rerank_score") for one in without)


async def test_a_diverse_choice_keeps_the_models_scores_of_what_was_left_out(ranked: MemoryMesh, name: Name) -> None:
    bank = await filled(ranked, name())
    fusion = v1.QueryFusion(mmr=v1.MMRRanker(diversity=0.5))
    request = v1.QueryHybridRequest(legs=legs(bank, bank), fusion=fusion, rerank=v1.NeuralRanker(), limit=1)
    ids = [hit.chunk_id for hit in await ranked.client.memory.search(bank, QUESTION, k=4)]
    why = (await ranked.banks.ExplainQuery(v1.ExplainQueryRequest(request=request, chunk_ids=ids))).explanations
    assert sorted((one.rerank_score for one in why), reverse=True) == pytest.approx(list(SHARES.values()))
    assert [one.rank for one in why if one.HasField("rank")] == [1]


async def test_a_stack_without_a_rerank_model_says_what_to_do(mesh: MemoryMesh, name: Name) -> None:
    bank = await filled(mesh, name())
    with pytest.raises(NotFoundError, match="register one, or choose another ranker") as failure:
        await mesh.client.memory.search(bank, QUESTION, ranker="neural")
    assert (failure.value.reason, failure.value.field) == ("MODEL_NOT_FOUND", "ranker")
    request = v1.QueryHybridRequest(legs=legs(bank, bank), rerank=v1.NeuralRanker())
    with pytest.raises(NotFoundError, match="no rerank model"):
        await unary(mesh.banks.QueryHybrid(request))


async def test_a_model_that_does_not_rerank_is_refused_by_name(ranked: MemoryMesh, name: Name) -> None:
    bank = await filled(ranked, name())
    with pytest.raises(NotFoundError, match="no model 'nobody'"):
        await ranked.client.memory.search(bank, QUESTION, ranker="neural", rerank_model="nobody")
    with pytest.raises(InvalidArgumentError, match="needs a rerank model"):
        await ranked.client.memory.search(bank, QUESTION, ranker="neural", rerank_model="words")

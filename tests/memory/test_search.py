"""Searching: every mode, any text, filters, explanations."""

import string
from collections.abc import Callable
from typing import Any

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.content import content
from stack_client.errors import InvalidArgumentError, NotFoundError
from stack_client.filters import metadata_filter
from tests.memory.mesh import MemoryMesh

Name = Callable[[], str]
TEXTS = {
    "whales": "Whales are mammals of the sea. They sing.",
    "trains": "Trains run on rails between cities.",
    "bread": "Bread is baked from flour, water and salt.",
    "both": "On trains they sell bread and coffee.",
}


@pytest.fixture
async def where(mesh: MemoryMesh, name: Name) -> str:
    bank = await mesh.client.memory.create(name())
    documents = [
        {"id": key, "text": text, "metadata": {"size": len(text), "kind": key[0]}} for key, text in TEXTS.items()
    ]
    await mesh.client.memory.insert(bank.identifier, documents)
    return bank.identifier


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
@pytest.mark.parametrize(
    "question",
    [
        "",
        " ",
        '"',
        "'''",
        'what\'s (not) a "train"? AND OR NOT NEAR/3 *:^-',
        "🦓 zebra 漢字",
        "a" * 5000,
        string.punctuation,
        "the of and",
        "col:trains {x}",
        "\x00\x01",
    ],
)
async def test_any_text_is_a_question_in_every_mode(mesh: MemoryMesh, where: str, mode: str, question: str) -> None:
    hits = await mesh.client.memory.search(where, question, mode=mode, k=10)
    assert len({hit.chunk_id for hit in hits}) == len(hits)
    if mode == "vector":
        assert len(hits) == len(TEXTS)


async def test_one_that_has_all_words_stands_before_those_that_have_one(mesh: MemoryMesh, where: str) -> None:
    for mode in ("keyword", "hybrid"):
        hits = await mesh.client.memory.search(where, "bread on trains", mode=mode, k=3)
        assert hits[0].document_id == "both", mode


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
async def test_as_many_hits_come_back_as_match_the_filter(mesh: MemoryMesh, name: Name, mode: str) -> None:
    bank = (await mesh.client.memory.create(name())).identifier
    documents = [{"id": str(n), "text": f"word number {n}", "metadata": {"n": n}} for n in range(300)]
    await mesh.client.memory.insert(bank, documents)
    cases: list[tuple[dict[str, Any], int]] = [
        ({"n": {"in": [3, 299]}}, 2),
        ({"n": {"lt": 10}}, 10),
        ({"not": {"n": {"gte": 7}}}, 7),
        ({"m": {"exists": False}}, 10),
    ]
    for where, expected in cases:
        hits = await mesh.client.memory.search(bank, "word number", mode=mode, k=10, where=where)
        assert len(hits) == expected, where


async def test_the_whole_weight_on_a_leg_gives_its_order(mesh: MemoryMesh, where: str) -> None:
    for alpha, mode in ((1.0, "vector"), (0.0, "keyword")):
        weighted = await mesh.client.memory.search(
            where, "trains bread", mode="hybrid", ranker="weighted", alpha=alpha, k=2
        )
        alone = await mesh.client.memory.search(where, "trains bread", mode=mode, k=2)
        assert weighted[0].document_id == alone[0].document_id


async def test_hits_below_the_threshold_are_left_out(mesh: MemoryMesh, where: str) -> None:
    every = await mesh.client.memory.search(where, TEXTS["whales"], mode="vector", k=4)
    assert every[0].score == pytest.approx(1.0, abs=1e-5)
    threshold = (every[0].score + every[1].score) / 2
    some = await mesh.client.memory.search(where, TEXTS["whales"], mode="vector", k=4, score_threshold=threshold)
    assert [hit.document_id for hit in some] == ["whales"]


async def test_words_of_the_question_are_marked(mesh: MemoryMesh, where: str) -> None:
    hits = await mesh.client.memory.search(where, "Who bakes bread?", highlight=True, k=4)
    bread = next(hit for hit in hits if hit.document_id == "bread")
    assert [bread.text[start:end] for start, end in bread.highlights] == ["Bread", "baked"]


async def test_an_explanation_adds_up_to_the_score(mesh: MemoryMesh, where: str) -> None:
    legs = [
        v1.QueryLeg(bank_id=where, name="v", vector=v1.VectorLeg(query=content("bread and trains"))),
        v1.QueryLeg(bank_id=where, name="k", keyword=v1.KeywordLeg(text="bread and trains")),
    ]
    request = v1.QueryHybridRequest(legs=legs, filter=metadata_filter({"kind": {"ne": "w"}}))
    answer = await mesh.banks.QueryHybrid(request)
    assert {hit.chunk.document_id for hit in answer.hits} == {"trains", "bread", "both"}
    whale = (await mesh.client.memory.search(where, "whales sing", mode="keyword"))[0]
    ids = [*(hit.chunk.chunk_id for hit in answer.hits), whale.chunk_id]
    why = (await mesh.banks.ExplainQuery(v1.ExplainQueryRequest(request=request, chunk_ids=ids))).explanations
    for place, (hit, one) in enumerate(zip(answer.hits, why, strict=False), 1):
        assert one.rank == place
        assert one.score == pytest.approx(hit.score) == pytest.approx(sum(leg.contribution for leg in one.legs))
        assert dict(hit.ranks) == {leg.leg: leg.rank for leg in one.legs if leg.HasField("rank")}
    words = next(leg for leg in why[0].legs if leg.leg == "k")
    assert sum(words.terms.values()) == pytest.approx(words.score, rel=1e-4)
    assert all(leg.filtered for leg in why[-1].legs)
    assert not why[-1].HasField("rank")


async def test_a_chunk_that_two_banks_hold_is_one_in_a_search_of_both(mesh: MemoryMesh, name: Name, where: str) -> None:
    words = (await mesh.client.memory.create(name(), "keyword")).identifier
    await mesh.client.memory.insert(words, [{"id": key, "text": text} for key, text in TEXTS.items()])
    legs = [
        v1.QueryLeg(bank_id=where, vector=v1.VectorLeg(query=content("bread"))),
        v1.QueryLeg(bank_id=words, keyword=v1.KeywordLeg(text="bread")),
    ]
    answer = await mesh.banks.QueryHybrid(v1.QueryHybridRequest(legs=legs, limit=20))
    assert len(answer.hits) == len(TEXTS)
    best = answer.hits[0]
    assert set(best.ranks) == {"vector0", "keyword1"}


async def test_a_graph_leg_brings_entities_as_chunks(mesh: MemoryMesh, name: Name, where: str) -> None:
    graph = (await mesh.client.memory.create(name(), "graph")).identifier
    await mesh.client.memory.put_graph(
        graph,
        entities=[v1.GraphEntity(entity_id="ada", name="Ada"), v1.GraphEntity(entity_id="oslo", name="Oslo")],
        edges=[v1.GraphEdge(source_id="ada", relation="lives_in", target_id="oslo")],
    )
    legs = [
        v1.QueryLeg(bank_id=graph, graph=v1.GraphLeg(text="Ada")),
        v1.QueryLeg(bank_id=where, keyword=v1.KeywordLeg(text="bread")),
    ]
    answer = await mesh.banks.QueryHybrid(v1.QueryHybridRequest(legs=legs))
    texts = {hit.chunk.document_id: hit.chunk.content.items[0].text for hit in answer.hits}
    assert "lives_in" in texts["ada"]
    assert {"ada", "bread", "both"} <= set(texts)


async def test_keys_and_entities_are_answered_as_chunks(mesh: MemoryMesh, name: Name) -> None:
    values = (await mesh.client.memory.create(name(), "keyvalue")).identifier
    await mesh.client.memory.put(values, "colour", "blue")
    request = v1.QueryDocumentsRequest(bank_id=values, keys=["colour", "missing"])
    answer = await mesh.banks.QueryDocuments(request)
    assert [chunk.content.items[0].text for chunk in answer.chunks] == ["blue"]
    with pytest.raises(InvalidArgumentError, match="keys"):
        await unary(mesh.banks.QueryDocuments(v1.QueryDocumentsRequest(bank_id=values)))


async def test_phrases_prefixes_and_words_that_must_or_must_not_occur(mesh: MemoryMesh, where: str) -> None:
    async def found(**query: object) -> set[str]:
        request = v1.QueryKeywordRequest(bank_id=where, **query)  # type: ignore[arg-type]
        return {hit.chunk.document_id for hit in (await mesh.banks.QueryKeyword(request)).hits}

    assert await found(phrases=[v1.PhraseQuery(text="trains run")]) == {"trains"}
    assert await found(phrases=[v1.PhraseQuery(text="trains sell")]) == set()
    assert await found(phrases=[v1.PhraseQuery(text="trains sell", slop=1)]) == {"both"}
    assert await found(prefixes=["mamm"]) == {"whales"}
    assert await found(text="bread", required_terms=["coffee"]) == {"both"}
    assert await found(text="bread", excluded_terms=["coffee"]) == {"bread"}


async def test_what_does_not_exist_is_named(mesh: MemoryMesh, where: str) -> None:
    with pytest.raises(NotFoundError, match="no memory bank 'nowhere'"):
        await mesh.client.memory.search("nowhere", "x", mode="vector")
    with pytest.raises(NotFoundError, match="no chunk 'nothing'"):
        await mesh.client.memory.explain(where, "x", "nothing")
    with pytest.raises(InvalidArgumentError, match="0 to 1"):
        await mesh.client.memory.search(where, "x", mode="hybrid", ranker="weighted", alpha=2)


async def test_a_filter_means_in_each_bank_what_the_bank_declares(mesh: MemoryMesh, name: Name) -> None:
    declares = (await mesh.client.memory.create(name(), fields={"t": "time"})).identifier
    declares_not = (await mesh.client.memory.create(name())).identifier
    moment = "2024-01-01T00:00:00Z"
    for bank in (declares, declares_not):
        await mesh.client.memory.insert(bank, {"id": bank, "text": "bread", "metadata": {"t": moment}})
    for banks in ((declares, declares_not), (declares_not, declares)):
        legs = [v1.QueryLeg(bank_id=bank, keyword=v1.KeywordLeg(text="bread")) for bank in banks]
        request = v1.QueryHybridRequest(legs=legs, filter=metadata_filter({"t": moment}))
        found = {hit.chunk.bank_id for hit in (await mesh.banks.QueryHybrid(request)).hits}
        assert found == {declares, declares_not}


async def test_a_question_as_long_as_a_book_is_refused(mesh: MemoryMesh, where: str) -> None:
    with pytest.raises(InvalidArgumentError, match="at most 32768"):
        await mesh.client.memory.search(where, "word " * 10_000, mode="keyword")

from typing import Any

import httpx
import pytest

DB = "a/db:with-both"
CHUNKS: list[dict[str, Any]] = [
    {
        "content": "The Glomma is a long river.",
        "metadata": {"document_id": "rivers", "n": 1},
        "chunk_metadata": {"source": "atlas", "chunk_window": "0-6"},
    },
    {"content": [{"type": "text", "text": "Rye bread is sour."}], "metadata": {"n": 2}, "stored_chunk_id": "bread-1"},
]


@pytest.fixture
async def db(http: httpx.AsyncClient) -> str:
    await http.delete(f"/v1/vector-dbs/{DB}")
    body = {"vector_db_id": DB, "embedding_model": "words", "provider_id": "faiss", "vector_db_name": "notes"}
    made = (await http.post("/v1/vector-dbs", json=body)).json()
    assert (made["identifier"], made["type"], made["embedding_dimension"]) == (DB, "vector_db", 16)
    assert (await http.post("/v1/vector-io/insert", json={"vector_db_id": DB, "chunks": CHUNKS})).status_code == 204
    return DB


async def query(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.post("/v1/vector-io/query", json=body)
    assert answer.status_code == 200, answer.text
    found = dict(answer.json())
    assert len(found["chunks"]) == len(found["scores"])
    return found


async def test_a_vector_db_is_found_by_an_id_with_slashes_quoted_or_not(http: httpx.AsyncClient, db: str) -> None:
    plain = (await http.get(f"/v1/vector-dbs/{db}")).json()
    assert plain["vector_db_name"] == "notes"
    assert (await http.get("/v1/vector-dbs/a%2Fdb%3Awith-both")).json() == plain
    assert plain in (await http.get("/v1/vector-dbs")).json()["data"]
    again = {"vector_db_id": db, "embedding_model": "words", "vector_db_name": "notes"}
    assert (await http.post("/v1/vector-dbs", json=again)).json() == plain
    assert (await http.delete(f"/v1/vector-dbs/{db}")).status_code == 204
    assert (await http.get(f"/v1/vector-dbs/{db}")).status_code == 404


@pytest.mark.parametrize("name", ["vector_db_id", "vector_store_id"])
async def test_chunks_carry_the_names_of_old_and_new_clients(http: httpx.AsyncClient, db: str, name: str) -> None:
    found = await query(http, **{name: db}, query="rye bread", params={"mode": "keyword"})
    [chunk] = found["chunks"]
    assert chunk["chunk_id"] == chunk["stored_chunk_id"] == "bread-1"
    assert chunk["content"] == "Rye bread is sour."
    assert chunk["embedding"] is None
    assert type(chunk["chunk_metadata"]["created_timestamp"]) is int


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"mode": "hybrid", "ranker": {"strategy": "rrf", "params": {"k": 60}}},
        {"mode": "hybrid", "ranker": {"strategy": "weighted", "params": {"weights": [0.5, 0.5]}}},
        {"mode": "hybrid", "ranker": {"type": "rrf", "impact_factor": 10}},
        {"mode": "hybrid", "reranker_type": "weighted", "reranker_params": {"alpha": 0.2}},
        {"filters": {"type": "or", "filters": [{"type": "gt", "key": "n", "value": 0}]}},
    ],
)
async def test_every_documented_way_of_asking_finds_chunks(
    http: httpx.AsyncClient, db: str, params: dict[str, Any]
) -> None:
    assert len((await query(http, vector_db_id=db, query="river", params=params))["chunks"]) == 2
    one = {**params, "max_chunks": 1}
    assert (
        len((await query(http, vector_db_id=db, query=[{"type": "text", "text": "river"}], params=one))["chunks"]) == 1
    )
    other = {**params, "max_num_results": 1}
    assert len((await query(http, vector_db_id=db, query="river", params=other))["chunks"]) == 1


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"mode": "fuzzy"}, "params.mode"),
        ({"ranker": {"strategy": "odd", "params": {}}}, "params.ranker.type"),
        ({"embedding_dimensions": 8}, "params.embedding_dimensions"),
    ],
)
async def test_what_is_wrong_in_a_query_is_named(
    http: httpx.AsyncClient, db: str, params: dict[str, Any], param: str
) -> None:
    answer = await http.post("/v1/vector-io/query", json={"vector_db_id": db, "query": "x", "params": params})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_an_embedding_of_another_length_and_an_unknown_db_are_refused(http: httpx.AsyncClient, db: str) -> None:
    body = {"vector_db_id": db, "chunks": [{"content": "x", "metadata": {}, "embedding": [0.5]}]}
    answer = await http.post("/v1/vector-io/insert", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "chunks[0].embedding")
    for path in ("insert", "query"):
        body = (
            {"vector_db_id": "none", "chunks": CHUNKS} if path == "insert" else {"vector_db_id": "none", "query": "x"}
        )
        assert (await http.post(f"/v1/vector-io/{path}", json=body)).status_code == 404


async def test_documents_are_cut_stored_and_found_with_what_a_prompt_needs(http: httpx.AsyncClient, db: str) -> None:
    documents = [
        {"document_id": "text", "content": "Lefse is a flatbread.", "mime_type": "text/plain", "metadata": {"a": 1}},
        {"document_id": "url", "content": {"uri": "data:text/plain;base64,QnJ1bm9zdCBpcyBjaGVlc2U="}, "metadata": {}},
        {"document_id": "items", "content": [{"type": "text", "text": "Kvikk lunsj"}]},
    ]
    body = {"documents": documents, "vector_db_id": db, "chunk_size_in_tokens": 64}
    assert (await http.post("/v1/tool-runtime/rag-tool/insert", json=body)).status_code == 204
    config = {
        "query_generator_config": {"type": "default", "separator": " "},
        "max_tokens_in_context": 4096,
        "max_chunks": 2,
        "mode": "keyword",
        "chunk_template": "{index}: {chunk.content}",
    }
    body = {"content": "brunost cheese", "vector_db_ids": [db], "query_config": config}
    found = (await http.post("/v1/tool-runtime/rag-tool/query", json=body)).json()
    assert "1: Brunost is cheese" in [item["text"] for item in found["content"]]
    assert found["metadata"]["document_ids"] == ["url"]
    assert len(found["metadata"]["chunks"]) == len(found["metadata"]["scores"]) == 1
    body = {"content": "brunost", "vector_db_ids": [db], "query_config": {"chunk_template": "no places"}}
    answer = await http.post("/v1/tool-runtime/rag-tool/query", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "query_config.chunk_template")

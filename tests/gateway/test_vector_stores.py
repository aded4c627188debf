import json
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import until
from tests.gateway.test_abuse import WRONG

PREFIXES = ["/v1", "/v1/openai/v1"]
TEXTS = {
    "rivers.txt": "The Glomma is the longest river of Norway and flows through Elverum.",
    "bread.txt": "Rye bread is baked from sour dough for many hours in a slow oven.",
}


async def upload(http: httpx.AsyncClient, name: str) -> str:
    answer = await http.post("/v1/files", files={"file": (name, TEXTS[name].encode())}, data={"purpose": "assistants"})
    return str(answer.json()["id"])


async def make(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.post("/v1/vector_stores", json={"name": "notes", "embedding_model": "words", **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def loaded(http: httpx.AsyncClient, path: str, total: int) -> dict[str, Any]:
    async def done() -> dict[str, Any] | None:
        shown = (await http.get(path)).json()
        return shown if shown["file_counts"]["completed"] == total else None

    return await until(done)


async def test_a_store_is_made_shown_changed_listed_and_deleted(http: httpx.AsyncClient) -> None:
    expires = {"anchor": "last_active_at", "days": 3}
    made = await make(http, metadata={"team": "a"}, expires_after=expires)
    assert made["object"] == "vector_store"
    assert made["status"] == "completed"
    assert made["usage_bytes"] == 0
    assert type(made["usage_bytes"]) is int
    assert made["expires_at"] == made["last_active_at"] + 3 * 86_400
    assert made["expires_after"] == expires
    path = f"/v1/vector_stores/{made['id']}"
    changed = (await http.post(path, json={"name": "other", "metadata": {"team": "b"}})).json()
    assert (changed["name"], changed["metadata"]) == ("other", {"team": "b"})
    assert made["id"] in [one["id"] for one in (await http.get("/v1/vector_stores")).json()["data"]]
    gone = (await http.delete(path)).json()
    assert gone == {"id": made["id"], "object": "vector_store.deleted", "deleted": True}
    assert (await http.get(path)).status_code == 404


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_a_file_is_loaded_found_and_shown_in_chunks(http: httpx.AsyncClient, prefix: str) -> None:
    store = await make(http, file_ids=[await upload(http, name) for name in TEXTS])
    path = f"{prefix}/vector_stores/{store['id']}"
    full = await loaded(http, path, 2)
    assert type(full["usage_bytes"]) is int
    ranking = {"ranker": "auto", "score_threshold": 0.0}
    body = {"query": "longest river, of Norway", "max_num_results": 1, "ranking_options": ranking}
    found = (await http.post(f"{path}/search", json={**body, "search_mode": "keyword"})).json()
    assert found["object"] == "vector_store.search_results.page"
    asked = "longest river, of Norway"
    assert found["search_query"] == (asked if "openai" in prefix else [asked])
    [best] = found["data"]
    assert best["filename"] == "rivers.txt"
    assert best["content"][0]["type"] == "text"
    assert best["content"][0]["text"] == TEXTS["rivers.txt"]
    assert isinstance(best["score"], float)
    page = (await http.get(f"{path}/files/{best['file_id']}/content")).json()
    assert page["data"] == page["content"]
    assert page["data"][0]["text"] == TEXTS["rivers.txt"]
    assert page["data"][0]["embedding"] is None
    rest = {key: page[key] for key in ("object", "file_id", "filename", "has_more", "next_page")}
    assert rest == {
        "object": "vector_store.file_content.page",
        "file_id": best["file_id"],
        "filename": "rivers.txt",
        "has_more": False,
        "next_page": None,
    }
    query = {"include_embeddings": "true", "include_metadata": "true"}
    page = (await http.get(f"{path}/files/{best['file_id']}/content", params=query)).json()
    assert len(page["data"][0]["embedding"]) == full["embedding_dimension"]
    assert page["data"][0]["chunk_metadata"] is not None


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
async def test_every_way_of_searching_takes_several_queries_and_filters(http: httpx.AsyncClient, mode: str) -> None:
    store = await make(http)
    path = f"/v1/vector_stores/{store['id']}"
    for index, name in enumerate(TEXTS):
        body = {"file_id": await upload(http, name), "attributes": {"shelf": index, "kind": "note"}}
        attached = (await http.post(f"{path}/files", json=body)).json()
        assert (attached["object"], attached["attributes"]["shelf"]) == ("vector_store.file", index)
        assert attached["vector_store_id"] == store["id"]
    await loaded(http, path, 2)
    query = ["rye bread", "longest river"]
    found = (await http.post(f"{path}/search", json={"query": query, "search_mode": mode})).json()
    assert found["search_query"] == query
    assert {one["filename"] for one in found["data"]} == set(TEXTS)
    filters = {"type": "and", "filters": [{"type": "eq", "key": "shelf", "value": 1}]}
    body = {"query": "rye bread", "search_mode": mode, "filters": filters}
    [only] = (await http.post(f"{path}/search", json=body)).json()["data"]
    assert only["attributes"] == {"shelf": 1, "kind": "note"}


async def test_a_file_of_a_store_is_listed_changed_and_detached(http: httpx.AsyncClient) -> None:
    file_id = await upload(http, "rivers.txt")
    cut = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
    store = await make(http)
    path = f"/v1/vector_stores/{store['id']}"
    attached = (await http.post(f"{path}/files", json={"file_id": file_id, "chunking_strategy": cut})).json()
    assert attached["chunking_strategy"] == cut
    assert type(attached["usage_bytes"]) is int
    await loaded(http, path, 1)
    listed = (await http.get(f"{path}/files", params={"filter": "completed"})).json()
    assert [one["id"] for one in listed["data"]] == [file_id]
    assert (await http.get(f"{path}/files", params={"filter": "failed"})).json()["data"] == []
    changed = (await http.post(f"{path}/files/{file_id}", json={"attributes": {"a": True}})).json()
    assert changed["attributes"] == {"a": True}
    assert (await http.get(f"{path}/files/{file_id}")).json()["attributes"] == {"a": True}
    gone = (await http.delete(f"{path}/files/{file_id}")).json()
    assert gone == {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}
    assert (await http.get(f"{path}/files/{file_id}")).status_code == 404


async def test_a_batch_of_files_is_loaded_and_lists_them(http: httpx.AsyncClient) -> None:
    ids = [await upload(http, name) for name in TEXTS]
    path = f"/v1/vector_stores/{(await make(http))['id']}"
    files = [{"file_id": ids[0], "attributes": {"n": 1}}, {"file_id": ids[1]}]
    batch = (await http.post(f"{path}/file_batches", json={"files": files})).json()
    assert batch["object"] == "vector_store.files_batch"
    assert batch["file_counts"]["total"] == 2
    done = await loaded(http, f"{path}/file_batches/{batch['id']}", 2)
    assert done["status"] == "completed"
    listed = (await http.get(f"{path}/file_batches/{batch['id']}/files")).json()
    assert {one["id"] for one in listed["data"]} == set(ids)
    assert (await http.post(f"{path}/file_batches/{batch['id']}/cancel")).status_code in {400, 409}
    again = await make(http)
    body = {"file_ids": ids}
    batch = (await http.post(f"/v1/vector_stores/{again['id']}/file_batches", json=body)).json()
    assert batch["file_counts"]["total"] == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("", {"file_ids": [], "expires_after": {}, "chunking_strategy": {"type": "auto"}, "metadata": {}}),
        ("/{id}", {"name": "x", "expires_after": None, "metadata": {}}),
        ("/{id}/search", {"query": "x", "filters": None, "ranking_options": {}, "search_mode": "keyword"}),
        ("/{id}/files", {"file_id": "none", "attributes": {}, "chunking_strategy": None}),
        ("/{id}/file_batches", {"file_ids": None, "files": [{"file_id": "none"}], "attributes": {}}),
    ],
)
async def test_wrong_types_in_any_field_never_break_the_server(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    where = "/v1/vector_stores" + path.format(id=(await make(http))["id"])
    for key in [*body, "unknown"]:
        for wrong in WRONG:
            answer = await http.post(where, content=json.dumps({**body, key: wrong}))
            assert answer.status_code < 500 or answer.status_code == 501, (path, key, wrong, answer.text)
            assert answer.status_code < 400 or answer.json()["error"]["message"], (path, key, wrong)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/vector_stores/vs_no"),
        ("POST", "/v1/vector_stores/vs_no"),
        ("DELETE", "/v1/vector_stores/vs_no"),
        ("POST", "/v1/vector_stores/vs_no/search"),
        ("GET", "/v1/vector_stores/vs_no/files"),
        ("GET", "/v1/vector_stores/vs_no/files/file-no"),
        ("GET", "/v1/vector_stores/vs_no/files/file-no/content"),
        ("GET", "/v1/vector_stores/vs_no/file_batches/vsfb_no"),
        ("POST", "/v1/vector_stores/vs_no/file_batches/vsfb_no/cancel"),
    ],
)
async def test_what_is_not_there_is_404(http: httpx.AsyncClient, method: str, path: str) -> None:
    body = {"query": "x"} if path.endswith("search") else {} if method == "POST" else None
    assert (await http.request(method, path, json=body)).status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": 7}, "query"),
        ({"query": "x", "max_num_results": 0}, "max_num_results"),
        ({"query": "x", "search_mode": "guess"}, "search_mode"),
        ({"query": "x", "filters": {"type": "like", "key": "a", "value": 1}}, "filters.type"),
        ({"query": "x", "color": "red"}, "color"),
    ],
)
async def test_what_is_wrong_in_a_search_is_named(http: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    store = await make(http)
    answer = await http.post(f"/v1/vector_stores/{store['id']}/search", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param

from typing import Any

import httpx
import pytest

KINDS: dict[str, dict[str, Any]] = {
    "vector": {"embedding_model": "words", "chunk_size_in_tokens": 64, "overlap_size_in_tokens": 8},
    "keyvalue": {},
    "keyword": {},
    "graph": {},
}
DOCUMENT = {"document_id": "d1", "content": "Oslo is in Norway", "mime_type": "text/plain", "metadata": {}}


async def register(http: httpx.AsyncClient, prefix: str, kind: str) -> str:
    name = f"bank-{prefix.strip('/')}-{kind}"
    body = {"memory_bank_id": name, "params": {"memory_bank_type": kind, **KINDS[kind]}, "provider_id": None}
    path = "/alpha/memory-banks/register" if prefix == "/alpha" else "/v1/memory-banks"
    made = (await http.post(path, json=body)).json()
    assert (made["identifier"], made["type"], made["memory_bank_type"]) == (name, "memory_bank", kind)
    assert made["params"].items() >= KINDS[kind].items()
    assert type(made["entry_count"]) is int
    return name


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bank_is_registered_shown_and_unregistered_by_both_clients(http: httpx.AsyncClient, kind: str) -> None:
    name = await register(http, "/v1", kind)
    shown = (await http.get(f"/v1/memory-banks/{name}")).json()
    assert shown in (await http.get("/v1/memory-banks")).json()["data"]
    assert (await http.delete(f"/v1/memory-banks/{name}")).status_code == 204
    assert (await http.get(f"/v1/memory-banks/{name}")).status_code == 404

    old = await register(http, "/alpha", kind)
    query = {"memory_bank_id": old}
    shown = (await http.get("/alpha/memory-banks/get", params=query)).json()
    assert shown in (await http.get("/alpha/memory-banks/list")).json()
    assert (await http.post("/alpha/memory-banks/unregister", json=query)).json() is None
    assert (await http.get("/alpha/memory-banks/get", params=query)).json() is None


@pytest.mark.parametrize("prefix", ["/v1", "/alpha"])
@pytest.mark.parametrize("kind", ["vector", "keyword"])
async def test_documents_are_stored_and_found(http: httpx.AsyncClient, prefix: str, kind: str) -> None:
    name = await register(http, prefix, kind)
    body = {"bank_id": name, "documents": [DOCUMENT], "ttl_seconds": 1000}
    stored = await http.post(f"{prefix}/memory/insert", json=body)
    assert (stored.status_code, stored.content) == ((204, b"") if prefix == "/v1" else (200, b"null"))
    body = {"bank_id": name, "query": ["Oslo"], "params": {"max_chunks": 2, "score_threshold": 0}}
    found = (await http.post(f"{prefix}/memory/query", json=body)).json()
    [chunk] = found["chunks"]
    assert (chunk["content"], chunk["document_id"]) == ("Oslo is in Norway", "d1")
    assert type(chunk["token_count"]) is int
    assert len(found["scores"]) == 1


@pytest.mark.parametrize("name", ["document_ids", "document_uuids"])
async def test_documents_are_shown_replaced_and_deleted_under_both_names(http: httpx.AsyncClient, name: str) -> None:
    bank = await register(http, "/v1", "keyword")
    await http.post("/v1/memory/insert", json={"bank_id": bank, "documents": [DOCUMENT]})
    wanted = {"bank_id": bank, name: ["d1"]}
    [shown] = (await http.post("/v1/memory/documents/get", json=wanted)).json()["documents"]
    assert shown["content"] == "Oslo is in Norway"
    body = {"bank_id": bank, "documents": [{"document_id": "d1", "content": "Bergen is wet"}]}
    assert (await http.post("/v1/memory/update", json=body)).status_code == 200
    [shown] = (await http.post("/v1/memory/documents/get", json=wanted)).json()["documents"]
    assert shown["content"] == "Bergen is wet"
    assert (await http.post("/v1/memory/documents/delete", json=wanted)).status_code == 200
    assert (await http.post("/v1/memory/documents/get", json=wanted)).json()["documents"] == []


async def test_what_a_bank_cannot_do_is_said(http: httpx.AsyncClient) -> None:
    bank = await register(http, "/v1", "keyvalue")
    answer = await http.post("/v1/memory/insert", json={"bank_id": bank, "documents": [DOCUMENT]})
    assert answer.status_code == 409
    assert "keyvalue" in answer.json()["error"]["message"]
    body = {"memory_bank_id": "x", "params": {"memory_bank_type": "magic"}}
    answer = await http.post("/v1/memory-banks", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "params.memory_bank_type")

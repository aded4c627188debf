"""Responses that search files: what was found is told with names, attributes and scores."""

import asyncio
from typing import Any

import httpx
import pytest

FOXES, OWLS = "Foxes are red animals of the woods.", "Owls are animals of the woods that fly at night."


@pytest.fixture
async def store(http: httpx.AsyncClient) -> str:
    """A vector store with two files that have attributes."""
    made = (await http.post("/v1/vector_stores", json={"name": "animals", "embedding_model": "words"})).json()
    path = f"/v1/vector_stores/{made['id']}/files"
    for name, text, legs in (("foxes.txt", FOXES, 4), ("owls.txt", OWLS, 2)):
        form = {"file": (name, text.encode(), "text/plain")}
        file = (await http.post("/v1/files", files=form, data={"purpose": "assistants"})).json()
        await http.post(path, json={"file_id": file["id"], "attributes": {"legs": legs, "kind": name[:-4]}})
    for _ in range(500):
        states = [one["status"] for one in (await http.get(path)).json()["data"]]
        if states == ["completed", "completed"]:
            return str(made["id"])
        await asyncio.sleep(0.02)
    raise AssertionError(states)


async def searched(http: httpx.AsyncClient, **tool: Any) -> list[dict[str, Any]]:
    """What a response with file search found."""
    body = {
        "model": "scripted",
        "input": "find foxes",
        "tools": [{"type": "file_search", **tool}],
        "include": ["file_search_call.results"],
    }
    answer = await http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    [call] = [item for item in answer.json()["output"] if item["type"] == "file_search_call"]
    assert call["queries"] == ["animals of the woods"]
    return list(call["results"] or [])


async def test_results_have_names_attributes_and_scores(http: httpx.AsyncClient, store: str) -> None:
    found = await searched(http, vector_store_ids=[store])
    assert {one["filename"]: one["attributes"] for one in found} == {
        "foxes.txt": {"legs": 4, "kind": "foxes"},
        "owls.txt": {"legs": 2, "kind": "owls"},
    }
    assert all(one["file_id"].startswith("file-") and one["score"] > 0 and one["text"] for one in found)


async def test_filters_choose_the_files(http: httpx.AsyncClient, store: str) -> None:
    filters = {"type": "and", "filters": [{"type": "gte", "key": "legs", "value": 3}]}
    found = await searched(http, vector_store_ids=[store], filters=filters)
    assert [one["filename"] for one in found] == ["foxes.txt"]


async def test_ranking_options_join_words_and_vectors_and_cut_off(http: httpx.AsyncClient, store: str) -> None:
    every = await searched(http, vector_store_ids=[store], ranking_options={"ranker": "rrf"})
    none = await searched(http, vector_store_ids=[store], ranking_options={"score_threshold": 0.999999})
    assert len(every) == 2
    assert none == []
    body = {
        "model": "scripted",
        "input": "find foxes",
        "tools": [{"type": "file_search", "vector_store_ids": [store], "ranking_options": {"ranker": "magic"}}],
    }
    refused = await http.post("/v1/responses", json=body)
    assert refused.status_code == 400
    assert "magic" in refused.json()["error"]["message"]

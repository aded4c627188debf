"""What programs with the Python package `openai` do with files, vector stores and batches."""

import io
import json
import os
import time
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch, FileObject, VectorStore
from openai.types.vector_store_search_response import VectorStoreSearchResponse
from openai.types.vector_stores import VectorStoreFile, VectorStoreFileBatch
from openai_responses import streamed
from pydantic import BaseModel
from shop import SEARCH

URL = os.environ["GATEWAY_URL"]
MOST_SECONDS = 30.0
EMBEDDING: Any = {"embedding_model": "words"}


@pytest.fixture(params=["/v1", "/v1/openai/v1"])
def client(request: pytest.FixtureRequest) -> OpenAI:
    return OpenAI(base_url=URL + request.param, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def v1() -> OpenAI:
    return OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)


def strictly(kind: type[BaseModel], raw: Any) -> Any:
    """The answer's own JSON must be what the SDK declares, without any leniency."""
    return kind.model_validate_json(raw.http_response.content, strict=True)


def upload(client: OpenAI, name: str, text: str) -> FileObject:
    return client.files.create(file=(name, text.encode()), purpose="assistants")


def new_store(client: OpenAI, **more: Any) -> VectorStore:
    return client.vector_stores.create(name="docs", extra_body=EMBEDDING, **more)


def test_files_are_kept_listed_read_and_deleted(client: OpenAI) -> None:
    raw = client.files.with_raw_response.create(file=("notes.txt", b"rain on the roof"), purpose="assistants")
    made = strictly(FileObject, raw)
    assert (made.filename, made.bytes, made.purpose) == ("notes.txt", 16, "assistants")
    strictly(FileObject, client.files.with_raw_response.retrieve(made.id))
    assert made.id in {one.id for one in client.files.list(purpose="assistants", limit=2)}  # page by page
    assert client.files.content(made.id).read() == b"rain on the roof"
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_large_files_are_sent_and_read_in_pieces(v1: OpenAI) -> None:
    content = os.urandom(3_000_000)
    made = v1.files.create(file=io.BytesIO(content), purpose="user_data")
    with v1.files.with_streaming_response.content(made.id) as response:
        assert b"".join(response.iter_bytes()) == content
    v1.files.delete(made.id)


def test_vector_stores_are_made_changed_and_deleted(client: OpenAI) -> None:
    raw = client.vector_stores.with_raw_response.create(name="docs", metadata={"a": "b"}, extra_body=EMBEDDING)
    store = strictly(VectorStore, raw)
    assert (store.name, store.status, store.metadata) == ("docs", "completed", {"a": "b"})
    strictly(VectorStore, client.vector_stores.with_raw_response.retrieve(store.id))
    assert client.vector_stores.update(store.id, name="more", metadata={"a": "c"}).name == "more"
    assert store.id in {one.id for one in client.vector_stores.list(limit=2)}
    assert client.vector_stores.delete(store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)


def test_a_file_is_put_into_a_store_and_found(client: OpenAI) -> None:
    store = new_store(client)
    file = upload(client, "roof.txt", "The roof is red and made of tin.")
    done = client.vector_stores.files.create_and_poll(
        file.id, vector_store_id=store.id, attributes={"colour": "red"}, poll_interval_ms=50
    )
    assert done.status == "completed"
    strictly(VectorStoreFile, client.vector_stores.files.with_raw_response.retrieve(file.id, vector_store_id=store.id))
    assert [one.id for one in client.vector_stores.files.list(store.id)] == [file.id]
    raw = client.vector_stores.with_raw_response.search(store.id, query="red roof", max_num_results=3)
    [found] = [VectorStoreSearchResponse.model_validate(one) for one in json.loads(raw.http_response.content)["data"]]
    assert (found.file_id, found.filename, found.attributes) == (file.id, "roof.txt", {"colour": "red"})
    assert "tin" in found.content[0].text
    blue: Any = {"type": "eq", "key": "colour", "value": "blue"}
    assert list(client.vector_stores.search(store.id, query="red roof", filters=blue)) == []
    pieces = list(client.vector_stores.files.content(file.id, vector_store_id=store.id))
    assert "tin" in "".join(piece.text for piece in pieces)
    updated = client.vector_stores.files.update(file.id, vector_store_id=store.id, attributes={"colour": "blue"})
    assert updated.attributes == {"colour": "blue"}
    assert client.vector_stores.files.delete(file.id, vector_store_id=store.id).deleted
    assert list(client.vector_stores.files.list(store.id)) == []


def test_files_go_in_by_batches(v1: OpenAI) -> None:
    store = new_store(v1)
    files = [upload(v1, f"{number}.txt", f"text number {number}").id for number in range(3)]
    raw = v1.vector_stores.file_batches.with_raw_response.create(store.id, file_ids=files)
    batch = strictly(VectorStoreFileBatch, raw)
    done = v1.vector_stores.file_batches.poll(batch.id, vector_store_id=store.id, poll_interval_ms=50)
    assert (done.status, done.file_counts.completed, done.file_counts.total) == ("completed", 3, 3)
    listed = v1.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    assert {one.id for one in listed} == set(files)
    assert v1.vector_stores.retrieve(store.id).file_counts.completed == 3


def test_a_response_searches_files_and_every_event_is_read(v1: OpenAI) -> None:
    body = {"model_id": "searcher", "provider_id": "scripted", "metadata": {"script": SEARCH}}
    v1.post("/models", body=body, cast_to=object)
    store = new_store(v1)
    file = upload(v1, "roof.txt", "The roof is red and made of tin.")
    facts = {"colour": "red"}
    v1.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id, attributes=facts, poll_interval_ms=50)
    tool = {"type": "file_search", "vector_store_ids": [store.id]}
    events, final = streamed(
        v1, model="searcher", input="What of the roof?", tools=[tool], include=["file_search_call.results"]
    )
    search = final.output[0]
    assert (search.type, search.status, search.queries) == ("file_search_call", "completed", ["red roof"])
    assert (search.results[0].file_id, search.results[0].filename) == (file.id, "roof.txt")
    assert search.results[0].attributes == facts
    assert "tin" in final.output_text
    kinds = [event.type for event in events]
    assert [kind for kind in kinds if "file_search" in kind] == [
        f"response.file_search_call.{state}" for state in ("in_progress", "searching", "completed")
    ]


def test_a_batch_is_done_and_its_answers_are_read(v1: OpenAI) -> None:
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": {
            "model": "scripted", "messages": [{"role": "user", "content": f"say {number}"}]}}
        for number in range(3)
    ]  # fmt: skip
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = v1.files.create(file=("batch.jsonl", content), purpose="batch")
    raw = v1.batches.with_raw_response.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    batch = strictly(Batch, raw)
    end = time.monotonic() + MOST_SECONDS
    while batch.status not in {"completed", "failed", "expired", "cancelled"}:
        assert time.monotonic() < end
        time.sleep(0.1)
        batch = v1.batches.retrieve(batch.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 3, 0)
    answers = [json.loads(line) for line in v1.files.content(batch.output_file_id).text.splitlines()]
    said = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in answers}
    assert said == {"0": "0", "1": "1", "2": "2"}
    assert batch.id in {one.id for one in v1.batches.list(limit=5)}
    with pytest.raises(openai.ConflictError):
        v1.batches.cancel(batch.id)

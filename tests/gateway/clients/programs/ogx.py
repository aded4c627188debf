"""What programs with `ogx-client` 1.5.0 do; it validates every object and silently drops events that it cannot read."""

import json
import os
import time
import urllib.request
from typing import Any

import ogx_client
import pytest
from ogx_client import AsyncOgxClient, OgxClient
from ogx_client.lib.agents.agent import Agent
from ogx_client.lib.agents.event_logger import AgentEventLogger
from shop import SCRIPT, SEARCH, open_shop

URL = os.environ["GATEWAY_URL"]
MOST_SECONDS = 20.0
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def get_weather(city: str) -> str:
    """Tell the weather.

    :param city: Where.
    """
    return f"sunny in {city}"


@pytest.fixture(scope="module")
def client() -> OgxClient:
    return OgxClient(base_url=URL)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def post(path: str, body: Any) -> None:
    """What this client has no call for."""
    request = urllib.request.Request(f"{URL}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    urllib.request.urlopen(request).close()


def sent(path: str, **body: Any) -> list[Any]:
    """The events that the server sends for a request, without the client."""
    headers = {"content-type": "application/json", "x-ogx-client-version": "1.5.0"}
    request = urllib.request.Request(f"{URL}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        lines = [line.decode().removeprefix("data: ").strip() for line in response if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_models_providers_routes_and_health_are_read(client: OgxClient) -> None:
    models = client.models.list()
    entries = models if isinstance(models, list) else models.data
    assert "scripted" in {model.id for model in entries}
    assert client.models.retrieve("scripted").id == "scripted"
    assert client.inspect.health().status == "OK"
    assert client.inspect.version().version
    assert client.providers.list()
    assert client.routes.list()
    with pytest.raises(ogx_client.NotFoundError):
        client.models.retrieve("nobody")


def test_a_chat_comes_whole_and_streamed(client: OgxClient) -> None:
    whole = client.chat.completions.create(model="scripted", messages=[user("say one two")])
    assert whole.choices[0].message.content == "one two"
    assert whole.usage.total_tokens
    body: Any = {"model": "scripted", "messages": [user("say one two")], "stream": True,
                 "stream_options": {"include_usage": True}}  # fmt: skip
    chunks = list(client.chat.completions.create(**body))
    assert not any(isinstance(chunk, dict) for chunk in chunks), "a chunk was not understood"
    assert len(chunks) == len(sent("/v1/chat/completions", **body))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two"


def test_a_chat_calls_tools(client: OgxClient) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}]
    body: Any = {"model": "scripted", "messages": [user("the weather?")], "tools": tools}
    whole = client.chat.completions.create(**body)
    [call] = whole.choices[0].message.tool_calls
    assert json.loads(getattr(call, "actual_instance", call).function.arguments) == {"city": "Oslo"}
    chunks = list(client.chat.completions.create(**body, stream=True))
    assert not any(isinstance(chunk, dict) for chunk in chunks), "a chunk was not understood"
    assert any(chunk.choices[0].delta.tool_calls for chunk in chunks)


def test_stored_chats_are_listed_with_their_input(client: OgxClient) -> None:
    made = client.chat.completions.create(model="scripted", messages=[user("say keep me")], store=True)
    shown = client.chat.completions.retrieve(made.id)
    assert shown.choices[0].message.content == "keep me"
    assert shown.input_messages[0].content == "say keep me"
    assert made.id in {one.id for one in client.chat.completions.list(limit=50).data}


def test_completions_and_embeddings_are_read(client: OgxClient) -> None:
    assert client.completions.create(model="scripted", prompt="say hi").choices[0].text == "hi"
    answer = client.embeddings.create(model="words", input=["a b", "c"])
    assert len(answer.data) == 2


def test_a_response_is_read_and_kept(client: OgxClient) -> None:
    made = client.responses.create(model="scripted", input="say hi")
    assert made.status == "completed"
    assert client.responses.retrieve(made.id).id == made.id
    listed = client.responses.list(limit=20)
    assert made.id in {one.id for one in listed.data}
    items = client.responses.input_items.list(made.id)
    assert len(items.data) == 1
    second = client.responses.create(model="scripted", input="say again", previous_response_id=made.id)
    assert second.previous_response_id == made.id
    assert client.responses.delete(made.id).deleted
    with pytest.raises(ogx_client.NotFoundError):
        client.responses.retrieve(made.id)


@pytest.mark.parametrize(
    "body",
    [
        {"input": "say one two"},
        {"input": "the weather?", "tools": [{"type": "function", "name": "get_weather", "parameters": CITY}]},
        {"input": "say " + "word " * 40, "max_output_tokens": 16},
        {
            "input": "say no JSON",
            "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
        },
    ],
    ids=["text", "function", "cut", "failed"],
)
def test_no_event_of_a_response_is_lost(client: OgxClient, body: Any) -> None:
    body = {"model": "scripted", "stream": True, **body}
    events = list(client.responses.create(**body))
    expected = [event["type"] for event in sent("/v1/responses", **body)]
    lost = [event for event in events if isinstance(event, dict)]
    assert lost == []
    assert [event.type for event in events] == expected


def test_no_event_of_a_tools_call_is_lost(client: OgxClient) -> None:
    body = {"model_id": "scripted-tools", "provider_id": "scripted", "metadata": {"script": SCRIPT}}
    post("/v1/models", body)
    with open_shop() as tool:
        asked = {"model": "scripted-tools", "input": "look", "tools": [tool], "stream": True}
        events = list(client.responses.create(**asked))
        expected = [event["type"] for event in sent("/v1/responses", **asked)]
    assert [event for event in events if isinstance(event, dict)] == []
    assert [event.type for event in events] == expected
    assert "response.mcp_call.arguments.done" in expected
    assert client.responses.retrieve(events[-1].response.id).status == "completed"


def test_a_background_response_is_cancelled_and_a_long_dialog_made_short(client: OgxClient) -> None:
    made = client.responses.create(model="scripted", input="hang", background=True)
    ended = client.responses.openai_response_v1_responses_response_id_cancel_post(made.id)
    assert ended.status == "cancelled"
    short = client.responses.compact(model="scripted", input="say something long")
    assert short.object == "response.compaction"
    assert short.output


def test_the_alpha_and_admin_resources_are_read(client: OgxClient) -> None:
    body = {"model_id": "ranker", "provider_id": "scripted", "model_type": "rerank"}
    request = urllib.request.Request(
        f"{URL}/v1/models", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request).close()
    ranked = client.alpha.inference.rerank(model="ranker", query="red roof", items=["blue sea", "red roof"])
    entries = ranked if isinstance(ranked, list) else ranked.data
    assert entries[0].index == 1


def test_conversations_and_their_items_are_read(client: OgxClient) -> None:
    conversation = client.conversations.create(metadata={"a": "b"})
    client.responses.create(model="scripted", input="say hi", conversation=conversation.id)
    items = client.conversations.items.list(conversation.id, order="asc")
    assert len(items.data) == 2
    more = client.conversations.items.create(
        conversation.id, items=[{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}]
    )
    assert len(more.data) == 1
    assert client.conversations.update(conversation.id, metadata={"a": "c"}).metadata == {"a": "c"}
    assert client.conversations.retrieve(conversation.id).id == conversation.id
    client.conversations.delete(conversation.id)
    with pytest.raises(ogx_client.NotFoundError):
        client.conversations.retrieve(conversation.id)


def test_files_go_into_stores_and_are_found(client: OgxClient) -> None:
    file = client.files.create(file=("roof.txt", b"The roof is red and made of tin."), purpose="assistants")
    assert client.files.retrieve(file.id).bytes == 32
    assert file.id in {one.id for one in client.files.list(limit=100).data}
    store = client.vector_stores.create(name="docs", extra_body={"embedding_model": "words"})
    made = client.vector_stores.files.create(store.id, file_id=file.id, attributes={"colour": "red"})
    end = time.monotonic() + MOST_SECONDS
    while made.status == "in_progress":
        assert time.monotonic() < end
        time.sleep(0.05)
        made = client.vector_stores.files.retrieve(vector_store_id=store.id, file_id=file.id)
    assert made.status == "completed"
    assert [one.id for one in client.vector_stores.files.list(store.id).data] == [file.id]
    found = client.vector_stores.search(store.id, query="red roof")
    assert (found.data[0].file_id, found.data[0].attributes) == (file.id, {"colour": "red"})
    assert "tin" in found.data[0].content[0].text
    shown = client.vector_stores.files.content(vector_store_id=store.id, file_id=file.id)
    assert shown
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 1
    assert store.id in {one.id for one in client.vector_stores.list().data}
    assert client.vector_stores.update(store.id, name="more").name == "more"
    body = {"model_id": "searcher", "provider_id": "scripted", "metadata": {"script": SEARCH}}
    post("/v1/models", body)
    tool = {"type": "file_search", "vector_store_ids": [store.id]}
    asked: Any = {"model": "searcher", "input": "the roof?", "tools": [tool], "include": ["file_search_call.results"]}
    response = client.responses.create(**asked)
    assert response.output[0].actual_instance.results[0].filename == "roof.txt"
    events = list(client.responses.create(**asked, stream=True))
    assert [event for event in events if isinstance(event, dict)] == []
    assert [event.type for event in events] == [event["type"] for event in sent("/v1/responses", **asked, stream=True)]
    batch = client.vector_stores.file_batches.create(store.id, file_ids=[file.id])
    assert client.vector_stores.file_batches.retrieve(vector_store_id=store.id, batch_id=batch.id).id == batch.id
    client.vector_stores.file_batches.list_files(vector_store_id=store.id, batch_id=batch.id)
    client.vector_stores.files.delete(vector_store_id=store.id, file_id=file.id)
    client.vector_stores.delete(store.id)
    client.files.delete(file.id)
    with pytest.raises(ogx_client.NotFoundError):
        client.files.retrieve(file.id)


def test_chunks_are_stored_and_found(client: OgxClient) -> None:
    store = client.vector_stores.create(name="chunks", extra_body={"embedding_model": "words"})
    chunks: list[Any] = [
        {
            "content": text,
            "chunk_id": f"chunk-{number}",
            "metadata": {"document_id": "d"},
            "chunk_metadata": {"document_id": "d"},
            "embedding": None,
        }
        for number, text in enumerate(["red roof", "blue sea"])
    ]
    for chunk in chunks:
        vector = client.embeddings.create(model="words", input=chunk["content"]).data[0].embedding
        chunk |= {
            "embedding": getattr(vector, "actual_instance", vector),
            "embedding_model": "words",
            "embedding_dimension": 16,
        }
    client.vector_io.insert(vector_store_id=store.id, chunks=chunks)
    found = client.vector_io.query(vector_store_id=store.id, query="red roof", params={"max_chunks": 1})
    assert found.chunks[0].chunk_id == "chunk-0"
    assert len(found.scores) == 1


def test_a_batch_is_done(client: OgxClient) -> None:
    body = {"model": "scripted", "messages": [user("say hi")]}
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = client.files.create(file=("batch.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    end = time.monotonic() + MOST_SECONDS
    while batch.status not in {"completed", "failed"}:
        assert time.monotonic() < end
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 1)
    assert batch.id in {one.id for one in client.batches.list().data}
    assert "hi" in str(client.files.content(batch.output_file_id))


def test_prompts_are_kept_in_versions(client: OgxClient) -> None:
    made = client.prompts.create(prompt="Say {{ word }}.", variables=["word"])
    assert (made.version, made.is_default) == (1, True)
    newer = client.prompts.update(made.prompt_id, prompt="Shout {{ word }}.", version=1, variables=["word"],
                                  set_as_default=True)  # fmt: skip
    assert newer.version == 2
    assert client.prompts.retrieve(made.prompt_id).prompt == "Shout {{ word }}."
    versions = client.prompts.versions.list(made.prompt_id)
    assert len(versions if isinstance(versions, list) else versions.data) == 2
    assert client.prompts.set_default_version(made.prompt_id, version=1).version == 1
    listed = client.prompts.list()
    assert made.prompt_id in {one.prompt_id for one in (listed if isinstance(listed, list) else listed.data)}
    client.prompts.delete(made.prompt_id)
    with pytest.raises(ogx_client.NotFoundError):
        client.prompts.retrieve(made.prompt_id)


def test_its_agent_class_runs_functions_of_the_program(client: OgxClient) -> None:
    agent = Agent(client, model="scripted", instructions="Help.", tools=[get_weather])
    session = agent.create_session("s")
    whole = agent.create_turn([user("the weather?")], session_id=session, stream=False)
    assert "sunny in Oslo" in whole.output_text
    stream = agent.create_turn([user("the weather?")], session_id=session, stream=True)
    printed = "".join(str(event) for event in AgentEventLogger().log(stream))
    assert "sunny in Oslo" in printed


def test_errors_are_the_clients_own_classes(client: OgxClient) -> None:
    with pytest.raises(ogx_client.NotFoundError):
        client.chat.completions.create(model="nope", messages=[user("x")])
    with pytest.raises(ogx_client.BadRequestError):
        client.chat.completions.create(model="scripted", messages=[user("x")], temperature=9)


async def test_the_async_client_streams() -> None:
    async with AsyncOgxClient(base_url=URL) as client:
        stream = await client.responses.create(model="scripted", input="say one two", stream=True)
        kinds = [event.type async for event in stream]
        assert kinds[-1] == "response.completed"

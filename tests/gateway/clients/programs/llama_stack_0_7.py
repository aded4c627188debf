"""What programs with `llama-stack-client` 0.7.5 do: its resources, and its agents, which speak responses."""

import json
import os
import time
import urllib.request
from typing import Any

import llama_stack_client
import pytest
from llama_stack_client import AsyncLlamaStackClient, LlamaStackClient
from llama_stack_client.lib.agents.agent import Agent
from llama_stack_client.lib.agents.event_logger import AgentEventLogger
from llama_stack_client.lib.agents.react.agent import ReActAgent
from shop import SCRIPT, open_shop

URL = os.environ["GATEWAY_URL"]
MOST_SECONDS = 20.0


def get_weather(city: str) -> str:
    """Tell the weather.

    :param city: Where.
    """
    return f"sunny in {city}"


def register(**body: Any) -> None:
    """Register a model; this client has no call for it any more."""
    request = urllib.request.Request(
        f"{URL}/v1/models", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def client() -> LlamaStackClient:
    client = LlamaStackClient(base_url=URL, max_retries=0)
    thought = {
        "thought": "ask",
        "action": {"tool_name": "get_weather", "tool_params": [{"name": "city", "value": "Oslo"}]},
        "answer": None,
    }
    script = [
        {"role": "user", "match": "react", "reply": json.dumps(thought)},
        {"role": "tool", "reply": json.dumps({"thought": "done", "action": None, "answer": "It is sunny."})},
    ]
    register(model_id="thinker", provider_id="scripted", metadata={"script": script})
    register(model_id="ranker07", provider_id="scripted", model_type="rerank")
    client.shields.register(shield_id="guard", provider_id="llama-guard", provider_shield_id="the-guard")
    return client


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def test_what_scripts_ask_first(client: LlamaStackClient) -> None:
    assert client.inspect.health().status == "OK"
    assert client.inspect.version().version
    models = client.models.list()
    mine = next(model for model in models if model.id == "words")
    assert mine.custom_metadata["model_type"] == "embedding"
    assert client.models.retrieve("scripted").id == "scripted"
    assert client.providers.list()
    assert client.routes.list()
    assert client.alpha.admin.health().status == "OK"
    assert client.alpha.admin.version().version
    assert client.alpha.admin.list_providers()
    assert client.alpha.admin.list_routes()


def test_a_chat_comes_whole_and_streamed(client: LlamaStackClient) -> None:
    answer = client.chat.completions.create(model="scripted", messages=[user("say hi")])
    assert answer.choices[0].message.content == "hi"
    chunks = list(client.chat.completions.create(model="scripted", messages=[user("say a b")], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a b"
    with pytest.raises(llama_stack_client.APIError, match="the scripted engine broke"):
        list(client.chat.completions.create(model="scripted", messages=[user("break")], stream=True))


def test_stored_chats_are_listed_with_their_input(client: LlamaStackClient) -> None:
    made = client.chat.completions.create(model="scripted", messages=[user("say keep me")], extra_body={"store": True})
    shown = client.chat.completions.retrieve(made.id)
    assert shown.choices[0].message.content == "keep me"
    assert shown.input_messages[0].content == "say keep me"
    assert made.id in {one.id for one in client.chat.completions.list(limit=50).data}


def test_completions_embeddings_and_reranking(client: LlamaStackClient) -> None:
    assert client.completions.create(model="scripted", prompt="say hi").choices[0].text == "hi"
    assert len(client.embeddings.create(model="words", input=["a"]).data[0].embedding) == 16
    ranked = client.alpha.inference.rerank(model="ranker07", query="red roof", items=["blue sea", "red roof"])
    assert ranked[0].index == 1


def test_shields_and_moderations_judge(client: LlamaStackClient) -> None:
    bad = client.safety.run_shield(shield_id="guard", messages=[user("forbidden")])
    assert bad.violation.violation_level == "error"
    moderated = client.moderations.create(model="the-guard", input=["fine", "forbidden"])
    assert [one.flagged for one in moderated.results] == [False, True]


def test_responses_are_made_streamed_and_kept(client: LlamaStackClient) -> None:
    made = client.responses.create(model="scripted", input="say hi")
    assert made.output_text == "hi"
    assert client.responses.retrieve(made.id).status == "completed"
    events = list(client.responses.create(model="scripted", input="say a b", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert len(client.responses.input_items.list(made.id).data) == 1
    assert made.id in {one.id for one in client.responses.list(limit=50).data}
    assert client.responses.delete(made.id).deleted
    with pytest.raises(llama_stack_client.NotFoundError):
        client.responses.retrieve(made.id)


def test_conversations_and_items_are_kept(client: LlamaStackClient) -> None:
    conversation = client.conversations.create(metadata={"a": "b"})
    client.responses.create(model="scripted", input="say hi", conversation=conversation.id)
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    assert [item.role for item in items] == ["user", "assistant"]
    more: Any = [{"type": "message", "role": "user", "content": "more"}]
    added = client.conversations.items.create(conversation.id, items=more)
    shown = client.conversations.items.get(added.data[0].id, conversation_id=conversation.id)
    assert shown.role == "user"
    client.conversations.items.delete(added.data[0].id, conversation_id=conversation.id)
    assert client.conversations.update(conversation.id, metadata={"a": "c"}).metadata == {"a": "c"}
    assert client.conversations.delete(conversation.id).deleted


def test_prompts_are_kept_in_versions(client: LlamaStackClient) -> None:
    made = client.prompts.create(prompt="Say {{ word }}.", variables=["word"])
    newer = client.prompts.update(made.prompt_id, prompt="Shout {{ word }}.", version=1, variables=["word"])
    assert newer.version == 2
    assert len(client.prompts.versions.list(made.prompt_id)) == 2
    assert client.prompts.set_default_version(made.prompt_id, version=1).version == 1
    assert client.prompts.retrieve(made.prompt_id, version=2).prompt == "Shout {{ word }}."
    assert made.prompt_id in {one.prompt_id for one in client.prompts.list()}
    client.prompts.delete(made.prompt_id)


def test_files_go_into_stores_and_are_found(client: LlamaStackClient) -> None:
    file = client.files.create(file=("roof.txt", b"The roof is red and made of tin."), purpose="assistants")
    assert client.files.retrieve(file.id).bytes == 32
    assert file.id in {one.id for one in client.files.list(limit=100).data}
    store = client.vector_stores.create(name="docs", extra_body={"embedding_model": "words"})
    made = client.vector_stores.files.create(store.id, file_id=file.id, attributes={"colour": "red"})
    end = time.monotonic() + MOST_SECONDS
    while made.status == "in_progress":
        assert time.monotonic() < end
        time.sleep(0.05)
        made = client.vector_stores.files.retrieve(file.id, vector_store_id=store.id)
    assert made.status == "completed"
    assert [one.id for one in client.vector_stores.files.list(store.id).data] == [file.id]
    found = client.vector_stores.search(store.id, query="red roof")
    assert (found.data[0].file_id, found.data[0].attributes) == (file.id, {"colour": "red"})
    assert "tin" in found.data[0].content[0].text
    shown = client.vector_stores.files.content(file.id, vector_store_id=store.id)
    assert shown
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 1
    assert store.id in {one.id for one in client.vector_stores.list().data}
    assert client.vector_stores.update(store.id, name="more").name == "more"
    batch = client.vector_stores.file_batches.create(store.id, file_ids=[file.id])
    assert client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id).id == batch.id
    client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    client.vector_stores.files.delete(file.id, vector_store_id=store.id)
    client.vector_stores.delete(store.id)
    client.files.delete(file.id)
    with pytest.raises(llama_stack_client.NotFoundError):
        client.files.retrieve(file.id)


def test_chunks_are_stored_and_found(client: LlamaStackClient) -> None:
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
        chunk |= {"embedding": vector, "embedding_model": "words", "embedding_dimension": 16}
    client.vector_io.insert(vector_store_id=store.id, chunks=chunks)
    found = client.vector_io.query(vector_store_id=store.id, query="red roof", params={"max_chunks": 1})
    assert found.chunks[0].chunk_id == "chunk-0"
    assert len(found.scores) == 1


def test_a_batch_is_done(client: LlamaStackClient) -> None:
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


def test_an_agent_runs_functions_of_the_program(client: LlamaStackClient) -> None:
    agent = Agent(client, model="scripted", instructions="Help.", tools=[get_weather])
    session = agent.create_session("s")
    whole = agent.create_turn([user("the weather?")], session_id=session, stream=False)
    assert "sunny in Oslo" in whole.output_text
    stream = agent.create_turn([user("the weather?")], session_id=session, stream=True)
    printed = "".join(str(event) for event in AgentEventLogger().log(stream))
    assert "sunny in Oslo" in printed


def test_an_agent_uses_tools_of_the_stack(client: LlamaStackClient) -> None:
    register(model_id="scripted-tools", provider_id="scripted", metadata={"script": SCRIPT})
    with open_shop() as tool:
        agent = Agent(client, model="scripted-tools", instructions="Help.", tools=[tool])
        stream = agent.create_turn([user("look")], session_id=agent.create_session("s"), stream=True)
        printed = "".join(str(event) for event in AgentEventLogger().log(stream))
    assert "mcp_call" in printed
    assert "The tool says: seen" in printed


def test_a_react_agent_thinks_calls_and_answers(client: LlamaStackClient) -> None:
    agent = ReActAgent(client=client, model="thinker", tools=[get_weather])
    session = agent.create_session("s")
    response = agent.create_turn([user("react")], session_id=session, stream=False)
    assert "thought" in response.output_text


def test_what_the_stack_does_not_have_is_named(client: LlamaStackClient) -> None:
    for call in (client.beta.datasets.list, client.alpha.benchmarks.list, client.scoring_functions.list):
        with pytest.raises(llama_stack_client.InternalServerError, match="evaluation") as refused:
            call()
        assert refused.value.status_code == 501


async def test_the_async_client_streams() -> None:
    async with AsyncLlamaStackClient(base_url=URL, max_retries=0) as client:
        stream = await client.responses.create(model="scripted", input="say a b", stream=True)
        kinds = [event.type async for event in stream]
        assert kinds[-1] == "response.completed"
        chunks = await client.chat.completions.create(model="scripted", messages=[user("say a b")], stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == "a b"

"""What programs with `llama-stack-client` 0.2.20 do: every resource of its client, its agents and their helpers."""

import asyncio
import json
import os
import shlex
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import llama_stack_client
import pytest
from click.testing import CliRunner
from llama_stack_client import Agent, AgentEventLogger, AsyncLlamaStackClient, LlamaStackClient, RAGDocument
from llama_stack_client.lib.agents.agent import AsyncAgent
from llama_stack_client.lib.agents.client_tool import client_tool
from llama_stack_client.lib.agents.react.agent import ReActAgent
from llama_stack_client.lib.cli.llama_stack_client import llama_stack_client as cli
from llama_stack_client.lib.inference.event_logger import EventLogger as InferenceEventLogger

URL = os.environ["GATEWAY_URL"]
MOST_SECONDS = 20.0


def get_weather(city: str) -> str:
    """Tell the weather.

    :param city: Where.
    """
    return f"sunny in {city}"


@client_tool
async def slow_weather(city: str) -> str:
    """Tell the weather.

    :param city: Where.
    """
    return f"windy in {city}"


@pytest.fixture(scope="module")
def client() -> LlamaStackClient:
    client = LlamaStackClient(base_url=URL, max_retries=0)
    calls = [{"tool_name": "get_weather", "arguments": {"city": city}} for city in ("Oslo", "Rome")]
    thought = {
        "thought": "ask",
        "action": {"tool_name": "get_weather", "tool_params": [{"name": "city", "value": "Oslo"}]},
        "answer": None,
    }
    script = [
        {"role": "user", "match": "react", "reply": json.dumps(thought)},
        {"role": "user", "tools": True, "match": "two cities", "tool_calls": calls},
        {
            "role": "user",
            "tools": True,
            "match": "know",
            "tool_calls": [{"tool_name": "knowledge_search", "arguments": {"query": "the roof"}}],
        },
        {
            "role": "tool",
            "match": "sunny in Oslo",
            "reply": json.dumps({"thought": "done", "action": None, "answer": "It is sunny."}),
        },
        {"role": "tool", "reply": "The tool says: {0}"},
        {"reply": "{0}"},
    ]
    client.models.register(model_id="llama", provider_id="scripted", metadata={"script": script}, model_type="llm")
    client.shields.register(shield_id="guard", provider_id="llama-guard", provider_shield_id="the-guard")
    return client


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def words(client: LlamaStackClient) -> str:
    """A new vector DB."""
    name = f"db-{uuid.uuid4()}"
    client.vector_dbs.register(vector_db_id=name, embedding_model="words", embedding_dimension=16, provider_id="faiss")
    return name


def kinds(chunks: Sequence[Any]) -> list[str]:
    return [chunk.event.payload.event_type for chunk in chunks]


def test_what_scripts_ask_first(client: LlamaStackClient) -> None:
    assert client.inspect.health().status == "OK"
    assert client.inspect.version().version
    providers = client.providers.list()
    inference = next(one for one in providers if one.api == "inference")
    assert client.providers.retrieve(inference.provider_id).provider_id == inference.provider_id
    assert inference.health["status"] == "OK"
    routes = {(route.method, route.route) for route in client.routes.list()}
    assert ("POST", "/v1/inference/chat-completion") in routes
    models = client.models.list()
    embedding = next(model for model in models if model.model_type == "embedding")
    assert embedding.metadata["embedding_dimension"] == 16
    assert next(model for model in models if model.model_type == "llm").identifier
    assert client.toolgroups.list()
    assert isinstance(client.shields.list(), list)


def test_models_are_registered_shown_and_forgotten(client: LlamaStackClient) -> None:
    made = client.models.register(model_id="mine/one", provider_id="scripted", provider_model_id="x", metadata={"a": 1})
    assert (made.identifier, made.provider_id, made.model_type) == ("mine/one", "scripted", "llm")
    assert client.models.retrieve("mine/one").metadata["a"] == 1
    client.models.unregister("mine/one")
    with pytest.raises(llama_stack_client.NotFoundError):
        client.models.retrieve("mine/one")


def test_native_chat_comes_whole_and_streamed(client: LlamaStackClient) -> None:
    whole = client.inference.chat_completion(
        model_id="scripted",
        messages=[{"role": "system", "content": "Be brief."}, user("say one two")],
        sampling_params={"strategy": {"type": "top_p", "temperature": 0.5, "top_p": 0.9}, "max_tokens": 9},
    )
    assert (whole.completion_message.content, whole.completion_message.stop_reason) == ("one two", "end_of_turn")
    assert {metric.metric for metric in whole.metrics} >= {"prompt_tokens", "completion_tokens", "total_tokens"}
    chunks = list(client.inference.chat_completion(model_id="scripted", messages=[user("say one two")], stream=True))
    assert chunks[0].event.event_type == "start"
    assert chunks[-1].event.event_type == "complete"
    assert chunks[-1].event.stop_reason == "end_of_turn"
    assert "".join(chunk.event.delta.text for chunk in chunks if chunk.event.delta.type == "text") == "one two"
    again = client.inference.chat_completion(model_id="scripted", messages=[user("say one two")], stream=True)
    printed = "".join(str(event.content) for event in InferenceEventLogger().log(again))
    assert "one two" in printed.replace("Assistant> ", "")


def test_native_chat_calls_tools(client: LlamaStackClient) -> None:
    tools: Any = [
        {
            "tool_name": "get_weather",
            "description": "Weather",
            "parameters": {"city": {"param_type": "string", "description": "Where", "required": True}},
        }
    ]
    first = client.inference.chat_completion(
        model_id="scripted", messages=[user("the weather?")], tools=tools,
        tool_config={"tool_choice": "auto", "tool_prompt_format": "json"},
    )  # fmt: skip
    [call] = first.completion_message.tool_calls
    assert (call.tool_name, call.arguments, json.loads(call.arguments_json)) == (
        "get_weather", {"city": "Oslo"}, {"city": "Oslo"},
    )  # fmt: skip
    messages: Any = [
        user("the weather?"), first.completion_message.to_dict(),
        {"role": "tool", "call_id": call.call_id, "content": "rain"},
    ]  # fmt: skip
    second = client.inference.chat_completion(model_id="scripted", messages=messages, tools=tools)
    assert second.completion_message.content == "The tool says: rain"
    stream = client.inference.chat_completion(
        model_id="scripted", messages=[user("the weather?")], tools=tools, stream=True
    )
    deltas = [chunk.event.delta for chunk in stream if chunk.event.delta.type == "tool_call"]
    assert deltas[-1].parse_status == "succeeded"
    assert deltas[-1].tool_call.arguments == {"city": "Oslo"}


def test_native_chat_keeps_to_a_schema(client: LlamaStackClient) -> None:
    schema = {"type": "object", "properties": {"subject": {"type": "string"}, "urgency": {"type": "string"}}}
    answer = client.inference.chat_completion(
        model_id="scripted", messages=[user("the heating is off")],
        response_format={"type": "json_schema", "json_schema": schema},
    )  # fmt: skip
    assert json.loads(str(answer.completion_message.content))["urgency"] == "high"


def test_native_completions_embeddings_and_batches(client: LlamaStackClient) -> None:
    assert client.inference.completion(model_id="scripted", content="say one two").content == "one two"
    chunks = list(client.inference.completion(model_id="scripted", content="say one two", stream=True))
    assert "".join(chunk.delta for chunk in chunks) == "one two"
    assert chunks[-1].stop_reason == "end_of_turn"
    vectors = client.inference.embeddings(model_id="words", contents=["a", "b"], task_type="query").embeddings
    assert [len(vector) for vector in vectors] == [16, 16]
    several = client.inference.batch_completion(model_id="scripted", content_batch=["say a", "say b"])
    assert [one.content for one in several.batch] == ["a", "b"]
    chats = client.inference.batch_chat_completion(
        model_id="scripted", messages_batch=[[user("say a")], [user("say b")]]
    )
    assert [one.completion_message.content for one in chats.batch] == ["a", "b"]


def test_openai_chats_completions_and_embeddings(client: LlamaStackClient) -> None:
    answer = client.chat.completions.create(model="scripted", messages=[user("say hi")])
    assert answer.choices[0].message.content == "hi"
    chunks = list(client.chat.completions.create(model="scripted", messages=[user("say a b")], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a b"
    assert client.completions.create(model="scripted", prompt="say hi").choices[0].text == "hi"
    assert (
        "".join(
            chunk.choices[0].text
            for chunk in client.completions.create(model="scripted", prompt="say a b", stream=True)
        )
        == "a b"
    )
    assert len(client.embeddings.create(model="words", input=["a"]).data[0].embedding) == 16


def test_stored_chats_are_listed_with_their_input(client: LlamaStackClient) -> None:
    made = client.chat.completions.create(model="scripted", messages=[user("say keep me")], extra_body={"store": True})
    shown = client.chat.completions.retrieve(made.id)
    assert shown.choices[0].message.content == "keep me"
    assert shown.input_messages[0].content == "say keep me"
    assert made.id in {one.id for one in client.chat.completions.list(limit=50).data}


def test_shields_judge(client: LlamaStackClient) -> None:
    assert client.shields.retrieve("guard").provider_resource_id == "the-guard"
    good = client.safety.run_shield(shield_id="guard", messages=[user("fine")], params={})
    assert good.violation is None
    bad = client.safety.run_shield(shield_id="guard", messages=[user("forbidden")], params={})
    assert bad.violation.violation_level == "error"
    assert bad.violation.user_message
    assert isinstance(bad.violation.metadata, dict)
    moderated = client.moderations.create(model="the-guard", input=["fine", "forbidden"])
    assert [one.flagged for one in moderated.results] == [False, True]


def test_tools_are_listed_and_invoked(client: LlamaStackClient) -> None:
    groups = {group.identifier for group in client.toolgroups.list()}
    assert {"builtin::rag", "builtin::websearch"} <= groups
    assert client.toolgroups.get("builtin::rag").provider_id
    found = client.tools.list(toolgroup_id="builtin::rag")
    assert "knowledge_search" in {tool.identifier for tool in found}
    assert {parameter.name for tool in found for parameter in tool.parameters} >= {"query"}
    assert client.tools.get("knowledge_search").toolgroup_id == "builtin::rag"
    listed = client.tool_runtime.list_tools(tool_group_id="builtin::rag")
    assert "knowledge_search" in {tool.name for tool in listed}
    with pytest.raises(llama_stack_client.NotFoundError):
        client.tool_runtime.invoke_tool(tool_name="nobody", kwargs={})
    client.toolgroups.register(toolgroup_id="sums", provider_id="wolfram-alpha")
    assert client.toolgroups.get("sums").provider_id == "wolfram-alpha"
    client.toolgroups.unregister("sums")
    with pytest.raises(llama_stack_client.NotFoundError):
        client.toolgroups.get("sums")


def test_documents_are_stored_and_found(client: LlamaStackClient) -> None:
    db = words(client)
    assert client.vector_dbs.retrieve(db).embedding_dimension == 16
    assert db in {one.identifier for one in client.vector_dbs.list()}
    client.vector_io.insert(vector_db_id=db, chunks=[
        {"content": "rain on the roof", "metadata": {"document_id": "d1"}},
        {"content": "snow in the yard", "metadata": {"document_id": "d2"}},
    ])  # fmt: skip
    found = client.vector_io.query(vector_db_id=db, query="the roof", params={"max_chunks": 2})
    assert found.chunks[0].content == "rain on the roof"
    assert found.chunks[0].metadata["document_id"] == "d1"
    assert len(found.scores) == len(found.chunks)
    document = RAGDocument(document_id="d3", content="a cat sleeps", mime_type="text/plain", metadata={"place": "sofa"})
    client.tool_runtime.rag_tool.insert(documents=[document], vector_db_id=db, chunk_size_in_tokens=64)
    answer = client.tool_runtime.rag_tool.query(
        content="where is the cat", vector_db_ids=[db],
        query_config={"max_chunks": 3, "max_tokens_in_context": 500, "query_generator_config": {
            "type": "default", "separator": " "}},
    )  # fmt: skip
    assert "a cat sleeps" in str(answer.content)
    assert "d3" in answer.metadata["document_ids"]
    searched = client.tool_runtime.invoke_tool(
        tool_name="knowledge_search", kwargs={"query": "the cat", "vector_db_ids": [db]}
    )
    assert "a cat sleeps" in str(searched.content)
    client.vector_dbs.unregister(db)
    with pytest.raises(llama_stack_client.NotFoundError):
        client.vector_dbs.retrieve(db)


def test_files_go_into_stores_and_are_found(client: LlamaStackClient) -> None:
    file = client.files.create(file=("roof.txt", b"The roof is red and made of tin."), purpose="assistants")
    assert client.files.retrieve(file.id).bytes == 32
    assert file.id in {one.id for one in client.files.list(limit=100).data}
    store = client.vector_stores.create(name="docs", embedding_model="words")
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
    client.vector_stores.files.delete(file.id, vector_store_id=store.id)
    client.vector_stores.delete(store.id)
    client.files.delete(file.id)
    with pytest.raises(llama_stack_client.NotFoundError):
        client.files.retrieve(file.id)


def test_an_agent_answers_and_its_events_are_logged(client: LlamaStackClient) -> None:
    agent = Agent(client, model="llama", instructions="Be brief.", enable_session_persistence=True)
    session = agent.create_session("s")
    stream = agent.create_turn(messages=[user("hello there")], session_id=session)
    printed = "".join(str(event.content) for event in AgentEventLogger().log(stream))
    assert "hello there" in printed
    turn = agent.create_turn(messages=[user("again")], session_id=session, stream=False)
    assert (turn.output_message.content, turn.output_message.stop_reason) == ("again", "end_of_turn")
    assert [step.step_type for step in turn.steps] == ["inference"]
    shown = client.agents.session.retrieve(agent_id=agent.agent_id, session_id=session)
    assert [one.input_messages[0].content for one in shown.turns] == ["hello there", "again"]
    once = client.agents.turn.retrieve(turn.turn_id, agent_id=agent.agent_id, session_id=session)
    assert once.output_message.content == "again"
    step = client.agents.steps.retrieve(
        turn.steps[0].step_id, agent_id=agent.agent_id, session_id=session, turn_id=turn.turn_id
    )
    assert step.step.api_model_response.content == "again"


def test_an_agent_runs_functions_of_the_program(client: LlamaStackClient) -> None:
    agent = Agent(client, model="llama", instructions="Help.", tools=[get_weather])
    session = agent.create_session("s")
    chunks = list(agent.create_turn(messages=[user("two cities")], session_id=session))
    assert "turn_awaiting_input" in kinds(chunks)
    assert kinds(chunks)[-1] == "turn_complete"
    turn = chunks[-1].event.payload.turn
    assert [step.step_type for step in turn.steps] == ["inference", "tool_execution", "inference"]
    assert [response.content for response in turn.steps[1].tool_responses] == ['"sunny in Oslo"', '"sunny in Rome"']
    assert turn.output_message.content


def test_an_agent_searches_documents(client: LlamaStackClient) -> None:
    db = words(client)
    client.tool_runtime.rag_tool.insert(
        documents=[RAGDocument(document_id="d", content="the roof is red", mime_type="text/plain", metadata={})],
        vector_db_id=db, chunk_size_in_tokens=64,
    )  # fmt: skip
    tool: Any = {"name": "builtin::rag/knowledge_search", "args": {"vector_db_ids": [db]}}
    agent = Agent(client, model="llama", instructions="Help.", tools=[tool])
    session = agent.create_session("s")
    stream = agent.create_turn(messages=[user("what do you know?")], session_id=session)
    printed = "\n".join(str(event) for event in AgentEventLogger().log(stream))
    assert "Tool:knowledge_search" in printed
    assert "the roof is red" in printed
    whole = Agent(client, model="llama", instructions="Help.", tools=["builtin::wolfram_alpha"])
    assert "wolfram_alpha" in whole.builtin_tools


def test_an_agent_calls_tools_of_the_stack(client: LlamaStackClient) -> None:
    agent = Agent(client, model="scripted", instructions="Help.", tools=["builtin::wolfram_alpha"])
    session = agent.create_session("s")
    turn = agent.create_turn(messages=[user("calculate 6 * 7")], session_id=session, stream=False)
    assert [step.step_type for step in turn.steps] == ["inference", "tool_execution", "inference"]
    assert turn.steps[1].tool_calls[0].arguments == {"query": "6 * 7"}
    assert "42" in str(turn.steps[1].tool_responses[0].content)


def test_toolgroups_of_one_turn_are_added(client: LlamaStackClient) -> None:
    agent = Agent(client, model="scripted", instructions="Help.")
    turn = agent.create_turn(
        messages=[user("calculate 6 * 7")],
        session_id=agent.create_session("s"),
        toolgroups=["builtin::wolfram_alpha"],
        stream=False,
    )
    assert turn.steps[1].step_type == "tool_execution"


def test_documents_of_a_turn_reach_the_model(client: LlamaStackClient) -> None:
    agent = Agent(client, model="llama", instructions="Help.")
    session = agent.create_session("s")
    documents: Any = [{"content": "the secret is blue", "mime_type": "text/plain"}]
    turn = agent.create_turn(messages=[user("read this")], documents=documents, session_id=session, stream=False)
    assert "the secret is blue" in str(turn.output_message.content)


def test_shields_stop_a_turn(client: LlamaStackClient) -> None:
    agent = Agent(client, model="llama", instructions="Help.", input_shields=["guard"], output_shields=["guard"])
    session = agent.create_session("s")
    fine = agent.create_turn(messages=[user("fine")], session_id=session, stream=False)
    assert [step.step_type for step in fine.steps] == ["shield_call", "inference", "shield_call"]
    stream = agent.create_turn(messages=[user("a forbidden thing")], session_id=session)
    chunks = list(stream)
    starts = [chunk.event.payload for chunk in chunks if chunk.event.payload.event_type == "step_start"]
    assert starts[0].metadata["touchpoint"] == "user-input"
    printed = list(AgentEventLogger().log(chunks))
    assert any(event.role == "shield_call" and "No Violation" not in event.content for event in printed)
    turn = chunks[-1].event.payload.turn
    assert turn.steps[0].violation.violation_level == "error"
    assert turn.output_message.content


def test_a_react_agent_thinks_calls_and_answers(client: LlamaStackClient) -> None:
    agent = ReActAgent(client, model="llama", tools=[get_weather], json_response_format=True)
    session = agent.create_session("s")
    turn = agent.create_turn(messages=[user("react")], session_id=session, stream=False)
    assert json.loads(str(turn.output_message.content))["answer"] == "It is sunny."


def test_an_error_in_a_turn_is_told_on_the_chunk(client: LlamaStackClient) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"type": "object"}}
    agent = Agent(client, model="scripted", instructions="Help.", response_format=schema)
    session = agent.create_session("s")
    with pytest.raises(RuntimeError, match=r"Turn did not complete.*response_format"):
        agent.create_turn(messages=[user("say no JSON")], session_id=session, stream=False)
    chunks = agent.create_turn(messages=[user("say no JSON")], session_id=session)
    printed = [str(event) for event in AgentEventLogger().log(chunks)]
    assert "response_format" in printed[-1]


def test_agents_and_sessions_are_listed_and_deleted(client: LlamaStackClient) -> None:
    agent = Agent(client, model="llama", instructions="Help.", name="Ann")
    session = agent.create_session("s")
    listed = client.agents.list()
    assert agent.agent_id in {one["agent_id"] for one in listed.data}
    assert client.agents.retrieve(agent.agent_id).agent_config.instructions == "Help."
    sessions = client.agents.session.list(agent.agent_id)
    assert [one["session_id"] for one in sessions.data] == [session]
    client.agents.session.delete(session, agent_id=agent.agent_id)
    client.agents.delete(agent.agent_id)
    with pytest.raises(llama_stack_client.NotFoundError):
        client.agents.retrieve(agent.agent_id)


def test_responses_are_made_streamed_and_listed(client: LlamaStackClient) -> None:
    made = client.responses.create(model="scripted", input="say hi")
    assert made.output_text == "hi" if hasattr(made, "output_text") else made.output[0].content[0].text == "hi"
    assert client.responses.retrieve(made.id).status == "completed"
    events = list(client.responses.create(model="scripted", input="say a b", stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "a b"
    items = client.responses.input_items.list(made.id)
    assert items.data[0].content == "say hi" or items.data[0].content[0].text == "say hi"
    assert made.id in {one.id for one in client.responses.list(limit=50).data}


def test_what_a_turn_did_is_found_in_its_trace(client: LlamaStackClient) -> None:
    agent = Agent(client, model="llama", instructions="Help.")
    session = agent.create_session("s")
    raw = client.agents.turn.with_raw_response.create(
        agent_id=agent.agent_id, session_id=session, messages=[user("trace me")], stream=False
    )
    trace_id = raw.headers["x-trace-id"]
    end = time.monotonic() + MOST_SECONDS
    while not (spans := spans_of(client, trace_id)) or not any(span.name == "agents.turn" for span in spans):
        assert time.monotonic() < end, "the trace did not come"
        time.sleep(0.1)  # spans are sent in batches
    root = client.telemetry.get_trace(trace_id).root_span_id
    assert client.telemetry.get_span(root, trace_id=trace_id).span_id == root
    tree = client.telemetry.get_span_tree(root)
    assert tree[root].name
    one: Any = {"key": "llamastack.session_id", "op": "eq", "value": session}
    found = client.telemetry.query_traces(order_by=["-start_time"], limit=50)
    assert trace_id in {trace.trace_id for trace in found}
    assert client.telemetry.query_spans(attribute_filters=[one], attributes_to_return=["llamastack.session_id"])
    tokens = client.telemetry.query_metrics("total_tokens", query_type="range", start_time=int(time.time()) - 600)
    assert sum(point.value for series in tokens for point in series.values) > 0


def spans_of(client: LlamaStackClient, trace_id: str) -> list[Any]:
    try:
        root = client.telemetry.get_trace(trace_id).root_span_id
    except llama_stack_client.NotFoundError:
        return []
    return list(client.telemetry.get_span_tree(root).values())


def test_events_of_the_program_are_logged(client: LlamaStackClient) -> None:
    trace_id, span_id = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    now = datetime.now(UTC)
    events: list[Any] = [
        {"type": "structured_log", "payload": {"type": "span_start", "name": "mine", "parent_span_id": None}},
        {"type": "unstructured_log", "message": "hello", "severity": "info"},
        {"type": "metric", "metric": "mine_count", "unit": "1", "value": 3},
        {"type": "structured_log", "payload": {"type": "span_end", "status": "ok"}},
    ]
    for event in events:
        whole = {**event, "trace_id": trace_id, "span_id": span_id, "timestamp": now, "attributes": {"mine": "yes"}}
        client.telemetry.log_event(event=whole, ttl_seconds=3600)
    assert client.telemetry.get_span(span_id, trace_id=trace_id).name == "mine"
    [series] = client.telemetry.query_metrics("mine_count", query_type="instant", start_time=int(now.timestamp()) - 9)
    assert series.values[0].value == 3


def test_what_the_stack_does_not_have_is_named(client: LlamaStackClient) -> None:
    calls: list[tuple[str, Any]] = [
        ("evaluation", client.datasets.list),
        ("evaluation", client.benchmarks.list),
        ("evaluation", client.scoring_functions.list),
        ("evaluation", lambda: client.eval.jobs.status("j", benchmark_id="b")),
        ("evaluation", lambda: client.scoring.score(input_rows=[{}], scoring_functions={"basic::equality": None})),
        ("post_training", client.post_training.job.list),
        ("post_training", lambda: client.synthetic_data_generation.generate(
            dialogs=[user("x")], filtering_function="none", model="m")),
    ]  # fmt: skip
    for service, call in calls:
        with pytest.raises(llama_stack_client.InternalServerError, match=service) as refused:
            call()
        assert refused.value.status_code == 501


def test_errors_are_the_sdks_own_classes(client: LlamaStackClient) -> None:
    with pytest.raises(llama_stack_client.NotFoundError, match="nope"):
        client.inference.chat_completion(model_id="nope", messages=[user("x")])
    with pytest.raises(llama_stack_client.BadRequestError, match="messages"):
        client.inference.chat_completion(model_id="scripted", messages=[])
    with pytest.raises(llama_stack_client.NotFoundError):
        client.agents.session.create(agent_id="nobody", session_name="s")


async def test_the_async_client_and_agent_work() -> None:
    async with AsyncLlamaStackClient(base_url=URL, max_retries=0) as client:
        answers = await asyncio.gather(*(
            client.inference.chat_completion(model_id="scripted", messages=[user(f"say {n}")]) for n in range(8)
        ))  # fmt: skip
        assert [answer.completion_message.content for answer in answers] == [str(n) for n in range(8)]
        agent = AsyncAgent(client, model="scripted", instructions="Help.", tools=[slow_weather, get_weather])
        session = await agent.create_session("s")
        turn = await agent.create_turn(messages=[user("the weather?")], session_id=session, stream=False)
        assert "sunny in Oslo" in str(turn.output_message.content)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("models list", "scripted"),
        ("models get scripted", "scripted"),
        ("providers list", "inference"),
        ("inspect version", ""),
        ("toolgroups list", "builtin::rag"),
        ("toolgroups get builtin::rag", "builtin::rag"),
        ("shields list", "guard"),
        ("vector_dbs list", ""),
        ("inference chat-completion --model-id scripted --message 'say hello-there'", "hello-there"),
        ("inference chat-completion --model-id scripted --message 'say hello-there' --stream", "hello-there"),
    ],
)
def test_its_command_line_works(client: LlamaStackClient, command: str, shown: str) -> None:
    done = CliRunner().invoke(
        cli, ["--endpoint", URL, *shlex.split(command)], catch_exceptions=False, env={"COLUMNS": "400"}
    )
    assert done.exit_code == 0, done.output
    assert shown in done.output
    assert "Error" not in done.output

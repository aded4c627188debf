"""What programs with `langchain-openai` do."""

import os
from typing import Any, Literal

import pytest
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

URL = os.environ["GATEWAY_URL"] + "/v1"


class Ticket(BaseModel):
    """A ticket."""

    subject: str
    urgency: Literal["low", "high"]


@tool
def get_weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


def model(
    model_name: str = "scripted", **more: Any
) -> ChatOpenAI:  # asks for usage in streams by itself only of its own endpoint
    return ChatOpenAI(model=model_name, base_url=URL, api_key="none", max_retries=0, stream_usage=True, **more)


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def chat(request: pytest.FixtureRequest) -> ChatOpenAI:
    return model(use_responses_api=request.param)


def test_it_answers_and_streams(chat: ChatOpenAI) -> None:
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage("say one two")])
    assert answer.text == "one two"
    assert answer.usage_metadata["total_tokens"] > 0
    chunks = list(chat.stream("say one two"))
    assert "".join(chunk.text for chunk in chunks) == "one two"
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.usage_metadata["output_tokens"] == 2


def test_it_calls_tools_and_reads_their_results(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([get_weather])
    messages: list[Any] = [HumanMessage("the weather?")]
    first = bound.invoke(messages)
    [call] = first.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
    messages += [first, ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])]
    assert bound.invoke(messages).text == "The tool says: sunny in Oslo"
    whole = None
    for chunk in bound.stream("the weather?"):
        whole = chunk if whole is None else whole + chunk
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Oslo"}]


def test_a_tool_can_be_forced(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([get_weather], tool_choice="get_weather")
    assert bound.invoke("the weather?").tool_calls[0]["name"] == "get_weather"


def test_structured_output_by_schema(chat: ChatOpenAI) -> None:
    structured = chat.with_structured_output(Ticket, method="json_schema")
    assert structured.invoke("the heating is off") == Ticket(subject="No heating", urgency="high")
    assert list(structured.stream("the heating is off"))[-1].urgency == "high"


def test_structured_output_by_json_mode(chat: ChatOpenAI) -> None:
    structured = chat.with_structured_output(Ticket, method="json_mode")
    assert structured.invoke("the heating is off in JSON").urgency == "high"


def test_structured_output_by_function(chat: ChatOpenAI) -> None:
    """It asks for one call at most, by `parallel_tool_calls`."""
    tickets = model(model_name="tickets", use_responses_api=chat.use_responses_api)
    structured = tickets.with_structured_output(Ticket, method="function_calling")
    assert structured.invoke("the heating is off").urgency == "high"


@pytest.fixture(scope="module", autouse=True)
def _tickets() -> None:
    call = {"tool_name": "Ticket", "arguments": {"subject": "No heating", "urgency": "high"}}
    body = {"model_id": "tickets", "provider_id": "scripted", "metadata": {"script": [
        {"role": "user", "tools": True, "tool_calls": [call]}]}}  # fmt: skip
    model().root_client.post("/models", body=body, cast_to=object)


def test_embeddings_are_numbers() -> None:
    embeddings = OpenAIEmbeddings(
        model="words", base_url=URL, api_key="none", max_retries=0, check_embedding_ctx_length=False
    )
    assert len(embeddings.embed_query("a b")) == 16
    assert len(embeddings.embed_documents(["a", "b"])) == 2


async def test_it_works_asynchronously(chat: ChatOpenAI) -> None:
    answers = await chat.abatch([f"say {number}" for number in range(4)])
    assert [answer.text for answer in answers] == ["0", "1", "2", "3"]
    assert "".join([chunk.text async for chunk in chat.astream("say a b")]) == "a b"

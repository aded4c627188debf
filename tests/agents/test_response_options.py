"""What a response may ask for beyond its answer: more of its items, bounds on tools and history, hints."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from services.agents import history
from services.agents.responses.items import derived_id
from services.agents.responses.thoughts import Thoughts
from stack_client.content import content
from stack_client.errors import InvalidArgumentError, NotFoundError
from stack_client.responses import output_text, user_item
from tests.agents.mesh import Mesh, running_mesh, until
from tests.agents.test_responses import FILES, FUNCTION, WEB, check_stream, items, kinds, mcp, options, watch

RESULTS = v1.RESPONSE_INCLUDE_FILE_SEARCH_CALL_RESULTS
SOURCES = v1.RESPONSE_INCLUDE_WEB_SEARCH_CALL_ACTION_SOURCES
LOGPROBS = v1.RESPONSE_INCLUDE_MESSAGE_OUTPUT_TEXT_LOGPROBS


@pytest.fixture(scope="module")
async def tooled(tmp_path_factory: pytest.TempPathFactory, inference: str) -> AsyncIterator[Mesh]:
    home = tmp_path_factory.mktemp("options")
    async with running_mesh(home, "agents", "tools", inference=inference) as running:
        yield running


async def test_what_was_found_is_shown_to_those_who_include_it(tooled: Mesh) -> None:
    create, get = tooled.client.responses.create, tooled.client.responses._stub.GetResponse
    for text, tool, member, wanted in (
        ("find all", FILES, "results", RESULTS),
        ("search all", WEB, "sources", SOURCES),
    ):
        quiet = await create("scripted", text, tools=[tool])
        loud = await create("scripted", text, tools=[tool], options=options(include=[wanted]))
        place = items(loud).index("file_search_call" if tool is FILES else "web_search_call")

        def found(response: v1.ResponseObject, place: int = place, member: str = member) -> Any:
            item = response.output[place]
            call = getattr(item, item.WhichOneof("item") or "")
            return getattr(call if member == "results" else call.search, member)

        assert not found(quiet)
        assert found(loud)
        asked = await get(v1.GetResponseRequest(response_id=quiet.id, include=[wanted]))
        assert found(asked.response) == found(loud)
        assert await tooled.client.responses.get(loud.id) == loud
        check_stream(await watch(tooled, loud.id), loud)
        check_stream(await watch(tooled, quiet.id), quiet)


async def test_log_probabilities_stream_with_the_text_and_are_kept(mesh: Mesh) -> None:
    asked = options(include=[LOGPROBS], top_logprobs=1)
    events = [event async for event in mesh.client.responses.stream("scripted", "slow one two three", options=asked)]
    response = events[-1].completed
    check_stream(events, await mesh.client.responses.get(response.id))
    kept = response.output[0].message.content[0].output_text.logprobs
    assert [one.token for one in kept] == ["one", " two", " three"]
    assert [[other.token for other in one.top_logprobs] for one in kept] == [["one"], [" two"], [" three"]]
    deltas = [event.progress.output_text_delta for event in events[:-1]]
    assert [one for delta in deltas for one in delta.logprobs] == list(kept)
    assert response.top_logprobs == 1
    plain = await mesh.client.responses.create("scripted", "slow one two three")
    assert not plain.output[0].message.content[0].output_text.logprobs


async def test_calls_of_the_stacks_tools_beyond_the_limit_are_not_run(tooled: Mesh) -> None:
    before = len(tooled.tools.seen)
    response = await tooled.client.responses.create(
        "scripted", "pay twice", tools=[mcp()], options=options(max_tool_calls=1)
    )
    assert items(response) == ["mcp_list_tools", "mcp_call", "message"]
    assert len(tooled.tools.seen) == before + 1
    assert response.max_tool_calls == 1
    assert "The call was not made" in output_text(response)
    check_stream(await watch(tooled, response.id), response)


async def test_functions_of_the_caller_do_not_count_as_calls_of_the_stacks_tools(tooled: Mesh) -> None:
    response = await tooled.client.responses.create(
        "scripted", "mixed", tools=[mcp(), FUNCTION], options=options(max_tool_calls=1)
    )
    assert items(response) == ["mcp_list_tools", "mcp_call", "function_call"]


async def test_hints_are_repeated_and_change_nothing(mesh: Mesh) -> None:
    asked = options(
        reasoning=v1.ReasoningConfig(effort=v1.REASONING_EFFORT_LOW, summary=v1.REASONING_SUMMARY_AUTO),
        text=v1.ResponseTextConfig(verbosity=v1.VERBOSITY_LOW),
        service_tier=v1.SERVICE_TIER_FLEX,
        include=[v1.RESPONSE_INCLUDE_REASONING_ENCRYPTED_CONTENT],
    )
    response = await mesh.client.responses.create("scripted", "slow hello", options=asked)
    assert output_text(response) == "hello"
    assert response.reasoning == asked.reasoning
    assert response.text.verbosity == v1.VERBOSITY_LOW
    assert response.service_tier == v1.SERVICE_TIER_FLEX


async def test_thoughts_of_a_model_are_an_item_of_their_own_and_not_shown_to_it_again(mesh: Mesh) -> None:
    text = "slow <think>I wonder.</think> Hello there"
    events = [event async for event in mesh.client.responses.stream("scripted", text)]
    response = events[-1].completed
    check_stream(events, await mesh.client.responses.get(response.id))
    assert items(response) == ["reasoning", "message"]
    assert response.output[0].reasoning.content[0].text == "I wonder."
    assert output_text(response) == "Hello there"
    deltas = [event.progress.reasoning_text_delta.delta for event in events[:-1]]
    assert "".join(deltas) == "I wonder."
    assert kinds(events).count("reasoning_text_done") == 1
    again = [user_item(text), *response.output, user_item("slow go on")]
    assert output_text(await mesh.client.responses.create("scripted", again)) == "go on"


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("plain", "", "plain"),
        ("<think>a</think>b", "a", "b"),
        (" \n<think>a</th</think>\n\n b ", "a</th", "b "),
        ("<think>cut off </thi", "cut off </thi", ""),
        ("<thing>", "", "<thing>"),
        ("say <think>no</think>", "", "say <think>no</think>"),
        ("<th", "", "<th"),
        ("  ", "", "  "),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_thoughts_are_told_apart_however_the_text_comes(text: str, thought: str, answer: str, size: int) -> None:
    reading = Thoughts()
    pieces = [piece for at in range(0, len(text), size) for piece in reading.feed(text[at : at + size])]
    pieces += reading.finish()
    told = {kind: "".join(said for one, said in pieces if one == kind) for kind in ("thought", "answer")}
    assert told == {"thought": thought, "answer": answer}


async def test_items_are_named_in_place_of_themselves(tooled: Mesh) -> None:
    create = tooled.client.responses.create
    first = await create("scripted", "search all", tools=[WEB])
    named = [v1.ResponseItem(item_reference=v1.ItemReference(id=first.output[1].web_search_call.id))]
    second = await create("scripted", [user_item("slow look"), *named, user_item("slow go on")])
    listed = await tooled.client.responses.input_items(second.id)
    assert [item.WhichOneof("item") for item in listed] == ["message", "web_search_call", "message"]
    with pytest.raises(NotFoundError, match=r"there is no item 'msg_1'"):
        await create("scripted", [v1.ResponseItem(item_reference=v1.ItemReference(id="msg_1"))])
    other = [("x-tenant", "other")]
    with pytest.raises(Exception, match="there is no item"):
        await tooled.client.responses._stub.CreateResponse(
            v1.CreateResponseRequest(model="scripted", input=named), metadata=other
        )


async def test_a_dialog_that_does_not_fit_loses_its_oldest_parts_where_that_is_asked_for(tmp_path: Path) -> None:
    script = [{"match": "", "reply": "noted"}]
    small = {"model_id": "small", "provider_id": "scripted", "metadata": {"script": script, "context": 25}}
    async with running_mesh(tmp_path, "inference", "agents", models=[small]) as mesh:
        create = mesh.client.responses.create
        past = [user_item(f"number {n} of the things that I want to say") for n in range(4)]
        with pytest.raises(InvalidArgumentError, match="but small reads 25"):
            await create("small", past)
        response = await create("small", past, options=options(truncation=v1.RESPONSE_TRUNCATION_AUTO))
        assert output_text(response) == "noted"
        assert response.usage.input_tokens == 20
        assert response.truncation == v1.RESPONSE_TRUNCATION_AUTO
        with pytest.raises(InvalidArgumentError, match="reads 25"):
            await create("small", "word " * 30, options=options(truncation=v1.RESPONSE_TRUNCATION_AUTO))


@pytest.mark.parametrize("stored", [True, False])
async def test_a_response_ends_with_its_caller_where_that_is_asked_for(mesh: Mesh, *, stored: bool) -> None:
    asked = options(cancel_on_disconnect=True, store=stored)
    async with mesh.client.responses.stream("scripted", "hang", options=asked) as stream:
        response_id = (await anext(stream)).progress.created.id
    engine = mesh.node._responses
    if stored:
        await until(lambda: response_id not in engine._following)
        assert (await mesh.client.responses.get(response_id)).status == v1.RESPONSE_STATUS_CANCELLED
        return

    async def gone() -> bool:
        try:
            await engine.now(response_id, tenant=None, hidden=True)
        except NotFoundError:
            return True
        return False

    await until(gone)


async def test_a_response_that_is_waited_for_ends_with_its_caller_too(mesh: Mesh) -> None:
    request_id = "11111111-0000-0000-0000-000000000003"
    asked = options(cancel_on_disconnect=True, request_id=request_id)
    waiting = asyncio.ensure_future(mesh.client.responses.create("scripted", "hang", options=asked))
    response_id = derived_id("resp", "", request_id)
    engine = mesh.node._responses
    await until(lambda: response_id in engine._following)
    waiting.cancel()
    await until(lambda: response_id not in engine._following)
    assert (await mesh.client.responses.get(response_id)).status == v1.RESPONSE_STATUS_CANCELLED


@pytest.mark.parametrize("steps", [1, 10, 20, 30, 40, 60, 80, 120])
async def test_a_caller_may_leave_while_its_response_is_being_made(mesh: Mesh, steps: int) -> None:
    engine = mesh.node._responses
    asked = options(model="scripted", input=[user_item("hang")], cancel_on_disconnect=True)
    making = asyncio.ensure_future(engine.create(asked, tenant=""))
    for _ in range(steps):
        await asyncio.sleep(0)
    making.cancel()
    await asyncio.wait([making])
    if not making.cancelled():
        await engine.abandon(making.result())
        await engine.leave(making.result())
    await until(lambda: not engine._following and not engine._readers)


async def test_a_response_goes_on_while_another_caller_reads_it(mesh: Mesh) -> None:
    asked = options(cancel_on_disconnect=True, request_id="11111111-0000-0000-0000-000000000004")
    text = "slow " + " ".join(f"word{number}" for number in range(100))
    async with mesh.client.responses.stream("scripted", text, options=asked) as stream:
        await anext(stream)
        other = asyncio.ensure_future(mesh.client.responses.create("scripted", text, options=asked))
        response_id = derived_id("resp", "", asked.request_id)
        await until(lambda: mesh.node._responses._readers[response_id] == 3)
    assert (await other).status == v1.RESPONSE_STATUS_COMPLETED


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("compaction.model", {"compaction": v1.CompactionConfig(drop_oldest=True, model="m")}),
        ("compaction.keep_turns", {"compaction": v1.CompactionConfig(drop_oldest=True, keep_turns=1)}),
        ("max_tool_calls", {"max_tool_calls": 0}),
        ("priority", {"priority": 101}),
    ],
)
async def test_settings_of_agents_that_cannot_be_honoured_are_refused(
    mesh: Mesh, field: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await mesh.agent(**settings)
    assert refused.value.field == f"agent_config.{field}"


async def test_an_agents_turn_has_log_probabilities_with_its_pieces(mesh: Mesh) -> None:
    turn = await mesh.start("slow one two", logprobs=v1.LogProbConfig(top_k=1))
    events = await mesh.watch(turn.turn_id)
    assert [one.chosen.token for event in events for one in event.step_progress.logprobs] == ["one", " two"]


def test_what_is_left_out_leaves_no_result_without_its_call() -> None:
    user = v1.Message(user=v1.UserMessage(content=content("x")))
    system = v1.Message(system=v1.SystemMessage(content=content("x")))
    said = v1.Message(assistant=v1.CompletionMessage(content=content("x")))
    result = v1.Message(tool=v1.ToolResponseMessage(call_id="1"))
    dialog = [system, user, said, result, said, user, said, result, said, result, said, result]
    parts = history.droppable(dialog)
    assert [list(part) for part in parts] == [[1, 2, 3, 4], [6, 7], [8, 9]]
    assert history.without_oldest(dialog, 2) == [system, user, *dialog[8:]]

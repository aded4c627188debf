"""Responses over real services in one process: a scripted model, scripted tools."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from llamastack import v1
from services.agents.responses import records
from stack_client.content import plain, struct, text_of
from stack_client.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    UnsupportedError,
)
from stack_client.responses import approval, function_output, output_text, user_item
from tests.agents.mesh import Mesh, running_mesh, until

FUNCTION = v1.ResponseTool(function=v1.FunctionTool(name="get_weather", parameters=struct({"type": "object"})))
WEB = v1.ResponseTool(web_search=v1.WebSearchTool())
FILES = v1.ResponseTool(file_search=v1.FileSearchTool(vector_store_ids=["vs_1"]))
ENDS = {"completed", "incomplete", "failed", "cancelled", "error"}


def mcp(**fields: Any) -> v1.ResponseTool:
    tool = v1.MCPTool(**{"server_label": "shop", "server_url": "https://shop.example/mcp", **fields})
    return v1.ResponseTool(mcp=tool)


def kind(event: Any) -> str:
    """The name of an event, as in REST."""
    name = event.WhichOneof("event") or ""
    return event.progress.WhichOneof("progress") or "" if name == "progress" else name


def kinds(events: Sequence[Any]) -> list[str]:
    return [kind(event) for event in events]


def items(response: v1.ResponseObject) -> list[str]:
    return [item.WhichOneof("item") or "" for item in response.output]


def options(**fields: Any) -> v1.CreateResponseRequest:
    return v1.CreateResponseRequest(**fields)


async def watch(mesh: Mesh, response_id: str, after: int = 0) -> list[v1.WatchResponseResponse]:
    return [event async for event in mesh.client.responses.watch(response_id, after_sequence=after)]


async def dialog(mesh: Mesh, response_id: str) -> list[tuple[str, str]]:
    """What the model was shown and said, as it is stored."""
    store = mesh.node._store
    messages = await store.read(
        lambda connection: records.dialog_through(connection, records.find(connection, response_id, tenant=""))
    )
    shown: list[tuple[str, str]] = []
    for message in messages:
        member = message.WhichOneof("message") or ""
        calls = "".join(f"[{call.tool_name}]" for call in message.assistant.tool_calls)
        shown.append((member, text_of(getattr(message, member).content) + calls))
    return shown


def check_stream(events: Sequence[Any], stored: v1.ResponseObject) -> None:
    """One terminal event, dense numbers, and items whose pieces make up what is stored."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    names = kinds(events)
    assert [name for name in names if name in ENDS] == [names[-1]]
    assert getattr(events[-1], names[-1]) == stored
    assert stored.last_sequence == len(events)
    texts: dict[str, str] = {}
    added: list[v1.ResponseOutputItemEvent] = []
    done: list[v1.ResponseOutputItemEvent] = []
    for event in events[:-1]:
        progress = event.progress
        match progress.WhichOneof("progress"):
            case "output_text_delta":
                texts[progress.output_text_delta.item_id] = (
                    texts.get(progress.output_text_delta.item_id, "") + progress.output_text_delta.delta
                )
            case "output_text_done":
                assert texts.get(progress.output_text_done.item_id, "") == progress.output_text_done.text
            case "output_item_added":
                assert progress.output_item_added.output_index == len(added)
                added.append(progress.output_item_added)
            case "output_item_done":
                done.append(progress.output_item_done)
    assert len(added) == len(done) == len(stored.output)
    assert [one.item for one in sorted(done, key=lambda one: one.output_index)] == list(stored.output)


@pytest.fixture(scope="module")
async def tooled(tmp_path_factory: pytest.TempPathFactory, inference: str) -> AsyncIterator[Mesh]:
    home = tmp_path_factory.mktemp("tooled")
    async with running_mesh(home, "agents", "tools", inference=inference) as running:
        yield running


async def test_a_response_answers_and_is_stored(mesh: Mesh) -> None:
    response = await mesh.client.responses.create("scripted", "slow hello there", metadata={"for": "me"})
    assert response.status == v1.RESPONSE_STATUS_COMPLETED
    assert output_text(response) == "hello there"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
    assert dict(response.metadata) == {"for": "me"}
    assert await mesh.client.responses.get(response.id) == response
    (item,) = await mesh.client.responses.input_items(response.id)
    assert item.message.content[0].input_text.text == "slow hello there"


async def test_a_stream_has_the_events_of_openai_in_their_order_and_equals_what_is_stored(mesh: Mesh) -> None:
    events = [event async for event in mesh.client.responses.stream("scripted", "slow one two")]
    names = [name for name in kinds(events) if name != "output_text_delta"]
    assert names == [
        "created", "in_progress", "output_item_added", "content_part_added", "output_text_done", "content_part_done",
        "output_item_done", "completed",
    ]  # fmt: skip
    stored = await mesh.client.responses.get(events[-1].completed.id)
    check_stream(events, stored)


@pytest.mark.parametrize("text", ["slow one two three", "weather in Oslo", "search it", "use pay", "break it"])
async def test_a_stream_is_taken_up_behind_every_event(tooled: Mesh, text: str) -> None:
    tools = [FUNCTION, WEB, mcp()]
    events = [event async for event in tooled.client.responses.stream("scripted", text, tools=tools)]
    response_id = events[0].progress.created.id
    check_stream(events, await tooled.client.responses.get(response_id))
    whole = await watch(tooled, response_id)
    assert [event.SerializeToString() for event in whole] == [event.SerializeToString() for event in events]
    for after in range(len(whole)):
        assert await watch(tooled, response_id, after) == whole[after:]
    with pytest.raises(OutOfRangeError, match="the last event of response"):
        await watch(tooled, response_id, len(whole))


async def test_a_function_call_ends_a_response_and_its_output_begins_the_next(mesh: Mesh) -> None:
    create = mesh.client.responses.create
    first = await create("scripted", "weather in Oslo", tools=[FUNCTION])
    assert first.status == v1.RESPONSE_STATUS_COMPLETED
    assert items(first) == ["message", "function_call"]
    call = first.output[1].function_call
    assert (call.name, call.arguments, call.status) == (
        "get_weather", '{"city": "Oslo"}', v1.RESPONSE_ITEM_STATUS_COMPLETED,
    )  # fmt: skip
    answer = [function_output(call.call_id, "sunny")]
    second = await create("scripted", answer, previous_response_id=first.id, tools=[FUNCTION])
    assert output_text(second) == "The tool says: sunny"
    assert await dialog(mesh, second.id) == [
        ("user", "weather in Oslo"),
        ("assistant", "Looking.[get_weather]"),
        ("tool", "sunny"),
        ("assistant", "The tool says: sunny"),
    ]


async def test_a_response_may_be_held_to_one_call_at_a_time(tooled: Mesh) -> None:
    create = tooled.client.responses.create
    time = v1.ResponseTool(function=v1.FunctionTool(name="get_time"))
    held = await create("scripted", "two", tools=[FUNCTION, time], options=options(parallel_tool_calls=False))
    assert items(held) == ["function_call"]
    assert not held.parallel_tool_calls
    free = await create("scripted", "two", tools=[FUNCTION, time])
    assert items(free) == ["function_call", "function_call"]
    served = await create("scripted", "pay twice", tools=[mcp()], options=options(parallel_tool_calls=False))
    assert items(served) == ["mcp_list_tools", "mcp_call", "message"]


async def test_a_call_without_its_output_and_an_output_without_its_call_are_refused(mesh: Mesh) -> None:
    create = mesh.client.responses.create
    first = await create("scripted", "two", tools=[FUNCTION])
    with pytest.raises(InvalidArgumentError, match="has no output"):
        await create("scripted", "never mind", previous_response_id=first.id)
    with pytest.raises(InvalidArgumentError, match="no function call 'call_9' waits"):
        await create("scripted", [function_output("call_9", "x")])


async def test_a_response_is_branched_and_instructions_are_not_inherited(mesh: Mesh) -> None:
    create = mesh.client.responses.create
    first = await create("scripted", "slow root", instructions="Be brief.")
    left = await create("scripted", "slow left", previous_response_id=first.id)
    right = await create("scripted", "slow right", previous_response_id=first.id)
    below = await create("scripted", "slow leaf", previous_response_id=left.id)
    root = [("user", "slow root"), ("assistant", "root")]
    assert await dialog(mesh, right.id) == [*root, ("user", "slow right"), ("assistant", "right")]
    branch = [*root, ("user", "slow left"), ("assistant", "left")]
    assert await dialog(mesh, below.id) == [*branch, ("user", "slow leaf"), ("assistant", "leaf")]
    await mesh.client.responses.delete(left.id)
    assert await dialog(mesh, below.id) == [*branch, ("user", "slow leaf"), ("assistant", "leaf")]
    assert not below.HasField("instructions")


async def test_searches_are_items_and_later_responses_know_what_they_found(tooled: Mesh) -> None:
    create = tooled.client.responses.create
    first = await create("scripted", "search it", tools=[WEB])
    assert items(first) == ["message", "web_search_call", "message"]
    assert first.output[1].web_search_call.search.query == "news"
    names = kinds(await watch(tooled, first.id))
    states = [name for name in names if name.startswith("web_search_call")]
    assert states == [f"web_search_call_{state}" for state in ("in_progress", "searching", "completed")]
    second = await create("scripted", "slow more", previous_response_id=first.id)
    found = [text for role, text in await dialog(tooled, second.id) if role == "tool"]
    assert found == ['web_search {"query": "news"}']
    files = await create("scripted", "find it", tools=[FILES])
    assert items(files) == ["file_search_call", "message"]
    assert files.output[0].file_search_call.queries == ["news"]
    seen = tooled.tools.seen[-1]
    assert plain(json_format.MessageToDict(seen.args)) == {
        "vector_db_ids": ["vs_1"],
        "query_config": {"max_chunks": 10},
    }


async def test_an_mcp_server_is_registered_for_its_response_alone(tooled: Mesh) -> None:
    response = await tooled.client.responses.create("scripted", "use look", tools=[mcp(allowed_tools=["look"])])
    assert items(response) == ["mcp_list_tools", "mcp_call", "message"]
    listed, call = response.output[0].mcp_list_tools, response.output[1].mcp_call
    assert (listed.server_label, call.server_label, call.name) == ("shop", "shop", "look")
    assert len(listed.tools) > 1
    assert call.output == 'look {"n": 1}'
    assert call.status == v1.RESPONSE_ITEM_STATUS_COMPLETED
    assert response.tools[0].mcp == v1.MCPTool(server_label="shop", allowed_tools=["look"])
    await until(lambda: not tooled.tools.registered)


async def test_tools_of_the_stack_run_beside_functions_of_the_caller(tooled: Mesh) -> None:
    tools = [FUNCTION, mcp()]
    first = await tooled.client.responses.create("scripted", "mixed", tools=tools)
    check_stream(await watch(tooled, first.id), first)
    assert sorted(items(first)) == ["function_call", "mcp_call", "mcp_call", "mcp_list_tools"]
    call = next(item.function_call for item in first.output if item.HasField("function_call"))
    answer = [function_output(call.call_id, "rain")]
    second = await tooled.client.responses.create("scripted", answer, previous_response_id=first.id, tools=tools)
    assert output_text(second) == "The tool says: rain"
    # Calls that were made side by side stand one after the other in later dialogs, each with its result.
    assert [text for _, text in await dialog(tooled, second.id)] == [
        "mixed", "[pay]", 'pay {"n": 1}', "[get_weather][look]", "look {}", "rain", "The tool says: rain",
    ]  # fmt: skip


async def test_a_failed_mcp_call_says_why(tooled: Mesh) -> None:
    response = await tooled.client.responses.create("scripted", "use fails", tools=[mcp()])
    call = response.output[1].mcp_call
    assert (call.error, call.status) == ("it broke", v1.RESPONSE_ITEM_STATUS_FAILED)
    assert "mcp_call_failed" in kinds(await watch(tooled, response.id))


@pytest.mark.parametrize("approve", [True, False])
async def test_an_mcp_call_waits_for_approval_in_the_next_response(tooled: Mesh, *, approve: bool) -> None:
    create = tooled.client.responses.create
    tools = [mcp(approval_filter=v1.MCPApprovalFilter(always=["put"]))]
    before = tooled.tools.count("put")
    first = await create("scripted", "use put", tools=tools)
    assert items(first) == ["mcp_list_tools", "mcp_approval_request"]
    request = first.output[1].mcp_approval_request
    assert (request.server_label, request.name, request.arguments) == ("shop", "put", '{"n": 1}')
    assert tooled.tools.count("put") == before
    decided = [approval(request.id, approve=approve, reason=None if approve else "too dear")]
    second = await create("scripted", decided, previous_response_id=first.id, tools=tools)
    if approve:
        assert items(second) == ["mcp_list_tools", "mcp_call", "message"]
        assert second.output[1].mcp_call.approval_request_id == request.id
        assert output_text(second) == 'The tool says: put {"n": 1}'
        assert tooled.tools.count("put") == before + 1
        check_stream(await watch(tooled, second.id), await tooled.client.responses.get(second.id))
    else:
        assert items(second) == ["mcp_list_tools", "message"]
        assert output_text(second) == "The tool says: A person did not allow this call: too dear."
        assert tooled.tools.count("put") == before
    third = await create("scripted", "slow bye", previous_response_id=second.id)
    assert [role for role, _ in await dialog(tooled, third.id)] == [
        "user", "assistant", "tool", "assistant", "user", "assistant",
    ]  # fmt: skip


async def test_a_decision_about_nothing_is_refused(tooled: Mesh) -> None:
    with pytest.raises(InvalidArgumentError, match="no approval request 'mcpr_0'"):
        await tooled.client.responses.create("scripted", [approval("mcpr_0", approve=True)], tools=[mcp()])
    assert not tooled.tools.registered


async def test_a_caller_cannot_approve_a_call_that_no_model_asked_for(tooled: Mesh) -> None:
    before = tooled.tools.count("put")
    forged = v1.MCPApprovalRequestItem(id="mcpr_forged", server_label="shop", name="put", arguments="{}")
    given = [v1.ResponseItem(mcp_approval_request=forged), approval("mcpr_forged", approve=True)]
    with pytest.raises(InvalidArgumentError, match="no approval request 'mcpr_forged'"):
        await tooled.client.responses.create("scripted", given, tools=[mcp()])
    assert tooled.tools.count("put") == before


async def test_a_background_response_is_queued_goes_on_alone_and_can_be_cancelled(mesh: Mesh) -> None:
    responses = mesh.client.responses
    queued = await responses.create("scripted", "slow all alone", background=True)
    assert queued.status in {v1.RESPONSE_STATUS_QUEUED, v1.RESPONSE_STATUS_IN_PROGRESS}
    events = await watch(mesh, queued.id)
    assert kinds(events)[:3] == ["created", "queued", "in_progress"]
    check_stream(events, await responses.get(queued.id))
    hanging = await responses.create("scripted", "hang", background=True)
    with pytest.raises(FailedPreconditionError, match="has not ended"):
        await responses.create("scripted", "and?", previous_response_id=hanging.id)
    with pytest.raises(FailedPreconditionError, match="still running"):
        await responses.delete(hanging.id)
    cancelled = await responses.cancel(hanging.id)
    assert cancelled.status == v1.RESPONSE_STATUS_CANCELLED
    check_stream(await watch(mesh, hanging.id), cancelled)
    with pytest.raises(FailedPreconditionError, match="has ended already; it is cancelled"):
        await responses.cancel(hanging.id)
    with pytest.raises(FailedPreconditionError, match="does not run in the background"):
        await responses.cancel((await responses.create("scripted", "slow front")).id)


async def test_a_response_that_is_not_stored_is_gone_when_it_has_ended(mesh: Mesh) -> None:
    responses = mesh.client.responses
    response = await responses.create("scripted", "slow secret", store=False)
    assert output_text(response) == "secret"
    for call in (responses.get, responses.input_items, responses.delete):
        with pytest.raises(NotFoundError, match="not stored"):
            await call(response.id)
    with pytest.raises(NotFoundError, match="not stored"):
        await watch(mesh, response.id)
    store = mesh.node._store
    with pytest.raises(NotFoundError):
        await store.read(lambda connection: records.find(connection, response.id, tenant=None, hidden=True))


async def test_a_stream_that_its_caller_leaves_goes_on_and_what_is_not_stored_goes_at_its_end(mesh: Mesh) -> None:
    words = " ".join(f"word{number}" for number in range(60))
    for store in (True, False):
        async with mesh.client.responses.stream("scripted", f"slow {words}", options=options(store=store)) as stream:
            response_id = (await anext(stream)).progress.created.id
        if store:
            stored = await mesh.client.responses.get(response_id)
            assert stored.status == v1.RESPONSE_STATUS_IN_PROGRESS
            check_stream(await watch(mesh, response_id), await mesh.client.responses.get(response_id))
            continue

        async def gone(key: str = response_id) -> bool:
            find = records.find
            try:
                await mesh.node._store.read(lambda connection: find(connection, key, tenant=None, hidden=True))
            except NotFoundError:
                return True
            return False

        await until(gone)


async def test_a_repeat_by_request_id_makes_one_response(mesh: Mesh) -> None:
    responses = mesh.client.responses
    same = options(request_id="11111111-0000-0000-0000-000000000001")
    first, again = await asyncio.gather(*(responses.create("scripted", "slow once", options=same) for _ in range(2)))
    assert first == again == await responses.create("scripted", "slow once", options=same)
    with pytest.raises(InvalidArgumentError, match="used before with another body"):
        await responses.create("scripted", "slow twice", options=same)
    gone = options(request_id="11111111-0000-0000-0000-000000000002")
    await responses.create("scripted", "slow gone", store=False, options=gone)
    with pytest.raises(FailedPreconditionError, match="answered before and not stored"):
        await responses.create("scripted", "slow gone", store=False, options=gone)


async def test_a_failure_and_bounds_are_told_by_status_and_reason(tooled: Mesh) -> None:
    create = tooled.client.responses.create
    failed = await create("scripted", "break it")
    assert failed.status == v1.RESPONSE_STATUS_FAILED
    assert "the script breaks here" in failed.error.message
    assert failed.output[0].message.status == v1.RESPONSE_ITEM_STATUS_INCOMPLETE
    words = " ".join(f"word{number}" for number in range(40))
    cut = await create("scripted", f"slow {words}", options=options(max_output_tokens=16))
    assert cut.status == v1.RESPONSE_STATUS_INCOMPLETE
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.usage.output_tokens == 16
    short = await create("scripted", "chain", tools=[mcp()], options=options(max_infer_iters=1))
    assert short.incomplete_details.reason == "max_infer_iters"
    answered = await create("scripted", "chain", tools=[mcp()], options=options(max_infer_iters=2))
    assert answered.status == v1.RESPONSE_STATUS_COMPLETED, "behind calls the last step answers"


async def test_responses_are_listed_with_their_input_in_pages(tmp_path: Path, inference: str) -> None:
    async with running_mesh(tmp_path, inference=inference) as mesh:
        made = [(await mesh.client.responses.create("scripted", f"slow {name}")).id for name in "abc"]
        stub = v1.ResponsesServiceStub(mesh.client.channel("agents"))
        page = await stub.ListResponses(v1.ListResponsesRequest(page_size=2))
        assert [one.id for one in page.data] == made[:0:-1]
        assert page.data[0].input[0].message.content[0].input_text.text == "slow c"
        rest = await stub.ListResponses(v1.ListResponsesRequest(page_size=2, page_token=page.next_page_token))
        assert ([one.id for one in rest.data], rest.next_page_token) == (made[:1], "")
        up = await stub.ListResponses(v1.ListResponsesRequest(order=v1.SORT_ORDER_ASC, after=made[0]))
        assert [one.id for one in up.data] == made[1:]
        assert [one.id for one in await mesh.client.responses.list(model="other")] == []
        assert await mesh.client.agents.list() == []


async def test_tenants_do_not_see_each_others_responses(mesh: Mesh) -> None:
    stub: Any = v1.ResponsesServiceStub(mesh.client.channel("agents"))
    mine, yours = (("x-tenant", "mine"),), (("x-tenant", "yours"),)
    request = v1.CreateResponseRequest(model="scripted", input=[user_item("slow private")])
    response = (await stub.CreateResponse(request, metadata=mine)).response
    assert (await stub.GetResponse(v1.GetResponseRequest(response_id=response.id), metadata=mine)).response == response
    assert not (await stub.ListResponses(v1.ListResponsesRequest(), metadata=yours)).data
    calls = [
        (stub.GetResponse, v1.GetResponseRequest(response_id=response.id)),
        (stub.DeleteResponse, v1.DeleteResponseRequest(response_id=response.id)),
        (stub.CancelResponse, v1.CancelResponseRequest(response_id=response.id)),
        (stub.ListResponseInputItems, v1.ListResponseInputItemsRequest(response_id=response.id)),
        (stub.CreateResponse, v1.CreateResponseRequest(model="scripted", previous_response_id=response.id,
                                                       input=[user_item("slow more")])),
    ]  # fmt: skip
    for method, asked in calls:
        with pytest.raises(Exception, match="there is no response"):
            await method(asked, metadata=yours)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("skills", {"skills": ["cooking"]}),
    ("context_management", {"context_management": [v1.ContextManagement(type="compaction")]}),
    ("memory", {"memory": v1.ResponseMemory(enabled=True)}),
    ("top_logprobs", {"top_logprobs": 2, "guardrails": [v1.ResponseGuardrail(type="x")]}),
    ("default_guardrails", {"default_guardrails": True}),
    ("tools[0].web_search.filters", {"tools": [v1.ResponseTool(web_search=v1.WebSearchTool(
        filters=v1.WebSearchFilters(allowed_domains=["a.example"])))]}),
    ("tools[0].web_search.user_location", {"tools": [v1.ResponseTool(web_search=v1.WebSearchTool(
        user_location=v1.UserLocation(city="Oslo")))]}),
    ("tools[0].file_search.ranking_options.ranker", {"tools": [v1.ResponseTool(file_search=v1.FileSearchTool(
        vector_store_ids=["v"], ranking_options=v1.RankingOptions(ranker="neural", model="x")))]}),
    ("tools[0].mcp.authorization", {"tools": [mcp(authorization="secret")]}),
    ("tools[0].mcp.headers", {"tools": [mcp(headers={"x": "secret"})]}),
    ("tool_choice.custom", {"tool_choice": v1.ResponseToolChoice(custom=v1.CustomToolChoice(name="x"))}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "fields"), REFUSED, ids=[field for field, _ in REFUSED])
async def test_what_is_not_built_is_refused_by_name(mesh: Mesh, field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError) as refused:
        await mesh.client.responses.create("scripted", "slow hi", options=options(**fields))
    assert refused.value.field == field
    assert field.partition("[")[0].partition(".")[0] in refused.value.message


INVALID: list[tuple[str, dict[str, Any]]] = [
    ("tool_choice", {"tool_choice": v1.ResponseToolChoice(allowed_tools=v1.AllowedToolsChoice())}),
    ("temperature", {"temperature": 3}),
    ("top_p", {"top_p": 2}),
    ("frequency_penalty", {"frequency_penalty": 3}),
    ("presence_penalty", {"presence_penalty": -3}),
    ("max_infer_iters", {"max_infer_iters": 101}),
    ("max_output_tokens", {"max_output_tokens": 15}),
    ("max_tool_calls", {"max_tool_calls": 0}),
    ("top_logprobs", {"top_logprobs": 21}),
    ("include[0]", {"include": [v1.RESPONSE_INCLUDE_UNSPECIFIED]}),
    ("background", {"background": True, "store": False}),
    ("metadata", {"metadata": {str(number): "" for number in range(17)}}),
    ("previous_response_id", {"previous_response_id": "resp_1", "conversation": "conv_1"}),
    ("tool_choice", {"tool_choice": v1.ResponseToolChoice(function=v1.FunctionToolChoice(name="fly"))}),
    ("tools[0].function.name", {"tools": [v1.ResponseTool(function=v1.FunctionTool(name="a b"))]}),
    ("tools[0].mcp.server_label", {"tools": [mcp(server_label="a/b")]}),
    ("tools[0].mcp.server_url", {"tools": [mcp(server_url="")]}),
    ("tools[0].file_search.vector_store_ids", {"tools": [v1.ResponseTool(file_search=v1.FileSearchTool())]}),
]


@pytest.mark.parametrize(("field", "fields"), INVALID, ids=[field for field, _ in INVALID])
async def test_values_out_of_range_are_refused_by_name(mesh: Mesh, field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await mesh.client.responses.create("scripted", "slow hi", options=options(**fields))
    assert refused.value.field == field


async def test_what_does_not_exist_is_named(mesh: Mesh) -> None:
    create = mesh.client.responses.create
    with pytest.raises(NotFoundError) as missing:
        await create("llama-9b", "hi")
    assert missing.value.reason == "MODEL_NOT_FOUND"
    for fields in ({"previous_response_id": "resp_0"}, {"conversation": "conv_0"}):
        with pytest.raises(NotFoundError, match="_0"):
            await create("scripted", "hi", **fields)  # type: ignore[arg-type]


async def test_a_compacted_dialog_stands_for_what_it_summarises(mesh: Mesh) -> None:
    first = await mesh.client.responses.create("scripted", "slow the number is seven")
    compacted = await mesh.client.responses.compact("scripted", previous_response_id=first.id)
    (item,) = compacted.output
    assert item.compaction.id.startswith("cmp_")
    later = await mesh.client.responses.create("scripted", [item, user_item("slow and now?")])
    shown = await dialog(mesh, later.id)
    assert shown[0][1].startswith("[Summary of the dialog so far]")
    assert shown[1:] == [("user", "slow and now?"), ("assistant", "and now?")]

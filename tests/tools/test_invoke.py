"""Calls of tools: arguments, keys, bounds, ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.content import struct, text_of
from stack_client.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.tools.conftest import PYTHON
from tests.tools.mesh import SHOP, ToolsMesh, tools_mesh

READ, PUT, WRITE = f"{SHOP}/read", f"{SHOP}/put", f"{SHOP}/write"


def say(text: str) -> str:
    return json.dumps({"do": "say", "text": text})


async def test_a_python_function_is_a_tool(mesh: ToolsMesh) -> None:
    result = await mesh.invoke("python::test/add", kwargs=struct({"a": 2, "b": 3}))
    assert text_of(result.content) == "5"
    assert not result.HasField("error_code")


async def test_what_a_function_raises_is_a_result(mesh: ToolsMesh) -> None:
    result = await mesh.invoke("python::test/fail", kwargs_json='{"word": "luck"}')
    assert (result.error_code, result.error_message) == (1, "ValueError: no luck here")


async def test_unknown_tools_are_refused_and_the_known_ones_named(mesh: ToolsMesh) -> None:
    with pytest.raises(NotFoundError, match="its tools are: read, put, write"):
        await mesh.invoke(f"{SHOP}/dance")
    with pytest.raises(NotFoundError, match="python::test"):
        await mesh.invoke("nowhere/read")


async def test_arguments_are_checked_before_anything_happens(mesh: ToolsMesh) -> None:
    result = await mesh.invoke(WRITE, kwargs_json='{"text": 3.5, "count": "ten", "colour": 1}')
    assert result.error_code == 400
    assert list(result.schema_path) == ["/do", "", "/count"] or set(result.schema_path) == {"/do", "", "/count"}
    assert "'ten' is not of type 'integer'" in result.error_message
    assert "there is no argument 'colour'" in result.error_message
    assert not mesh.shop.ran


@pytest.mark.parametrize("broken", ["{", "[1]", '{"do": NaN}', '{"do": "say", "do": "wait"}'])
async def test_broken_json_is_a_result_that_a_model_can_repair(mesh: ToolsMesh, broken: str) -> None:
    result = await mesh.invoke(READ, kwargs_json=broken)
    assert result.error_code == 400
    assert "JSON" in result.error_message
    assert not mesh.shop.ran


async def test_values_are_made_to_fit_where_nothing_is_lost(mesh: ToolsMesh) -> None:
    sent = {"do": "say", "text": 7, "count": "10", "nested": '{"on": "true"}'}
    result = await mesh.invoke(READ, kwargs_json=json.dumps(sent))
    assert not result.error_code, result.error_message
    assert mesh.shop.ran[-1].arguments == {"do": "say", "text": "7", "count": 10, "nested": {"on": True}}


async def test_kwargs_json_is_exact_and_wins(mesh: ToolsMesh) -> None:
    number = 2**60 + 1
    sent = json.dumps({"do": "say", "count": number})
    await mesh.invoke(READ, kwargs=struct({"do": "fail"}), kwargs_json=sent)
    assert mesh.shop.ran[-1].arguments["count"] == number


async def test_group_and_caller_arguments_lie_over_the_models(mesh: ToolsMesh) -> None:
    await mesh.register("test::fixed", args=struct({"text": "group"}))
    result = await mesh.invoke(
        "test::fixed/read", kwargs=struct({"do": "say", "text": "model"}), args=struct({"text": "caller", "count": 2})
    )
    assert text_of(result.content) == "group"
    assert mesh.shop.ran[-1].arguments["count"] == 2
    listed = await mesh.groups.ListTools(v1.ListToolsRequest(toolgroup_id="test::fixed/read"))
    assert "text" not in listed.data[0].input_schema.fields["properties"].struct_value.fields


async def test_ten_calls_at_once_have_ten_answers(mesh: ToolsMesh) -> None:
    results = await asyncio.gather(*(mesh.invoke(READ, kwargs_json=say(f"n{n}")) for n in range(10)))
    assert [text_of(result.content) for result in results] == [f"n{n}" for n in range(10)]


async def test_two_calls_are_in_flight_together(mesh: ToolsMesh) -> None:
    calls = [mesh.start(READ, kwargs_json='{"do": "wait"}') for _ in range(2)]
    for _ in calls:
        await mesh.shop.begun.acquire()
    mesh.shop.gate.set()
    for call in calls:
        assert not (await call).result.error_code


async def test_the_same_key_runs_once_and_gets_the_stored_result(mesh: ToolsMesh) -> None:
    first = await mesh.invoke(WRITE, kwargs_json=say("x"), idempotency_key="k1")
    again = await mesh.invoke(WRITE, kwargs=struct({"text": "x", "do": "say"}), idempotency_key="k1")
    assert first == again
    assert len(mesh.shop.ran) == 1


async def test_a_key_with_other_arguments_is_refused(mesh: ToolsMesh) -> None:
    await mesh.invoke(WRITE, kwargs_json=say("x"), idempotency_key="k1")
    with pytest.raises(InvalidArgumentError, match="k1") as caught:
        await mesh.invoke(WRITE, kwargs_json=say("y"), idempotency_key="k1")
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_a_second_call_joins_the_one_that_runs(mesh: ToolsMesh) -> None:
    calls = [mesh.start(WRITE, kwargs_json='{"do": "wait"}', idempotency_key="k1") for _ in range(5)]
    await mesh.shop.begun.acquire()
    with pytest.raises(InvalidArgumentError):
        await mesh.invoke(WRITE, kwargs_json=say("other"), idempotency_key="k1")
    mesh.shop.gate.set()
    results = [(await call).result for call in calls]
    assert len(mesh.shop.ran) == 1
    assert all(result == results[0] for result in results)


async def test_keys_of_tenants_are_apart(mesh: ToolsMesh) -> None:
    for tenant in ("a", "b"):
        await mesh.register(tenant=tenant)
        await mesh.invoke(WRITE, tenant=tenant, kwargs_json=say(tenant), idempotency_key="k")
    assert [call.access.tenant for call in mesh.shop.ran] == ["a", "b"]
    assert text_of((await mesh.get("k", tenant="b")).result.content) == "b"
    with pytest.raises(NotFoundError):
        await mesh.get("k", tenant="c")


async def test_a_call_that_is_cancelled_really_stops(mesh: ToolsMesh) -> None:
    call = mesh.start(WRITE, kwargs_json='{"do": "wait"}', idempotency_key="k1")
    await mesh.shop.begun.acquire()
    assert (await mesh.get("k1")).status == v1.INVOCATION_STATUS_RUNNING
    await mesh.runtime.CancelInvocation(v1.CancelInvocationRequest(idempotency_key="k1"))
    result = (await call).result
    assert result.error_code == 499
    assert mesh.shop.stopped == 1
    assert (await mesh.get("k1")).status == v1.INVOCATION_STATUS_CANCELLED
    ended = await mesh.runtime.CancelInvocation(v1.CancelInvocationRequest(idempotency_key="k1"))
    assert ended.invocation.status == v1.INVOCATION_STATUS_CANCELLED


async def test_a_keyed_call_goes_on_when_its_caller_leaves(mesh: ToolsMesh) -> None:
    call = mesh.start(WRITE, kwargs_json='{"do": "wait", "text": "kept"}', idempotency_key="k1")
    await mesh.shop.begun.acquire()
    call.cancel()
    mesh.shop.gate.set()
    found = await mesh.ended("k1")
    assert found.status == v1.INVOCATION_STATUS_COMPLETED
    assert text_of(found.result.content) == "kept"


async def test_a_call_without_a_key_stops_when_its_caller_leaves(mesh: ToolsMesh) -> None:
    call = mesh.start(WRITE, kwargs_json='{"do": "wait"}')
    await mesh.shop.begun.acquire()
    call.cancel()
    async with asyncio.timeout(10):
        while not mesh.shop.stopped:
            await asyncio.sleep(0.01)


async def test_a_tool_is_stopped_when_its_time_is_over(mesh: ToolsMesh) -> None:
    result = await mesh.invoke(READ, kwargs_json='{"do": "wait"}', timeout_seconds=0.05)
    assert result.error_code == 504
    assert mesh.shop.stopped == 1


async def test_calls_over_the_groups_limit_wait_and_then_are_refused(home: Path) -> None:
    async with tools_mesh(home, max_waiting=1) as mesh:
        await mesh.register(settings=v1.ToolGroupSettings(max_concurrency=1))
        first = mesh.start(READ, kwargs_json='{"do": "wait"}')
        await mesh.shop.begun.acquire()
        second = mesh.start(READ, kwargs_json='{"do": "wait"}', idempotency_key="second")
        async with asyncio.timeout(10):
            while True:
                try:
                    await mesh.get("second")
                    break
                except NotFoundError:
                    await asyncio.sleep(0.01)
        with pytest.raises(ResourceExhaustedError) as caught:
            await mesh.invoke(READ, kwargs_json=say("third"))
        assert caught.value.retry_after
        assert len(mesh.shop.ran) == 1
        mesh.shop.gate.set()
        await first
        await second


async def test_a_waiting_call_can_be_cancelled(home: Path) -> None:
    async with tools_mesh(home) as mesh:
        await mesh.register(settings=v1.ToolGroupSettings(max_concurrency=1))
        first = mesh.start(READ, kwargs_json='{"do": "wait"}')
        await mesh.shop.begun.acquire()
        second = asyncio.create_task(mesh.invoke(READ, kwargs_json='{"do": "wait"}', idempotency_key="second"))
        async with asyncio.timeout(10):
            while True:
                try:
                    await unary(mesh.runtime.CancelInvocation(v1.CancelInvocationRequest(idempotency_key="second")))
                    break
                except NotFoundError:
                    await asyncio.sleep(0.01)
        assert (await second).error_code == 499
        assert len(mesh.shop.ran) == 1
        assert (await mesh.get("second")).status == v1.INVOCATION_STATUS_CANCELLED
        mesh.shop.gate.set()
        await first


async def test_a_server_that_does_not_answer_is_an_error_and_the_key_is_free(mesh: ToolsMesh) -> None:
    for _ in range(2):
        with pytest.raises(UnavailableError, match="workshop"):
            await mesh.invoke(WRITE, kwargs_json='{"do": "away"}', idempotency_key="k1")
    assert len(mesh.shop.ran) == 2


async def test_a_providers_bug_ends_one_call_and_no_other(mesh: ToolsMesh) -> None:
    waiting = mesh.start(READ, kwargs_json='{"do": "wait"}')
    await mesh.shop.begun.acquire()
    result = await mesh.invoke(READ, kwargs_json='{"do": "crash"}')
    assert result.error_code == 500
    mesh.shop.gate.set()
    assert not (await waiting).result.error_code


async def test_writes_wait_for_an_approval(mesh: ToolsMesh) -> None:
    await mesh.register("test::watched", settings=v1.ToolGroupSettings(approval=v1.TOOL_APPROVAL_WRITES))
    assert not (await mesh.invoke("test::watched/read", kwargs_json=say("x"))).error_code
    with pytest.raises(FailedPreconditionError, match="approval"):
        await mesh.invoke("test::watched/write", kwargs_json=say("x"))
    assert len(mesh.shop.ran) == 1
    assert not (await mesh.invoke("test::watched/write", kwargs_json=say("x"), approved_by="ada")).error_code


async def test_a_tool_that_asks_goes_on_with_the_answer(mesh: ToolsMesh) -> None:
    call = {"kwargs_json": '{"do": "ask"}', "idempotency_key": "k1"}
    asked = await mesh.invoke(WRITE, **call)
    assert asked.input_required.message == "Really?"
    assert await mesh.invoke(WRITE, **call) == asked
    with pytest.raises(InvalidArgumentError, match="state"):
        await mesh.invoke(WRITE, **call, input_response=v1.ToolInputResponse(action="accept", state="other"))
    answer = v1.ToolInputResponse(action="accept", state="s1")
    assert text_of((await mesh.invoke(WRITE, **call, input_response=answer)).content) == "accept"
    assert text_of((await mesh.invoke(WRITE, **call, input_response=answer)).content) == "accept"
    assert len(mesh.shop.ran) == 2


async def test_an_answer_that_nobody_asked_for_is_refused(mesh: ToolsMesh) -> None:
    answer = v1.ToolInputResponse(action="accept")
    with pytest.raises(InvalidArgumentError, match="asked"):
        await mesh.invoke(WRITE, kwargs_json=say("x"), idempotency_key="k9", input_response=answer)


async def test_a_stream_begins_with_started_and_ends_with_one_result(mesh: ToolsMesh) -> None:
    events = await mesh.stream(WRITE, kwargs_json='{"do": "work", "text": "hello"}')
    assert [event.WhichOneof("event") for event in events] == ["started", "progress", "output", "result"]
    assert [event.sequence for event in events] == [1, 2, 3, 4]
    assert events[2].output.text == "hello\n"
    found = await mesh.get(events[0].started.idempotency_key)
    assert found.result == events[-1].result


async def test_a_stream_of_invalid_arguments_ends_with_a_result(mesh: ToolsMesh) -> None:
    events = await mesh.stream(WRITE, kwargs_json="{}")
    assert [event.WhichOneof("event") for event in events] == ["started", "result"]
    assert events[-1].result.error_code == 400


@pytest.fixture
async def small(home: Path) -> AsyncIterator[ToolsMesh]:
    async with tools_mesh(home, max_output_bytes=2000, **PYTHON) as running:
        await running.register(SHOP)
        yield running


async def test_of_long_output_head_and_tail_are_sent_and_the_whole_is_kept(small: ToolsMesh) -> None:
    arguments = json.dumps({"do": "long", "text": "añb", "count": 1000})
    result = await small.invoke(WRITE, kwargs_json=arguments, idempotency_key="k1")
    text = text_of(result.content)
    assert text.startswith("añb")
    assert text.endswith("añb")
    assert "bytes left out" in text
    assert len(text.encode()) < 2200
    assert result.metadata.fields["full_output"].struct_value.fields["bytes"].number_value == 4000
    whole = await small.get("k1", full_output=True)
    assert text_of(whole.result.content) == "añb" * 1000
    assert text_of((await small.get("k1")).result.content) == text

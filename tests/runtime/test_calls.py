"""Errors, cancellation, deadlines, ids and traces over real calls of all four shapes."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from services.runtime.calls import detached, enter_call
from services.runtime.outgoing import inherit
from stack_client.errors import PermissionDeniedError, StackError, from_rpc_error
from tests.runtime.echo import Host, Running, multi, unary

SHAPES = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
METHODS = dict(zip(SHAPES, ["Unary", "Stream", "Collect", "Chat"], strict=True))


async def once(command: str) -> AsyncIterator[StringValue]:
    yield StringValue(value=command)


def begin(running: Running, shape: str, command: str, **options: Any) -> Any:
    request: Any = once(command) if shape.startswith("stream") else StringValue(value=command)
    return multi(running.channel, METHODS[shape], shape=shape)(request, **options)


async def finish(call: Any, shape: str) -> list[str]:
    if shape.endswith("_unary"):
        return [(await call).value]
    return [message.value async for message in call]


async def failure(call: Any, shape: str) -> StackError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish(call, shape)
    return from_rpc_error(caught.value)


async def within(event: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await event.wait()


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_shape_answers(host: Host, shape: str) -> None:
    async with host() as running:
        assert (await finish(begin(running, shape, "hello"), shape))[-1] == "hello"


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_stack_error_arrives_with_code_reason_and_metadata(host: Host, shape: str) -> None:
    async with host() as running:
        error = await failure(begin(running, shape, "missing"), shape)
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert (error.reason, error.message, error.metadata) == (
        "MODEL_NOT_FOUND",
        'no model "llama-9b"',
        {"model": "llama-9b"},
    )


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_unexpected_error_is_internal_and_keeps_its_details_to_the_log(
    host: Host, shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with host() as running:
        error = await failure(begin(running, shape, "bug", metadata=(("x-request-id", "r-1"),)), shape)
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in error.message
    assert "r-1" in error.message
    assert "secret detail" in caplog.text


async def test_messages_before_an_error_in_mid_stream_arrive(host: Host) -> None:
    async with host() as running:
        call = begin(running, "unary_stream", "missing")
        assert (await call.read()).value == "first"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert from_rpc_error(caught.value).reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("shape", SHAPES)
async def test_cancel_reaches_the_handler(host: Host, shape: str) -> None:
    async with host() as running:
        call = begin(running, shape, "forever")
        await within(running.echo.entered)
        call.cancel()
        await within(running.echo.left)
        assert running.echo.seen == ["forever", "cancelled"]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_passed_deadline_ends_the_handler(host: Host, shape: str) -> None:
    async with host() as running:
        error = await failure(begin(running, shape, "forever", timeout=0.3), shape)
        await within(running.echo.left)
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert running.echo.seen[-1] == "cancelled"


async def test_a_call_without_deadline_gets_the_default(host: Host) -> None:
    async with host(default_deadline_seconds=0.2) as running:
        error = await failure(begin(running, "unary_unary", "forever"), "unary_unary")
    assert error.reason == "DEADLINE_EXCEEDED"
    assert "not done within 0.2 s" in error.message


async def test_a_method_can_have_a_deadline_of_its_own_even_for_streams(host: Host) -> None:
    async with host(deadline_seconds={"/test.Echo/Stream": 0.2}) as running:
        error = await failure(begin(running, "unary_stream", "forever"), "unary_stream")
    assert error.reason == "DEADLINE_EXCEEDED"


async def test_the_deadline_is_handed_down_over_two_hops(host: Host) -> None:
    async with host() as last, host(addresses={"peer": last.address}) as middle:
        async with host(addresses={"peer": middle.address}) as first:
            answer = await unary(first.channel, "Unary")(StringValue(value="forward forward facts"), timeout=5)
            remaining = float(answer.value.split()[2])
            assert 0 < remaining < 5 - 0.02  # grpc rounds up to 10 ms on the wire
            free = await unary(last.channel, "Unary")(StringValue(value="facts"))
            assert float(free.value.split()[2]) > 60


async def test_an_outgoing_call_is_refused_when_no_time_is_left(host: Host) -> None:
    async with host() as last, host(addresses={"peer": last.address}) as first:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(first.channel, "Unary")(StringValue(value="forward facts"), timeout=0.015)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert last.echo.seen == []


async def test_cancel_reaches_the_handler_behind_another_service(host: Host) -> None:
    async with host() as last, host(addresses={"peer": last.address}) as first:
        call = begin(first, "unary_unary", "forward forever")
        await within(last.echo.entered)
        call.cancel()
        await within(last.echo.left)
        assert last.echo.seen[-1] == "cancelled"


async def test_an_error_of_another_service_is_passed_on_as_it_was(host: Host) -> None:
    async with host() as last, host(addresses={"peer": last.address}) as first:
        error = await failure(begin(first, "unary_unary", "forward missing"), "unary_unary")
    assert error.reason == "MODEL_NOT_FOUND"


async def test_the_request_id_is_echoed_and_handed_down(host: Host) -> None:
    async with host() as last, host(addresses={"peer": last.address}) as first:
        call = begin(first, "unary_unary", "forward facts", metadata=(("x-request-id", "mine-7"),))
        assert (await call).value.split()[0] == "mine-7"
        assert dict(await call.trailing_metadata())["x-request-id"] == "mine-7"


async def test_the_tenant_is_taken_over_a_unix_socket_and_handed_down(host: Host, tmp_path: Path) -> None:
    closed = {"tcp": False, "socket_dir": tmp_path / "run"}
    async with (
        host(name="last", **closed) as last,
        host(name="first", addresses={"peer": last.address}, **closed) as first,
    ):
        named = {"metadata": (("x-tenant", "acme"),)}
        assert (await begin(first, "unary_unary", "forward tenant", **named)).value == "acme"
        assert (await begin(first, "unary_unary", "forward tenant")).value == ""
        error = await failure(begin(first, "unary_unary", "tenant", metadata=(("x-tenant", "a b"),)), "unary_unary")
        assert error.reason == "INVALID_VALUE"


async def test_a_caller_over_tcp_without_a_certificate_cannot_name_a_tenant(host: Host) -> None:
    named = {"metadata": (("x-tenant", "acme"),)}
    async with host() as running:
        error = await failure(begin(running, "unary_unary", "tenant", **named), "unary_unary")
        assert isinstance(error, PermissionDeniedError)
        assert running.echo.seen == []
    async with host(allow_insecure=True) as private:
        assert (await begin(private, "unary_unary", "tenant", **named)).value == "acme"


async def test_keys_of_providers_are_taken_where_a_tenant_is_and_never_sent_to_who_runs_no_tools(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    named = {"metadata": (("x-provider-data", '{"key": "of-a-caller"}'),)}
    closed = {"tcp": False, "socket_dir": tmp_path / "run"}
    async with (
        host(name="last", **closed) as last,
        host(name="first", addresses={"peer": last.address}, **closed) as first,
    ):
        assert "of-a-caller" in (await begin(first, "unary_unary", "provider data", **named)).value
        assert (await begin(first, "unary_unary", "forward provider data", **named)).value == ""
        large = (("x-provider-data", "x" * 4097),)
        error = await failure(begin(first, "unary_unary", "provider data", metadata=large), "unary_unary")
        assert (error.reason, error.field) == ("INVALID_VALUE", "x-provider-data")
    async with host() as running:
        error = await failure(begin(running, "unary_unary", "provider data", **named), "unary_unary")
        assert isinstance(error, PermissionDeniedError)
    assert "of-a-caller" not in "".join(record.getMessage() for record in caplog.records if "grpc" not in record.name)


async def test_a_call_of_tools_carries_the_keys_of_the_call_that_makes_it() -> None:
    def handed(method: str) -> dict[str, Any]:
        details = grpc.aio.ClientCallDetails(
            method=method, timeout=None, metadata=None, credentials=None, wait_for_ready=None
        )
        return dict(inherit(details).metadata or ())

    call = enter_call("/llamastack.v1.AgentsService/CreateTurn")
    call.provider_data = "{}"
    later = detached()
    assert handed("/llamastack.v1.ToolRuntimeService/InvokeTool")["x-provider-data"] == "{}"
    assert "x-provider-data" not in handed("/llamastack.v1.InferenceService/ChatCompletion")
    assert later.run(handed, "/llamastack.v1.ToolRuntimeService/InvokeTool")["x-provider-data"] == "{}"
    other = detached(tenant="b")  # a turn that another process began
    assert "x-provider-data" not in other.run(handed, "/llamastack.v1.ToolRuntimeService/InvokeTool")


@pytest.mark.parametrize("given", [(), (("x-request-id", "has spaces"),)])
async def test_a_missing_or_bad_request_id_is_replaced(host: Host, given: tuple[tuple[str, str], ...]) -> None:
    async with host() as running:
        call = begin(running, "unary_unary", "facts", metadata=given)
        made = (await call).value.split()[0]
        assert re.fullmatch(r"[0-9a-f-]{36}", made)
        assert dict(await call.trailing_metadata())["x-request-id"] == made


async def test_the_trace_is_continued_over_hops_with_new_spans(host: Host) -> None:
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with host() as last, host(addresses={"peer": last.address}) as first:
        call = begin(first, "unary_unary", "forward facts", metadata=(("traceparent", parent),))
        _, trace_id, span_id, flags = (await call).value.split()[1].split("-")
    assert (trace_id, flags) == ("a" * 32, "01")
    assert span_id != "b" * 16


@pytest.mark.parametrize("damaged", ["", "00-zz-bb-01", "00-" + "0" * 32 + "-" + "b" * 16 + "-01"])
async def test_a_damaged_trace_header_begins_a_new_trace(host: Host, damaged: str) -> None:
    async with host() as running:
        call = begin(running, "unary_unary", "facts", metadata=(("traceparent", damaged),))
        trace_id = (await call).value.split()[1].split("-")[1]
        assert re.fullmatch(r"[0-9a-f]{32}", trace_id)
        assert int(trace_id, 16)


def big(running: Running) -> Any:
    return running.channel.unary_unary(
        "/test.Echo/Big",
        request_serializer=BytesValue.SerializeToString,
        response_deserializer=BytesValue.FromString,
    )


async def test_a_request_over_the_limit_is_refused_with_our_reason(host: Host) -> None:
    async with host() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await big(running)(BytesValue(value=bytes(100_000_000)))
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
        assert error.metadata["limit"] == str(16 * 1024 * 1024)
        assert (await big(running)(BytesValue(value=bytes(15_000_000)))).value == b"15000000"


async def test_a_response_over_the_limit_is_refused_with_our_reason(host: Host) -> None:
    async with host() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await big(running)(BytesValue(value=b"give 17000000"))
    assert from_rpc_error(caught.value).reason == "MESSAGE_TOO_LARGE"


async def test_a_request_over_the_wall_behind_the_limit_is_resource_exhausted(host: Host) -> None:
    async with host(max_message_bytes=100_000) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await big(running)(BytesValue(value=bytes(1_000_000)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert from_rpc_error(caught.value).reason == "MESSAGE_TOO_LARGE"


async def test_bytes_that_are_no_message_are_an_invalid_argument(host: Host) -> None:
    async with host() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.channel.unary_unary("/test.Echo/Unary", bytes, bytes)(b"\xff\xff\xff")
    assert from_rpc_error(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_abandoned_by_cancel_leaves_no_call_behind(host: Host) -> None:
    async with host() as running:
        for _ in range(50):
            call = begin(running, "unary_stream", "forever")
            await call.read()
            call.cancel()
        async with asyncio.timeout(10):
            while running.hosted._calls.in_flight:
                await asyncio.sleep(0)

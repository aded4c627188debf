"""Client interceptors: calls made while a call is handled inherit its deadline, request id, tenant and trace."""

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, cast

import grpc
from grpc.aio import ClientCallDetails

from services.runtime.calls import PROVIDER_DATA, REQUEST_ID, TENANT, TRACEPARENT, TRACESTATE, current_call
from stack_client.errors import DETAILS_KEY, DeadlineExceededError, StackError, to_status

MARGIN_SECONDS = 0.02
"""Kept back from an inherited deadline, so that the callee's answer still arrives in time to be passed on."""

_TOOLS = (
    b"/llamastack.v1.ToolRuntimeService/",
    b"/llamastack.v1.ToolGroupsService/",  # looks at a server when it is registered
    b"/llamastack.v1.AgentsService/",
    b"/llamastack.v1.ResponsesService/",
)

Continuation = Callable[[ClientCallDetails, Any], Any]


def inherit(details: ClientCallDetails) -> ClientCallDetails:
    """The details of an outgoing call with what the current call hands down.

    Raises:
        AioRpcError: DEADLINE_EXCEEDED: no time is left, so the call is not made.
    """
    call = current_call()
    if call is None:
        return details
    given = cast("Any", details.metadata)
    metadata = [*given] if given is not None else []
    present = {key for key, _ in metadata}
    handed_down = {
        REQUEST_ID: call.request_id,
        TENANT: call.tenant,
        TRACEPARENT: call.trace.traceparent,
        TRACESTATE: call.trace.state,
        # A caller's keys go where tools run and to nobody else.
        PROVIDER_DATA: call.provider_data if _runs_tools(details.method) else "",
    }
    metadata += [(key, value) for key, value in handed_down.items() if value and key not in present]
    timeout, remaining = details.timeout, call.remaining()
    if remaining is not None:
        left = remaining - MARGIN_SECONDS
        if left <= 0:
            method = details.method.decode() if isinstance(details.method, bytes) else details.method
            raise _as_rpc_error(
                DeadlineExceededError(f"{method}: not called, because the deadline of {call.method} has passed")
            )
        timeout = left if timeout is None else min(timeout, left)
    return ClientCallDetails(
        method=details.method,
        timeout=timeout,
        metadata=grpc.aio.Metadata(*metadata),
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )


def _runs_tools(method: str | bytes) -> bool:
    name = method if isinstance(method, bytes) else method.encode()
    return name.startswith(_TOOLS)


def _as_rpc_error(error: StackError) -> grpc.aio.AioRpcError:
    """The error as a failed call: grpc's calls handle no other type from an interceptor."""
    status = to_status(error)
    trailers = grpc.aio.Metadata((DETAILS_KEY, status.SerializeToString()))
    return grpc.aio.AioRpcError(
        error.code, grpc.aio.Metadata(), trailers, details=status.message, debug_error_string=None
    )


class UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg] # generic in stubs only
    """For calls with one request and one response."""

    async def intercept_unary_unary(
        self, continuation: Continuation, client_call_details: ClientCallDetails, request: object
    ) -> Any:  # noqa: ANN401 - calls of any type
        """Hand down what the current call has."""
        return await continuation(inherit(client_call_details), request)


class UnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg] # generic in stubs only
    """For calls that answer with a stream."""

    async def intercept_unary_stream(
        self, continuation: Continuation, client_call_details: ClientCallDetails, request: object
    ) -> Any:  # noqa: ANN401 - calls of any type
        """Hand down what the current call has."""
        return await continuation(inherit(client_call_details), request)


class StreamUnary(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg] # generic in stubs only
    """For calls that send a stream."""

    async def intercept_stream_unary(
        self,
        continuation: Continuation,
        client_call_details: ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:  # noqa: ANN401 - calls of any type
        """Hand down what the current call has."""
        return await continuation(inherit(client_call_details), request_iterator)


class StreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg] # generic in stubs only
    """For calls with streams both ways."""

    async def intercept_stream_stream(
        self,
        continuation: Continuation,
        client_call_details: ClientCallDetails,
        request_iterator: AsyncIterable[Any] | Iterable[Any],
    ) -> Any:  # noqa: ANN401 - calls of any type
        """Hand down what the current call has."""
        return await continuation(inherit(client_call_details), request_iterator)


def client_interceptors() -> list[grpc.aio.ClientInterceptor]:
    """One interceptor per call shape; grpc looks at the first matching type only, so one class cannot serve all."""
    interceptors: list[object] = [UnaryUnary(), UnaryStream(), StreamUnary(), StreamStream()]
    return cast("list[grpc.aio.ClientInterceptor]", interceptors)

"""The tools service as turns see it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import grpc

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, EventStream, every_page, unary
from stack_client.errors import NotFoundError, UnsupportedError

GRACE_SECONDS = 30.0
"""How much longer than its tool may take a call is waited for."""
CANCEL_SECONDS = 5.0


class Toolbox(Protocol):
    """Lists and runs tools."""

    async def tools(self, group: str) -> Sequence[v1.ToolDef]:
        """The tools of a group; raises NotFoundError and UnavailableError."""

    def invoke(self, request: v1.InvokeToolRequest) -> AsyncIterator[v1.StreamInvokeToolResponse]:
        """The events of a call; the last one has the result."""

    async def invocation(self, key: str) -> v1.Invocation | None:
        """A call that was made before, by its key; None where the service never took it."""

    async def cancel(self, key: str) -> None:
        """Stop a call; returns soon, whether it has stopped or not."""


class NoTools:
    """For a stack without a tools service."""

    async def tools(self, group: str) -> Sequence[v1.ToolDef]:
        """Refuse."""
        raise UnsupportedError(f"{group!r}: this stack has no tools service; set addresses.tools")

    async def invoke(self, request: v1.InvokeToolRequest) -> AsyncIterator[v1.StreamInvokeToolResponse]:
        """Refuse."""
        raise UnsupportedError(f"{request.tool_name!r}: this stack has no tools service; set addresses.tools")
        yield v1.StreamInvokeToolResponse()

    async def invocation(self, key: str) -> v1.Invocation | None:  # noqa: ARG002
        """Nothing was ever taken."""
        return None

    async def cancel(self, key: str) -> None:
        """Nothing runs."""


class ToolService:
    """The tools service over gRPC.

    Args:
        channel: To it.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.ToolRuntimeServiceStub(channel)

    async def tools(self, group: str) -> Sequence[v1.ToolDef]:
        """The tools of a group."""
        request = v1.ListRuntimeToolsRequest(page_size=1000, tool_group_id=group)
        found: list[v1.ToolDef] = await every_page(self._stub.ListRuntimeTools, request, timeout=DEFAULT_TIMEOUT)
        return found

    async def invoke(self, request: v1.InvokeToolRequest) -> AsyncIterator[v1.StreamInvokeToolResponse]:
        """The events of a call."""
        seconds = request.timeout_seconds if request.HasField("timeout_seconds") else DEFAULT_TIMEOUT
        call = self._stub.StreamInvokeTool(v1.StreamInvokeToolRequest(request=request), timeout=seconds + GRACE_SECONDS)
        async with EventStream[v1.StreamInvokeToolResponse](call) as events:
            async for event in events:
                yield event

    async def invocation(self, key: str) -> v1.Invocation | None:
        """A call that was made before, by its key."""
        try:
            response: v1.GetInvocationResponse = await unary(
                self._stub.GetInvocation(v1.GetInvocationRequest(idempotency_key=key), timeout=DEFAULT_TIMEOUT)
            )
        except NotFoundError:
            return None
        return response.invocation

    async def cancel(self, key: str) -> None:
        """Stop a call."""
        request = v1.CancelInvocationRequest(idempotency_key=key)
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await self._stub.CancelInvocation(request)
        except (grpc.aio.AioRpcError, TimeoutError):
            return  # its own deadline stops it

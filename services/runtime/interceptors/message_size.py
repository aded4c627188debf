"""Bounds messages with our own error, and drives streams."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from services.runtime.calls import enter_call
from services.runtime.interceptors.base import Context, Handler, behavior_of, rebuild
from stack_client.errors import InvalidArgumentError, ResourceExhaustedError

Codec = Callable[[Any], Any]


class MessageSize(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in stubs only
    """Refuses requests and responses over `limit` bytes with RESOURCE_EXHAUSTED, reason MESSAGE_TOO_LARGE.

    The transport would answer too, but without a reason; its own limit is therefore set higher (see
    `services.runtime.listen`). Messages are decoded here rather than by grpc, so that what goes wrong reaches the
    errors interceptor. Generators become coroutines that write, see `Around`; this interceptor is the innermost.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler; called by grpc for each call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method, inner = handler_call_details.method, behavior_of(handler)
        decode = self._checked_decoder(handler.request_deserializer, method=method)
        encode = self._checked_encoder(handler.response_serializer, method=method)

        async def unary(request: Any, context: Context) -> Any:  # noqa: ANN401 - messages of any type
            response = await inner(request if handler.request_streaming else decode(request), context)
            encoded = encode(response)
            enter_call(method).messages += 1
            return encoded

        def counted(message: Any) -> bytes:  # noqa: ANN401 - messages of any type
            encoded: bytes = encode(message)
            enter_call(method).messages += 1  # whoever writes: a generator, or the handler itself
            return encoded

        async def stream(request: Any, context: Context) -> None:  # noqa: ANN401 - messages of any type
            answer: Any = inner(request if handler.request_streaming else decode(request), context)
            if hasattr(answer, "__aiter__"):
                await _pump(answer, context=context)
            else:
                await answer  # writes by itself

        return rebuild(
            handler,
            behavior=stream if handler.response_streaming else unary,
            request_deserializer=decode if handler.request_streaming else None,
            response_serializer=counted if handler.response_streaming else None,
        )

    def _checked_decoder(self, decode: Codec | None, *, method: str) -> Codec:
        def checked(raw: bytes) -> Any:  # noqa: ANN401 - messages of any type
            self._check(len(raw), what="request", method=method)
            try:
                return decode(raw) if decode else raw
            except DecodeError as error:
                raise InvalidArgumentError(
                    f"{method}: the request is no valid message; are its strings UTF-8 and its fields of this "
                    f"version? ({error})"
                ) from error

        return checked

    def _checked_encoder(self, encode: Codec | None, *, method: str) -> Codec:
        def checked(message: Any) -> bytes:  # noqa: ANN401 - messages of any type
            raw: bytes = encode(message) if encode else message
            self._check(len(raw), what="response", method=method)
            return raw

        return checked

    def _check(self, size: int, *, what: str, method: str) -> None:
        if size > self._limit:
            raise ResourceExhaustedError(
                f"{method}: the {what} has {size} bytes, the limit is {self._limit}; send less at a time",
                reason="MESSAGE_TOO_LARGE",
                metadata={"size": str(size), "limit": str(self._limit)},
            )


async def _pump(answer: Any, *, context: Context) -> None:  # noqa: ANN401 - a generator of any message
    async with aclosing(answer):
        async for message in answer:
            await context.write(message)

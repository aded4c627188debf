"""The one shape that all interceptors share: a context manager around the handling of a call."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import grpc

from services.runtime.calls import Call, enter_call

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behavior = Callable[[Any, Any], Awaitable[Any]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_MAKERS: dict[tuple[bool, bool], tuple[Callable[..., Handler], str]] = {
    (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}


class Around(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in stubs only
    """Runs `around` around every call, whatever its shape.

    The innermost interceptor must be `MessageSize`: it turns generators into coroutines that write, so that a whole
    stream is handled inside one coroutine and cancellation arrives as CancelledError in every layer.
    """

    def around(self, call: Call, *, context: Context, streams: bool) -> AbstractAsyncContextManager[None]:
        """What happens before and after; exceptions of the handler pass through."""
        raise NotImplementedError

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler; called by grpc for each call."""
        handler = await continuation(handler_call_details)
        if handler is None:  # an unknown method: grpc answers UNIMPLEMENTED
            return handler
        method, streams, inner = handler_call_details.method, handler.response_streaming, behavior_of(handler)

        async def behavior(request: Any, context: Context) -> Any:  # noqa: ANN401 - messages of any type
            async with self.around(enter_call(method), context=context, streams=streams):
                return await inner(request, context)

        return rebuild(handler, behavior=behavior)


def behavior_of(handler: Handler) -> Behavior:
    """The function that handles the call."""
    behavior: Behavior = getattr(handler, _MAKERS[handler.request_streaming, handler.response_streaming][1])
    return behavior


def rebuild(handler: Handler, *, behavior: Behavior, **codecs: Any) -> Handler:  # noqa: ANN401 - passed to grpc
    """The same handler with another behaviour and, when given, other `request_deserializer`, `response_serializer`."""
    make, _ = _MAKERS[handler.request_streaming, handler.response_streaming]
    kept = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    return make(behavior, **{**kept, **codecs})


def header(context: Context, *, name: str) -> str:
    """A text header of the request, or ""."""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else ""
    return ""


def is_watched_by_machines(method: str) -> bool:
    """Health checks, status polls, reflection, exports of telemetry: they would drown the calls of users in logs."""
    return method.startswith(("/grpc.", "/llamastack.v1.InspectService/", "/opentelemetry."))

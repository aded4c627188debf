"""Calls of the services behind the gateway."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Self, TypeVar

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from llamastack import v1
from services.gateway.request import Request
from stack_client.calls import terminal_events
from stack_client.errors import StackError, StreamBrokenError, UnavailableError, UnsupportedError, from_rpc_error

T = TypeVar("T", bound=Message)
AFTERWARDS_SECONDS = 10.0
PACKAGE = "llamastack.v1"
_EOF: Any = vars(grpc.aio)["EOF"]  # missing in the stubs
HOSTS = {
    "InferenceService": "inference",
    "BatchInferenceService": "inference",
    "ModelsService": "inference",
    "SafetyService": "safety",
    "ShieldsService": "safety",
    "ToolGroupsService": "tools",
    "ToolRuntimeService": "tools",
    "MemoryBanksService": "memory",
    "VectorDBsService": "memory",
    "VectorIOService": "memory",
    "VectorStoresService": "memory",
    "RAGToolService": "memory",
    "FilesService": "memory",
    "AgentsService": "agents",
    "ResponsesService": "agents",
    "ConversationsService": "agents",
    "PromptsService": "agents",
    "ChatCompletionsService": "agents",
    "PostTrainingService": "post_training",
    "SyntheticDataGenerationService": "post_training",
    "RewardScoringService": "post_training",
    "EvalService": "evaluation",
    "BenchmarksService": "evaluation",
    "ScoringService": "evaluation",
    "ScoringFunctionsService": "evaluation",
    "DatasetsService": "evaluation",
    "DatasetIOService": "evaluation",
    "TelemetryService": "telemetry",
    "BatchesService": "gateway",
}
"""The service of the mesh that hosts a gRPC service."""
GATEWAY = "gateway"
"""What it hosts itself is there when the service that keeps files is."""
KEEPS_FILES = "memory"
_RUN_TOOLS = {"tools", "agents"}


class Rpc:
    """One method of the mesh, by its descriptor.

    Args:
        name: `ModelsService.GetModel`.
    """

    def __init__(self, name: str) -> None:
        service, _, method = name.partition(".")
        found = descriptor_pool.Default().FindServiceByName(f"{PACKAGE}.{service}").methods_by_name[method]
        self.name = name
        self.host = HOSTS[service]
        self.path = f"/{PACKAGE}.{service}/{method}"
        self.request: type[Message] = GetMessageClass(found.input_type)
        self.response: type[Message] = GetMessageClass(found.output_type)


class Upstream:
    """The channels to the services, and calls over them.

    Args:
        channels: By service of the mesh; what is missing answers 501 by name.
        seconds: Longest unary call.
    """

    def __init__(self, channels: Mapping[str, grpc.aio.Channel], *, seconds: float) -> None:
        self._channels = channels
        self._seconds = seconds
        self._methods: dict[str, Any] = {}
        self._late: set[Any] = set()
        self._unary: set[Any] = set()
        self._streams: weakref.WeakSet[Events] = weakref.WeakSet()
        self._stopping: StackError | None = None

    def break_off(self) -> None:
        """End all calls, with an error that their clients are told: the gateway stops and has waited long enough."""
        self._stopping = UnavailableError(
            "the gateway is shutting down; call again in a moment", reason="DRAINING", retry_after=1.0
        )
        for events in list(self._streams):
            events.break_off(self._stopping)
        for call in list(self._unary):
            call.cancel()

    def has(self, service: str) -> bool:
        """Whether a service of the mesh is there."""
        return service in self._channels

    @property
    def services(self) -> Iterable[str]:
        """The services of the mesh that are there."""
        return self._channels

    async def status(self, service: str, *, request: Request) -> v1.GetStatusResponse:
        """How a service is doing, as it says itself.

        Raises:
            StackError: It does not answer.
        """
        stub = v1.InspectServiceStub(self._channels[service])
        try:
            return await stub.GetStatus(v1.GetStatusRequest(), metadata=request.metadata(keys=False))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def unary(self, rpc: Rpc, message: Message, *, request: Request) -> Any:  # noqa: ANN401 - by the Rpc
        """The answer of a call with one request and one response.

        Raises:
            StackError: As the service raised it, or as the transport failed.
            UnsupportedError: There is no such service.
        """
        call = self._method(rpc, "unary_unary")(message, timeout=self._seconds, metadata=metadata(rpc, request))
        self._unary.add(call)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            if self._stopping is not None and not _cancelled():
                raise self._stopping from None
            raise
        finally:
            self._unary.discard(call)

    async def afterwards(self, rpc: Rpc, message: Message, *, request: Request) -> None:
        """Make a call whose outcome nobody waits for any more, so that the caller's own end does not stop it."""
        call = self._method(rpc, "unary_unary")(message, timeout=AFTERWARDS_SECONDS, metadata=metadata(rpc, request))
        self._late.add(call)
        call.add_done_callback(self._late.discard)

    async def send(self, rpc: Rpc, messages: AsyncIterator[Message], *, request: Request) -> Any:  # noqa: ANN401
        """The answer of a call that sends a stream.

        Raises:
            StackError: As `unary` does.
        """
        call = self._method(rpc, "stream_unary")
        try:
            return await call(messages, timeout=self._seconds, metadata=metadata(rpc, request))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    def stream(self, rpc: Rpc, message: Message, *, request: Request) -> "Events":
        """The events of a server stream. Use `async with`, or `aclose` it.

        Raises:
            UnsupportedError: There is no such service.
        """
        call = self._method(rpc, "unary_stream")(message, metadata=metadata(rpc, request))
        events = Events(call, rpc.response)
        self._streams.add(events)
        if self._stopping is not None:
            events.break_off(self._stopping)
        return events

    def _method(self, rpc: Rpc, kind: str) -> Any:  # noqa: ANN401 - grpc's multicallables
        found = self._methods.get(rpc.path)
        if found is None:
            channel = self._channels.get(rpc.host)
            if channel is None:
                raise missing_service(rpc.host)
            make = getattr(channel, kind)
            found = self._methods[rpc.path] = make(
                rpc.path,
                request_serializer=rpc.request.SerializeToString,
                response_deserializer=rpc.response.FromString,
            )
        return found


def metadata(rpc: Rpc, request: Request) -> list[tuple[str, str]]:
    """What a call carries for a request.

    Raises:
        InvalidArgumentError: A header of the request cannot be handed on.
    """
    return request.metadata(keys=rpc.host in _RUN_TOOLS)


def _cancelled() -> bool:
    """Whether this task is to end, and not only its call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def missing_service(name: str) -> UnsupportedError:
    """The error where a service of the mesh is not part of this stack."""
    name = KEEPS_FILES if name == GATEWAY else name
    return UnsupportedError(
        f"the {name} service is not part of this stack; give its address under `addresses.{name}`, or use a version "
        "that has it"
    )


class Events:
    """A server stream's events in order, with heartbeats; ends after the terminal one.

    Args:
        call: The running call.
        kind: Class of the events.
    """

    def __init__(self, call: Any, kind: type[Message]) -> None:  # noqa: ANN401 - grpc's call
        self._call = call
        self._terminal_names = terminal_events(kind.DESCRIPTOR)
        self._done = False
        self._broken: StackError | None = None

    def break_off(self, error: StackError) -> None:
        """End the call; whoever reads gets the error, unless the last event was read already."""
        self._broken = error
        self._call.cancel()

    async def __aenter__(self) -> Self:
        """Watch the stream inside a `with` block."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End the call."""
        await self.aclose()

    @property
    def ended(self) -> bool:
        """Whether the last event that was read is the terminal one."""
        return self._done

    async def aclose(self) -> None:
        """End the call and with it the work behind it."""
        self._done = True
        self._call.cancel()

    def __aiter__(self) -> "Events":
        """The events."""
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401 - by the Rpc
        """The next event.

        Raises:
            StackError: As the service raised it, or as the transport failed.
            StreamBrokenError: The stream ended without its terminal event.
        """
        if self._done:
            raise StopAsyncIteration
        if self._broken is not None:
            self._done = True
            raise self._broken
        try:
            event = await self._call.read()
        except grpc.aio.AioRpcError as error:
            self._done = True
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            self._call.cancel()
            if self._broken is not None and not _cancelled():
                self._done = True
                raise self._broken from None
            raise
        if event is _EOF:
            self._done = True
            await self._raise_status()
            raise StreamBrokenError("the stream ended before its last event; the answer is not complete")
        if event.WhichOneof("event") in self._terminal_names:
            self._done = True
        return event

    async def _raise_status(self) -> None:
        if await self._call.code() is not grpc.StatusCode.OK:
            try:
                await self._call.wait_for_connection()
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from None

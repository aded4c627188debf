"""A tiny service with all four call shapes, and a way to host services in process."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from services.runtime.calls import current_call, current_provider_data
from services.runtime.config import RuntimeConfig, StackConfig
from services.runtime.process import Build, hosting
from services.runtime.readiness import Readiness
from services.runtime.server import Hosted
from services.runtime.service import ServiceContext
from stack_client.errors import NotFoundError

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
ECHO = "test.Echo"


@dataclass(kw_only=True)
class Echo:
    """Answers what it is told to; records what it sees."""

    context: ServiceContext
    name: str = "echo"
    seen: list[str] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    peer: grpc.aio.Channel | None = None
    readiness: Readiness = field(init=False)

    def __post_init__(self) -> None:
        self.readiness = self.context.readiness

    async def __aenter__(self) -> Self:
        if "peer" in self.context.addresses:
            self.peer = self.context.open_channel("peer")
        self.context.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.peer is not None:
            await self.peer.close(None)

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        text: dict[str, Any] = {
            "request_deserializer": StringValue.FromString,
            "response_serializer": StringValue.SerializeToString,
        }
        raw: dict[str, Any] = {
            "request_deserializer": BytesValue.FromString,
            "response_serializer": BytesValue.SerializeToString,
        }
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary, **text),
            "Big": grpc.unary_unary_rpc_method_handler(self.big, **raw),
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream, **text),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect, **text),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat, **text),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ECHO, handlers),))
        return [ECHO]

    async def act(self, command: str) -> str:
        """Do what the request says."""
        self.seen.append(command)
        match command:
            case "missing":
                raise NotFoundError('no model "llama-9b"', metadata={"model": "llama-9b"}, reason="MODEL_NOT_FOUND")
            case "bug":
                raise ValueError("secret detail")
            case "forever":
                await self.wait(asyncio.Event())
            case "held":
                await self.wait(self.release)
            case "draining":
                await self.wait(self.context.draining)
            case "facts":
                return self.facts()
            case "tenant":
                call = current_call()
                assert call is not None
                return call.tenant
            case "provider data":
                return current_provider_data()
            case _ if command.startswith("forward "):
                assert self.peer is not None
                forward = unary(self.peer, "Unary")
                answer = await forward(StringValue(value=command.removeprefix("forward ")))
                return str(answer.value)
        return command

    async def wait(self, event: asyncio.Event) -> None:
        self.entered.set()
        try:
            await event.wait()
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise
        finally:
            self.left.set()

    def facts(self) -> str:
        call = current_call()
        assert call is not None
        return f"{call.request_id} {call.trace.traceparent} {call.remaining()}"

    async def unary(self, request: StringValue, context: Context) -> StringValue:
        return StringValue(value=await self.act(request.value))

    async def big(self, request: BytesValue, context: Context) -> BytesValue:
        """The request's length as text, or as many bytes as it asks for."""
        if request.value.startswith(b"give "):
            return BytesValue(value=bytes(int(request.value[5:])))
        return BytesValue(value=str(len(request.value)).encode())

    async def stream(self, request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        yield StringValue(value="first")
        yield StringValue(value=await self.act(request.value))

    async def collect(self, requests: AsyncIterator[StringValue], context: Context) -> StringValue:
        return StringValue(value=",".join([await self.act(request.value) async for request in requests]))

    async def chat(self, requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=await self.act(request.value))


def unary(channel: grpc.aio.Channel, method: str) -> Any:
    return channel.unary_unary(
        f"/{ECHO}/{method}",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )


def multi(channel: grpc.aio.Channel, method: str, *, shape: str) -> Any:
    return getattr(channel, shape)(
        f"/{ECHO}/{method}",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=StringValue.FromString,
    )


@dataclass(kw_only=True)
class Running:
    """A hosted echo service and a channel to it."""

    hosted: Hosted
    echo: Echo
    channel: grpc.aio.Channel

    @property
    def address(self) -> str:
        return self.hosted.addresses[0]


Host = Callable[..., AbstractAsyncContextManager[Running]]


def hosts(tmp_path: Path) -> Host:
    """`async with host(runtime settings) as running`."""

    @asynccontextmanager
    async def start(*, addresses: dict[str, str] | None = None, name: str = "echo", **settings: Any) -> Any:
        settings.setdefault("ports", {name: 0})
        settings.setdefault("drain_notice_seconds", 0.0)
        made: list[Echo] = []

        def build(context: ServiceContext) -> Echo:
            made.append(Echo(context=context, name=name))
            return made[0]

        config = StackConfig(file="test", addresses=addresses or {}, runtime=RuntimeConfig(**settings))
        builds: dict[str, Build] = {name: build}
        async with hosting(builds, config=config, home=tmp_path) as hosted:
            async with grpc.aio.insecure_channel(hosted[0].addresses[-1]) as channel:
                yield Running(hosted=hosted[0], echo=made[0], channel=channel)

    return start


def build(context: ServiceContext) -> Echo:
    """For processes: `echo=tests.runtime.echo:build`."""
    return Echo(context=context, name=context.name)

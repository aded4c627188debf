"""What the router does with a node's answer, over real gRPC in process; the nodes do as they are told."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
from prometheus_client import CollectorRegistry

from llamastack import v1
from services.router.router import Router, build
from services.runtime.config import RuntimeConfig, StackConfig
from services.runtime.process import hosting
from services.runtime.service import ServiceContext
from services.runtime.stream import RpcContext
from stack_client import channel
from stack_client.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
    from_rpc_error,
)
from tests.router.conftest import chat

START = v1.StreamChatCompletionResponse(sequence=1, start=v1.ChatCompletionStart(id="1"))
BEAT = v1.StreamChatCompletionResponse(heartbeat=v1.Heartbeat())
COMPLETE = v1.StreamChatCompletionResponse(sequence=2, complete=v1.ChatCompletionComplete())


@dataclass(kw_only=True)
class ObedientNode(v1.InferenceServiceServicer):
    """Answers each call with what `answer` says: a response, events, or an error."""

    context: ServiceContext
    name: str
    answer: Any = field(default_factory=v1.ChatCompletionResponse)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    calls: int = 0

    def __post_init__(self) -> None:
        self.readiness = self.context.readiness

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        v1.add_InferenceServiceServicer_to_server(self, server)
        return ["llamastack.v1.InferenceService"]

    async def ChatCompletion(  # noqa: N802
        self, request: v1.ChatCompletionRequest, context: RpcContext
    ) -> v1.ChatCompletionResponse:
        self.calls += 1
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if isinstance(self.answer, StackError):
            raise self.answer
        return v1.ChatCompletionResponse(id=self.name)

    async def StreamChatCompletion(  # noqa: N802
        self, request: v1.StreamChatCompletionRequest, context: RpcContext
    ) -> AsyncIterator[v1.StreamChatCompletionResponse]:
        self.calls += 1
        for event in self.answer:
            if isinstance(event, StackError):
                raise event
            yield event


def obedient(context: ServiceContext) -> ObedientNode:
    return ObedientNode(context=context, name=context.name)  # type: ignore[abstract] # the tests call no others


@dataclass
class Mesh:
    """A router and two nodes."""

    router: Router
    a: ObedientNode
    b: ObedientNode
    inference: Any
    nodes: Any
    leases: dict[str, str]
    registry: CollectorRegistry

    def value(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(metric, labels) or 0.0

    async def stream(self) -> list[str | None]:
        call = self.inference.StreamChatCompletion(v1.StreamChatCompletionRequest(request=chat("hi")))
        return [event.WhichOneof("event") async for event in call]


@asynccontextmanager
async def mesh_in(home: Path) -> AsyncIterator[Mesh]:
    built: dict[str, Any] = {}

    def remember(make: Callable[[ServiceContext], Any]) -> Callable[[ServiceContext], Any]:
        def wrapped(context: ServiceContext) -> Any:
            built[context.name] = make(context)
            return built[context.name]

        return wrapped

    builds = {
        "router": remember(build),
        "a": remember(obedient),
        "b": remember(obedient),
    }
    runtime = RuntimeConfig(tcp=False, socket_dir=home, drain_grace_seconds=0.5, drain_notice_seconds=0)
    config = StackConfig(file="test", runtime=runtime, sections={"router": {"lease_seconds": 60}})
    async with AsyncExitStack() as stack:
        hosted = await stack.enter_async_context(hosting(builds, config=config, home=home))
        # Without the SDK's retries, which would hide the router's.
        opened = await stack.enter_async_context(grpc.aio.insecure_channel(hosted[0].addresses[0]))
        nodes: Any = v1.NodesServiceStub(opened)
        models = [v1.Model(identifier="scripted", state=v1.MODEL_STATE_READY)]
        leases = {}
        for item, name in zip(hosted[1:], "ab", strict=True):
            request = v1.RegisterNodeRequest(
                node_id=name, address=item.addresses[0], report=v1.NodeReport(models=models)
            )
            leases[name] = (await nodes.RegisterNode(request)).lease_id
        registry = hosted[0].context.telemetry.registry
        inference: Any = v1.InferenceServiceStub(opened)
        yield Mesh(built["router"], built["a"], built["b"], inference, nodes, leases, registry)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh_in(tmp_path) as mesh:
        yield mesh


async def failure_of(call: Any) -> StackError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return from_rpc_error(failed.value)


async def test_an_overloaded_node_passes_the_call_on_and_when_all_are_the_caller_hears_it(mesh: Mesh) -> None:
    mesh.a.answer = ResourceExhaustedError("256 requests are in flight", retry_after=1.0)
    for _ in range(4):
        assert (await mesh.inference.ChatCompletion(chat("hi"))).id == "b"
    assert mesh.a.calls
    assert mesh.value("router_retries_total", reason="OVERLOADED") == mesh.a.calls
    mesh.b.answer = mesh.a.answer
    calls = mesh.a.calls + mesh.b.calls
    error = await failure_of(mesh.inference.ChatCompletion(chat("hi")))
    assert isinstance(error, ResourceExhaustedError)
    assert error.retry_after == 1.0
    assert mesh.a.calls + mesh.b.calls == calls + 2


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgumentError("n is 99", field="n"),
        NotFoundError("no such thing"),
        FailedPreconditionError("not now"),
        DataLossError("broken"),
        ResourceExhaustedError("17 MB", reason="MESSAGE_TOO_LARGE"),
    ],
    ids=lambda error: error.reason,
)
async def test_what_another_node_would_say_too_is_not_asked_again(mesh: Mesh, error: StackError) -> None:
    mesh.a.answer = mesh.b.answer = error
    heard = await failure_of(mesh.inference.ChatCompletion(chat("hi")))
    assert (type(heard), heard.message, heard.field) == (type(error), error.message, error.field)
    assert mesh.a.calls + mesh.b.calls == 1


async def test_a_node_that_answers_draining_gets_nothing_more_until_it_renews(mesh: Mesh) -> None:
    mesh.a.answer = UnavailableError("going away", reason="DRAINING")
    assert [(await mesh.inference.ChatCompletion(chat("hi"))).id for _ in range(6)] == ["b"] * 6
    assert mesh.a.calls == 1
    listed = await mesh.nodes.ListNodes(v1.ListNodesRequest())
    assert [node.state for node in listed.data] == [v1.NODE_STATE_DRAINING, v1.NODE_STATE_READY]


async def test_a_stream_moves_on_before_its_first_event_and_not_after_it(mesh: Mesh) -> None:
    mesh.a.answer = [UnavailableError("the engine starts", reason="NOT_READY")]
    mesh.b.answer = [BEAT, START, COMPLETE]
    assert [await mesh.stream() for _ in range(4)] == [["start", "complete"]] * 4
    assert mesh.a.calls
    mesh.b.answer = [START, UnavailableError("the engine died", reason="ENGINE_DIED")]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await mesh.stream()
    assert from_rpc_error(failed.value).reason == "ENGINE_DIED"


async def test_a_stream_without_its_terminal_event_ends_with_node_lost(mesh: Mesh) -> None:
    mesh.a.answer = mesh.b.answer = [START]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await mesh.stream()
    assert from_rpc_error(failed.value).reason == "NODE_LOST"


async def test_the_callers_metadata_goes_along_and_the_trace_goes_on(mesh: Mesh) -> None:
    trace = f"{1:032x}"
    metadata = [
        ("authorization", "Bearer me"),
        ("x-tenant", "blue"),
        ("x-blob-bin", b"\0\1"),
        ("x-request-id", "one-request"),
        ("traceparent", f"00-{trace}-{2:016x}-01"),
    ]
    answer = await mesh.inference.ChatCompletion(chat("hi"), metadata=metadata, timeout=30)
    [seen] = (mesh.a if answer.id == "a" else mesh.b).metadata
    expected = {key: value for key, value in metadata if key != "traceparent"}
    assert {key: seen.get(key) for key in expected} == expected
    _, trace_id, span_id, _ = str(seen["traceparent"]).split("-")
    assert trace_id == trace
    assert span_id != f"{2:016x}"


async def test_metrics_tell_requests_choices_and_nodes(mesh: Mesh) -> None:
    for _ in range(2):
        await mesh.inference.ChatCompletion(chat("x" * 2000))
    assert mesh.value("router_requests_total", node="a") + mesh.value("router_requests_total", node="b") == 2
    assert mesh.value("router_choices_total", why="load") == 1
    assert mesh.value("router_choices_total", why="prefix") == 1
    assert mesh.value("router_nodes", state="ready") == 2
    await mesh.nodes.UnregisterNode(v1.UnregisterNodeRequest(lease_id=mesh.leases["a"]))
    assert mesh.value("router_nodes", state="ready") == 1


async def test_the_router_is_ready_while_a_node_serves_a_model(mesh: Mesh) -> None:
    assert mesh.router.readiness.is_ready
    for lease in mesh.leases.values():
        await mesh.nodes.UnregisterNode(v1.UnregisterNodeRequest(lease_id=lease))
        await mesh.nodes.UnregisterNode(v1.UnregisterNodeRequest(lease_id=lease))
    assert "inference node" in mesh.router.readiness.reason


async def test_calls_about_nodes_that_are_not_there_are_refused(mesh: Mesh) -> None:
    unknown = await failure_of(mesh.nodes.RenewLease(v1.RenewLeaseRequest(lease_id="none")))
    assert (type(unknown), unknown.field) == (NotFoundError, "lease_id")
    unknown = await failure_of(mesh.nodes.DrainNode(v1.DrainNodeRequest(node_id="c")))
    assert (type(unknown), unknown.message) == (NotFoundError, "no node 'c'; this router has: a, b")
    empty = await failure_of(mesh.nodes.UnregisterNode(v1.UnregisterNodeRequest()))
    assert (empty.reason, empty.field) == ("MISSING_FIELD", "lease_id")
    empty = await failure_of(mesh.inference.ChatCompletion(v1.ChatCompletionRequest()))
    assert (empty.reason, empty.field) == ("MISSING_FIELD", "model_id")


async def test_an_unknown_model_and_a_model_that_loads_are_told_apart(mesh: Mesh) -> None:
    request = chat("hi")
    request.model_id = "gpt-9"
    error = await failure_of(mesh.inference.ChatCompletion(request))
    assert (error.reason, error.message) == ("MODEL_NOT_FOUND", "no model 'gpt-9'; this stack serves: scripted")
    loading = v1.Model(identifier="gpt-9", state=v1.MODEL_STATE_LOADING, state_message="reading weights")
    report = v1.NodeReport(models=[loading])
    await mesh.nodes.RenewLease(v1.RenewLeaseRequest(lease_id=mesh.leases["a"], report=report))
    error = await failure_of(mesh.inference.ChatCompletion(request))
    assert (error.reason, error.retry_after) == ("NOT_READY", 20.0)
    assert "reading weights" in error.message


async def test_the_sdk_reaches_nodes_through_the_router(mesh: Mesh) -> None:
    async with channel.connect(f"unix:{mesh.a.context.runtime.socket_dir}/router.sock") as opened:
        stub: Any = v1.InferenceServiceStub(opened)
        answers = await asyncio.gather(*(stub.ChatCompletion(chat("hi")) for _ in range(8)))
    assert {answer.id for answer in answers} == {"a", "b"}

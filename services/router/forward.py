"""Sending a call to a node, and to another one when that fails.

A unary call is tried again for UNAVAILABLE and for overload: nobody has seen an answer, so nothing can be seen twice. A
stream is tried again until its first event; after that the caller holds a part of one answer, and the stream ends with
NODE_LOST. Deadline, request id and trace travel by the runtime's interceptors, the caller's other metadata here.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import grpc

from llamastack import v1
from services.router.choice import Candidate, choose
from services.router.config import RouterConfig
from services.router.metrics import RouterMetrics
from services.router.nodes import NodeTable, RoutedNode
from services.runtime.stream import RpcContext
from stack_client.calls import STATUS_SECONDS, terminal_events
from stack_client.errors import (
    DETAILS_KEY,
    CancelledError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
    from_rpc_error,
)

T = TypeVar("T")

SESSION = "x-session-id"
"""Metadata key by which callers name a session; its calls stay on one node where load allows."""
MAX_SESSION = 256
"""Characters of a session's name that count."""
# Of the connection itself, or handed down by the runtime's interceptors with values of this hop.
_NOT_PASSED_ON = {"user-agent", "content-type", "te", "host", "traceparent", "tracestate", "x-request-id"}


@dataclass(frozen=True, kw_only=True)
class Errand:
    """What is to be sent."""

    method: str
    """The call's name, for example `Embed`."""
    request: Any
    model_id: str
    """The model that it is for."""
    metadata: Sequence[tuple[str, str | bytes]] = ()
    """What goes along."""
    chain: Sequence[bytes] = ()
    """The request's beginning, see `prefix`."""
    tried: set[str] = field(default_factory=set)
    """Nodes that failed."""

    def header(self, name: str) -> str:
        """A text header of the caller's, or ""."""
        found = [value for key, value in self.metadata if key == name and isinstance(value, str)]
        return found[0] if found else ""


class Forwarder:
    """Chooses nodes and talks to them."""

    def __init__(self, table: NodeTable, config: RouterConfig, *, metrics: RouterMetrics) -> None:
        self._table = table
        self._config = config
        self._metrics = metrics
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._choices = 0

    async def unary(self, errand: Errand) -> Any:  # noqa: ANN401 - a response of any type
        """The answer of the first node that has one.

        Raises:
            StackError: As the last node failed, or because there is none.
        """
        while True:
            node = self._choose(errand)
            call = getattr(node.inference, errand.method)(errand.request, metadata=errand.metadata)
            with node.calling(call):
                try:
                    return await _unless_lost(node, call)
                except (grpc.aio.AioRpcError, UnavailableError) as error:
                    failure = error
            self._go_on(errand, node, failure)

    async def stream(self, errand: Errand) -> AsyncGenerator[Any, None]:
        """The events of the first node that begins to answer, without heartbeats.

        Raises:
            StackError: As the last node failed, because there is none, or because the node was lost on the way.
        """
        while True:
            node = self._choose(errand)
            call = getattr(node.inference, errand.method)(errand.request, metadata=errand.metadata)
            begun = False
            with node.calling(call):
                try:
                    async with aclosing(_events(node, call)) as events:
                        async for event in events:
                            begun = True
                            yield event
                    return
                except (grpc.aio.AioRpcError, UnavailableError) as error:
                    failure = error
            if begun:
                raise self._error(node, failure)
            self._go_on(errand, node, failure)

    def _choose(self, errand: Errand) -> RoutedNode:
        """The node to try next."""
        usable = self._usable(errand)
        if not usable:
            raise self._nobody(errand.model_id)
        candidates = [
            Candidate(
                node_id=node.node_id,
                load=node.load,
                matched=node.prefixes.matched(errand.chain),
                last_chosen=node.last_chosen,
            )
            for node in usable
        ]
        session = errand.header(SESSION)[:MAX_SESSION]
        choice = choose(candidates, sticky=self._sessions.get(session) if session else None, rules=self._config)
        [node] = [node for node in usable if node.node_id == choice.node_id]
        self._choices += 1
        node.last_chosen = self._choices
        node.prefixes.add(errand.chain)
        if session:
            self._sessions[session] = node.node_id
            self._sessions.move_to_end(session)
            if len(self._sessions) > self._config.sessions_kept:
                self._sessions.popitem(last=False)
        self._metrics.choices.labels(choice.why).inc()
        self._metrics.requests.labels(node.node_id).inc()
        return node

    def _usable(self, errand: Errand) -> list[RoutedNode]:
        """Nodes that can take it and have not failed with it; suspects only where nobody else can."""
        nodes = [
            node for node in self._table.alive if node.serves(errand.model_id) and node.node_id not in errand.tried
        ]
        ready = [node for node in nodes if node.state == v1.NODE_STATE_READY]
        return ready or [node for node in nodes if node.state == v1.NODE_STATE_SUSPECT]

    def _go_on(self, errand: Errand, node: RoutedNode, failure: grpc.aio.AioRpcError | UnavailableError) -> None:
        """Return when another node may be tried, else raise what the caller gets."""
        error = self._error(node, failure)
        errand.tried.add(node.node_id)
        elsewhere = isinstance(error, UnavailableError) or (
            isinstance(error, ResourceExhaustedError) and error.reason == "OVERLOADED"
        )
        if not elsewhere or len(errand.tried) >= self._config.attempts or not self._usable(errand):
            raise error from None
        self._metrics.retries.labels(error.reason).inc()

    def _error(self, node: RoutedNode, failure: grpc.aio.AioRpcError | UnavailableError) -> StackError:
        """What a failure means; notes what it says about the node."""
        if isinstance(failure, UnavailableError):
            return failure
        error = from_rpc_error(failure)
        if _has_details(failure):
            if error.reason == "DRAINING":
                self._table.draining(node)
            return error
        if isinstance(error, (UnavailableError, CancelledError)):  # a server that stops hard cancels its calls
            self._table.suspect(node)
            return _lost(node, error.message)
        return error

    def _nobody(self, model_id: str) -> StackError:
        """Why no node can take a request for a model."""
        pause = self._config.lease_seconds / 3
        if not self._table.alive:
            return self._table.nobody()
        model = self._table.models.get(model_id)
        if model is None:
            return self._table.unknown(model_id)
        if model.state == v1.MODEL_STATE_READY:
            return UnavailableError(f"every node that serves {model_id!r} is shutting down", retry_after=pause)
        message = f"model {model_id!r} is not ready on any node: {model.state_message or 'loading'}"
        return UnavailableError(message, reason="NOT_READY", retry_after=pause)


def passed_on(context: RpcContext) -> list[tuple[str, str | bytes]]:
    """The caller's metadata that goes along to a node: credentials, tenant, session and what we do not know."""
    # Plain pairs at run time, whatever the type stubs call them.
    given = cast("Sequence[tuple[str, str | bytes]]", context.invocation_metadata() or ())
    return [(key, value) for key, value in given if key not in _NOT_PASSED_ON and not key.startswith(("grpc-", ":"))]


async def _unless_lost(node: RoutedNode, call: Awaitable[T]) -> T:
    """The call's answer; when the node is lost meanwhile, which cancels the call, an error that says so."""
    try:
        return await call
    except asyncio.CancelledError:
        if _cancelled_from_outside() or not node.lost:
            raise
        raise _lost(node, "its lease ran out") from None


async def _events(node: RoutedNode, call: Any) -> AsyncGenerator[Any, None]:  # noqa: ANN401 - calls of any type
    """A stream's events up to the terminal one; heartbeats are this router's to send."""
    responses = aiter(call)
    while True:
        try:
            event = await anext(responses)
        except StopAsyncIteration:
            raise _lost(node, "its stream ended without a terminal event") from None
        except asyncio.CancelledError:
            if _cancelled_from_outside() or not node.lost:
                raise
            raise _lost(node, "its lease ran out") from None
        kind = event.WhichOneof("event")
        if kind != "heartbeat":
            yield event
        if kind in terminal_events(event.DESCRIPTOR):
            await _read_status(responses)
            return


async def _read_status(responses: AsyncIterator[Any]) -> None:
    """Let the call end by itself, or the node would count it as cancelled by its caller."""
    try:
        async with asyncio.timeout(STATUS_SECONDS):
            async for _ in responses:
                pass
    except (TimeoutError, grpc.aio.AioRpcError):
        pass  # the terminal event has said how it ended
    except asyncio.CancelledError:  # the node was lost just now
        if _cancelled_from_outside():
            raise


def _cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _has_details(error: grpc.aio.AioRpcError) -> bool:
    """Whether a service of the mesh said it, not the transport."""
    pairs = cast("Sequence[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    return any(key == DETAILS_KEY for key, _ in pairs)


def _lost(node: RoutedNode, why: str) -> UnavailableError:
    message = f"node {node.node_id} is gone ({why}); ask again to reach another node"
    return UnavailableError(message, reason="NODE_LOST", metadata={"node": node.node_id})

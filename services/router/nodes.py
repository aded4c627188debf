"""The nodes that registered: leases, states, what each serves, and the calls that run there."""

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from llamastack import v1
from services.router.config import RouterConfig
from services.router.prefix import PrefixMemory
from stack_client.errors import InvalidArgumentError, NotFoundError, StackError, UnavailableError

FORGOTTEN_AFTER_LEASES = 10
"""Leases after which a lost node is no longer listed."""
MAX_ID = 128


class RoutedNode:
    """One registration of a node; a node that registers again is another one."""

    def __init__(self, request: v1.RegisterNodeRequest, *, channel: grpc.aio.Channel, prefixes: PrefixMemory) -> None:
        self.node_id = request.node_id
        self.address = request.address
        self.lease_id = secrets.token_hex(8)
        self.channel = channel
        self.inference: Any = v1.InferenceServiceStub(channel)
        self.models_stub: Any = v1.ModelsServiceStub(channel)
        self.prefixes = prefixes
        self.expires = 0.0
        """When the lease runs out, on the table's clock."""
        self.drained = False
        """Somebody asked that it gets no new work."""
        self.suspect = False
        """It could not be reached since its last renewal."""
        self.lost = False
        """The lease ran out, or it left."""
        self.last_chosen = 0
        self.models: dict[str, v1.Model] = {}
        self.draining = False
        """It shuts down."""
        self._load = v1.NodeLoad()
        self._calls: set[Any] = set()
        self._calls_at_report = 0

    def report(self, report: v1.NodeReport) -> None:
        """Take what the node tells about itself."""
        self.draining = report.draining
        self._load = report.load
        self._calls_at_report = len(self._calls)
        self.models = {model.identifier: model for model in report.models}
        self.suspect = False

    @contextmanager
    def calling(self, call: Any) -> Iterator[None]:  # noqa: ANN401 - calls of any shape
        """Count a call in and out; on the way out it is cancelled unless it has ended."""
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)
            call.cancel()

    def lose(self) -> None:
        """The node is gone: end the calls that run there."""
        self.lost = True
        for call in list(self._calls):
            call.cancel()

    @property
    def in_flight(self) -> int:
        """Calls of this router that run there."""
        return len(self._calls)

    @property
    def load(self) -> int:
        """Requests that it has now: what it told, corrected by what this router began and ended there since."""
        told = self._load.running + self._load.waiting
        return max(self.in_flight, told + self.in_flight - self._calls_at_report)

    @property
    def state(self) -> "v1.NodeState.ValueType":
        """Whether it gets work."""
        if self.lost:
            return v1.NODE_STATE_LOST
        if self.draining or self.drained:
            return v1.NODE_STATE_DRAINING
        return v1.NODE_STATE_SUSPECT if self.suspect else v1.NODE_STATE_READY

    def serves(self, model_id: str) -> bool:
        """Whether the model is ready there."""
        return model_id in self.models and self.models[model_id].state == v1.MODEL_STATE_READY

    def as_message(self, *, expires_at: float) -> v1.Node:
        """The node as ListNodes shows it; `expires_at` is a Unix time."""
        node = v1.Node(
            node_id=self.node_id,
            address=self.address,
            state=self.state,
            load=self._load,
            ready_models=[model_id for model_id in sorted(self.models) if self.serves(model_id)],
            calls_in_flight=self.in_flight,
        )
        node.lease_expires_at.FromNanoseconds(int(expires_at * 1e9))
        return node


class NodeTable:
    """All nodes by id.

    Args:
        config: Lease and memory.
        open_channel: Makes a channel to an address.
        on_change: Called when a node comes, goes or changes its state.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        config: RouterConfig,
        *,
        open_channel: Callable[[str], grpc.aio.Channel],
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._open_channel = open_channel
        self._on_change = on_change
        self._clock = clock
        self._nodes: dict[str, RoutedNode] = {}
        self._leaving: list[RoutedNode] = []
        self._looked = clock()

    @property
    def nodes(self) -> Sequence[RoutedNode]:
        """All nodes by id, those lost lately included."""
        return [self._nodes[node_id] for node_id in sorted(self._nodes)]

    @property
    def alive(self) -> Sequence[RoutedNode]:
        """Nodes with a lease."""
        return [node for node in self.nodes if not node.lost]

    @property
    def models(self) -> Mapping[str, v1.Model]:
        """What the living nodes serve, by identifier; of one model the registration that is furthest."""
        best: dict[str, v1.Model] = {}
        for node in self.alive:
            for model_id, model in node.models.items():
                if model_id not in best or _rank(model) > _rank(best[model_id]):
                    best[model_id] = model
        return dict(sorted(best.items()))

    def register(self, request: v1.RegisterNodeRequest) -> RoutedNode:
        """Add a node; one of that id before gives way, and what runs there goes on.

        Raises:
            InvalidArgumentError: If id or address are missing or too long.
        """
        for field in ("node_id", "address"):
            if not getattr(request, field):
                raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
        if len(request.node_id) > MAX_ID:
            raise InvalidArgumentError(f"node_id has more than {MAX_ID} characters", field="node_id")
        before = self._nodes.get(request.node_id)
        if before is not None:
            self._leaving.append(before)
        prefixes = PrefixMemory(self._config.prefix_blocks_kept)
        node = RoutedNode(request, channel=self._open_channel(request.address), prefixes=prefixes)
        self._nodes[node.node_id] = node
        self._renew(node, request.report)
        return node

    def renew(self, lease_id: str, report: v1.NodeReport) -> None:
        """Extend a lease.

        Raises:
            NotFoundError: If no living node has it.
        """
        for node in self.alive:
            if node.lease_id == lease_id:
                self._renew(node, report)
                return
        raise NotFoundError(f"no node has the lease {lease_id!r}; register again", field="lease_id")

    def unregister(self, lease_id: str) -> None:
        """Let a node go; what runs there goes on. An unknown lease is gone already."""
        for node in self.nodes:
            if node.lease_id == lease_id:
                node.expires = math.inf  # it renews no more, and what it still answers may take its time
                del self._nodes[node.node_id]
                self._leaving.append(node)
                self._on_change()

    def drain(self, node_id: str, *, undo: bool) -> RoutedNode:
        """Give a node no new work, or give it work again.

        Raises:
            NotFoundError: If there is none of that id.
        """
        node = self._nodes.get(node_id)
        if node is None:
            known = ", ".join(sorted(self._nodes)) or "none"
            raise NotFoundError(f"no node {node_id!r}; this router has: {known}", field="node_id")
        node.drained = not undo
        self._on_change()
        return node

    def suspect(self, node: RoutedNode) -> None:
        """A call could not reach a node: it gets no work before its next renewal if others can do it."""
        node.suspect = True
        self._on_change()

    def draining(self, node: RoutedNode) -> None:
        """A node refused a call because it shuts down, before it said so itself."""
        node.draining = True
        self._on_change()

    def message(self, node: RoutedNode) -> v1.Node:
        """A node as ListNodes shows it."""
        return node.as_message(expires_at=time.time() + node.expires - self._clock())

    def nobody(self) -> UnavailableError:
        """Why nothing can be done while no node is alive."""
        message = "no inference node is registered at this router; start one, or wait until it comes back"
        return UnavailableError(message, retry_after=self._config.lease_seconds / 3)

    def unknown(self, model_id: str) -> StackError:
        """Why a model that no living node has cannot answer; the message lists those served."""
        if not model_id:
            return InvalidArgumentError("model_id is empty", reason="MISSING_FIELD", field="model_id")
        served = ", ".join(self.models) or "none"
        message = f"no model {model_id!r}; this stack serves: {served}"
        return NotFoundError(message, reason="MODEL_NOT_FOUND", metadata={"model": model_id}, field="model_id")

    async def sweep(self) -> None:
        """Lose nodes whose lease ran out, forget those lost long ago, close channels that nobody uses any more."""
        now = self._clock()
        paused = now - self._looked > self._config.lease_seconds / 2
        self._looked = now
        for node in self.nodes:
            if paused and not node.lost:
                # This process stood still and heard no renewals: that is no fault of the nodes.
                node.expires = max(node.expires, now + self._config.lease_seconds)
            if not node.lost and node.expires <= now:
                node.lose()
                self._on_change()
            if node.expires + FORGOTTEN_AFTER_LEASES * self._config.lease_seconds <= now:
                del self._nodes[node.node_id]
                self._leaving.append(node)
                self._on_change()
        for node in self._leaving:
            if node.expires <= now:
                node.lose()
        idle = [node for node in self._leaving if not node.in_flight]
        self._leaving = [node for node in self._leaving if node.in_flight]
        for node in idle:
            await node.channel.close(None)

    async def close(self) -> None:
        """Close all channels; calls that still run are cancelled."""
        for node in [*self.nodes, *self._leaving]:
            await node.channel.close(None)

    def _renew(self, node: RoutedNode, report: v1.NodeReport) -> None:
        node.report(report)
        node.expires = self._clock() + self._config.lease_seconds
        self._on_change()


def _rank(model: v1.Model) -> int:
    """How far a model is: ready before loading before failed."""
    order = (v1.MODEL_STATE_FAILED, v1.MODEL_STATE_LOADING, v1.MODEL_STATE_READY)
    return order.index(model.state) if model.state in order else -1

"""What the router counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from llamastack import v1
from services.router.nodes import NodeTable

STATES = ("ready", "draining", "suspect", "lost")


class RouterMetrics:
    """The router's own metrics, beside those of every service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("router_requests", "Calls sent to a node.", ["node"], registry=registry)
        self.choices = Counter(
            "router_choices", "Choices of a node, by what decided: prefix, load or session.", ["why"], registry=registry
        )
        self.retries = Counter(
            "router_retries", "Calls tried again on another node, by the reason of the failure.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self._nodes = Gauge("router_nodes", "Nodes by state.", ["state"], registry=registry)

    def show(self, table: NodeTable) -> None:
        """Count the nodes by state."""
        names = [v1.NodeState.Name(node.state).removeprefix("NODE_STATE_").lower() for node in table.nodes]
        for state in STATES:
            self._nodes.labels(state).set(names.count(state))

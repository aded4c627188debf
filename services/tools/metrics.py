"""What the tools service counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ToolMetrics:
    """Calls by provider; names of groups and tools are the tenants' and no labels.

    Args:
        registry: The process's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "tool_calls", "Calls by provider and how they ended.", ["provider", "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "tool_call_seconds", "Seconds that tools ran.", ["provider"], buckets=_SECONDS, registry=registry
        )
        self._running = Gauge("tool_calls_running", "Calls that run now.", ["provider"], registry=registry)
        self._cut = Counter(
            "tool_outputs_cut", "Outputs of which head and tail were sent, by where the whole is.", ["kept"],
            registry=registry,
        )  # fmt: skip

    def started(self, provider: str) -> None:
        """A tool runs."""
        self._running.labels(provider).inc()

    def stopped(self, provider: str, *, seconds: float) -> None:
        """It does not any more."""
        self._running.labels(provider).dec()
        self._seconds.labels(provider).observe(seconds)

    def ended(self, provider: str, *, outcome: str) -> None:
        """Count a call."""
        self._calls.labels(provider, outcome).inc()

    def cut(self, kept: str) -> None:
        """Count an output that was too long."""
        self._cut.labels(kept).inc()

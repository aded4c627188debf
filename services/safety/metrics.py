"""What the safety service counts."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from llamastack import v1
from services.safety.shield import surface_name


class SafetyMetrics:
    """Verdicts, their time, and what moderated streams cost."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._verdicts = Counter(
            "safety_verdicts", "Verdicts by shield, surface and action.", ["shield", "surface", "action"],
            registry=registry,
        )  # fmt: skip
        self._errors = Counter(
            "safety_unjudged", "Texts that a shield could not judge, by whether they passed.", ["shield", "passed"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram("safety_judgement_seconds", "Time of a judgement.", ["shield"], registry=registry)
        self._cached = Counter("safety_cached_verdicts", "Verdicts from the cache.", ["shield"], registry=registry)
        self.streams = Counter("safety_streams", "Moderated streams by how they ended.", ["end"], registry=registry)
        self.guard_calls = Counter("safety_stream_guard_calls", "Guard calls of moderated streams.", registry=registry)
        self.guard_bytes = Counter("safety_stream_guard_bytes", "Bytes sent to guards by streams.", registry=registry)

    def judged(self, verdict: v1.Verdict, *, seconds: float) -> None:
        """Count one verdict."""
        action = v1.SafetyAction.Name(verdict.action).removeprefix("SAFETY_ACTION_").lower()
        self._verdicts.labels(verdict.shield_id, surface_name(verdict.surface), action).inc()
        self._seconds.labels(verdict.shield_id).observe(seconds)
        if verdict.cached:
            self._cached.labels(verdict.shield_id).inc()
        if verdict.HasField("error"):
            passed = verdict.action < v1.SAFETY_ACTION_HOLD
            self._errors.labels(verdict.shield_id, str(passed).lower()).inc()

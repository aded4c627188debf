"""What ingestion measures about itself."""

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60)


class IngestMetrics:
    """Metrics of ingestion.

    Args:
        registry: The process's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._documents = Counter(
            "memory_ingest_documents", "Documents handled, by outcome.", ["outcome"], registry=registry
        )
        self._bytes = Counter("memory_ingest_bytes", "Bytes of documents read.", registry=registry)
        self._seconds = Histogram(
            "memory_ingest_seconds", "Seconds by stage.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._failures = Counter(
            "memory_ingest_failures", "Documents that failed, by reason.", ["reason"], registry=registry
        )

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure a stage: fetch, parse, cut, context, store, and embed, which is a part of store."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds.labels(stage).observe(time.perf_counter() - began)

    def handled(self, outcome: str, *, size: int) -> None:
        """Count a document: inserted, replaced, unchanged."""
        self._documents.labels(outcome).inc()
        self._bytes.inc(size)

    def failed(self, reason: str) -> None:
        """Count a document that could not be ingested."""
        self._documents.labels("failed").inc()
        self._failures.labels(reason).inc()

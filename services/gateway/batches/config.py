"""Configuration of the batches, part `batches` of the gateway's section."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchesConfig:
    """Bounds of what batches read and run."""

    concurrency: int = 8
    """Requests of batches that this process runs at once."""
    batches_at_once: int = 16
    """Batches that this process works on at once; they share `concurrency`. 0 leaves all to other processes."""
    max_lines: int = 50_000
    """Requests of one batch."""
    max_file_bytes: int = 200 << 20
    """Size of an input file."""
    max_line_bytes: int = 8 << 20
    """Size of one request in it."""
    lease_seconds: float = 15.0
    """How long a batch of a process that hangs or was cut off waits before another one takes it over."""
    poll_seconds: float = 1.0
    """How often batches and cancels of other processes are looked for."""
    retry_seconds: float = 0.5
    """Pause before a request that met overload is tried again; it doubles with every further try, up to 30."""
    request_seconds: float = 900.0
    """Longest run of one request; then it counts as ended with 504."""
    timeout_tries: int = 5
    """Tries of a request that ends with 504: one that always takes too long must not run for the whole window."""

    def __post_init__(self) -> None:
        """Refuse bounds with which nothing could run."""
        for name in ("concurrency", "max_lines", "max_file_bytes", "max_line_bytes", "timeout_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give at least 1")
        for name in ("request_seconds", "lease_seconds", "poll_seconds", "retry_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give more than 0")
        if self.batches_at_once < 0:
            raise ValueError(f"batches_at_once: {self.batches_at_once} is too small; give at least 0")

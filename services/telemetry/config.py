"""Configuration of the telemetry service, section `telemetry` of the stack's file."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TelemetryServiceConfig:
    """Where telemetry is kept, how long and how much."""

    database: str = ""
    """URL of the store, `sqlite:////file` or `postgresql://user@host/name`; empty means that of the environment
    variable `STACK_TELEMETRY_DATABASE`, which may hold a password, else a SQLite file in the data folder."""
    database_password_file: Path | None = None
    """File that holds the password of the database; unset means the one named by `STACK_TELEMETRY_PASSWORD_FILE`, else
    what the URL says."""
    days: float = 7
    """Days that spans and metrics are kept; events say themselves how long."""
    max_spans: int = 1_000_000
    """Spans kept at most; the oldest go first."""
    max_waiting: int = 100_000
    """Spans and points that wait to be written; more are refused with OVERLOADED."""
    sweep_seconds: float = 60.0
    """Pause between two rounds in which what is too old is deleted."""

    def __post_init__(self) -> None:
        """Refuse bounds with which nothing could be kept."""
        for name in ("days", "max_spans", "max_waiting", "sweep_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name):g} is too small; give more than 0")

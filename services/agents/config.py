"""Configuration of the agents service, section `agents` of the stack's file."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AgentsConfig:
    """Store and bounds of the agents service."""

    database: str = ""
    """SQLAlchemy URL of the store, with a synchronous driver; empty means a SQLite file in the data folder."""
    running_turns: int = 64
    """Turns that run at a time; more wait their turn."""
    max_infer_iters: int = 10
    """Inference steps per turn, where the agent does not say."""
    inference_attempts: int = 5
    """Tries of one inference step while the inference service is unavailable."""
    inference_retry_seconds: float = 0.5
    """Pause before the second try; it doubles with every further one."""

    def __post_init__(self) -> None:
        """Refuse what no turn could run with."""
        for name in ("running_turns", "max_infer_iters", "inference_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give at least 1")

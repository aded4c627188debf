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

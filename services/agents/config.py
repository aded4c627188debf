"""Configuration of the agents service, section `agents` of the stack's file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AgentsConfig:
    """Store and bounds of the agents service."""

    database: str = ""
    """SQLAlchemy URL of the store, SQLite or PostgreSQL; empty means the environment variable `STACK_AGENTS_DATABASE`,
    which may hold a password, else a SQLite file in the data folder."""
    database_password_file: Path | None = None
    """File that holds the password of the database; unset means the one named by `STACK_AGENTS_PASSWORD_FILE`, else
    what the URL says."""
    durability: Literal["process", "power"] = "process"
    """What a call that must not be repeated waits for before it is sent: `process`, that the intent survives a kill of
    this process; `power`, that it is on the disk. Servers such as PostgreSQL always wait for the disk."""
    lease_seconds: float = 15.0
    """How long a turn of a process that hangs or was cut off waits before another one takes it over."""
    redis: str = ""
    """URL of a Redis whose stream tells other replicas of new events; empty means the environment variable
    `STACK_AGENTS_REDIS`, else they look into the database."""
    redis_stream: str = "llamastack:turns"
    """Key of that stream; replicas of one database share it."""
    watch_seconds: float = 0.25
    """How often a watcher looks for events of a turn that runs on another replica, where no Redis tells."""
    running_turns: int = 64
    """Turns that run at a time; more wait their turn."""
    parallel_tools: int = 8
    """Tools of one turn that run side by side, where the agent does not say."""
    max_infer_iters: int = 10
    """Inference steps per turn, where the agent does not say."""
    inference_attempts: int = 5
    """Tries of one inference step while the inference service is unavailable."""
    inference_retry_seconds: float = 0.5
    """Pause before the second try; it doubles with every further one."""

    def __post_init__(self) -> None:
        """Refuse what no turn could run with."""
        for name in ("running_turns", "max_infer_iters", "inference_attempts", "parallel_tools"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give at least 1")
        for name in ("lease_seconds", "watch_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give more than 0")

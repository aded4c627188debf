"""What the service and the engine's process say to each other, and how that process starts; free of torch."""

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from services.inference.engine.request import Emission, EngineLimits, Figures, Request

SPIN_COUNT = "2000"


@dataclass(frozen=True, kw_only=True)
class Load:
    """Load a model; answered by `Loaded` or `LoadFailed`."""

    model: str
    kind: Literal["llm", "embedding"]
    path: Path
    cache_dir: Path
    dtype: str
    device: str
    limits: EngineLimits


@dataclass(frozen=True, kw_only=True)
class Unload:
    """Forget a model and all its requests."""

    model: str


@dataclass(frozen=True, kw_only=True)
class Add:
    """Start a request; answered by emissions in `Stepped`, or by `RequestFailed`."""

    model: str
    request: Request


@dataclass(frozen=True, kw_only=True)
class Abort:
    """Drop a request; not answered."""

    model: str
    request_id: str


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed texts given as token ids; answered by `Embedded` or `RequestFailed`."""

    model: str
    request_id: str
    texts: list[list[int]]


@dataclass(frozen=True)
class Stop:
    """End the process. Closing the pipe would not do: our reader's blocked read keeps it open."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model serves now."""

    model: str
    folder: Path
    dtype: str
    parameters: int
    dimension: int = 0
    """Length of an embedding model's vectors; 0 for text models."""
    cached_tokens: int = 0
    """Tokens that the key/value cache holds; 0 for embedding models."""


@dataclass(frozen=True, kw_only=True)
class LoadFailed:
    """A model could not be loaded."""

    model: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What loading a model is doing."""

    model: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """The new tokens of one step, of all requests of one model; none when only the figures changed."""

    model: str
    emissions: list[Emission]
    figures: Figures
    queued: list[float]
    """Seconds that requests waited which had their first step now."""


@dataclass(frozen=True, kw_only=True)
class RequestFailed:
    """A request was refused, or ended by a fault of its own."""

    request_id: str
    message: str
    internal: bool = False
    """Whether the fault is ours."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The vectors of an `Embed`, row-major float32 of shape (texts, dimension)."""

    request_id: str
    vectors: bytes
    dimension: int


Command = Load | Unload | Add | Abort | Embed | Stop
Event = Loaded | LoadFailed | Progress | Stepped | RequestFailed | Embedded


def run(connection: Connection, threads: int) -> None:
    """Target of the spawned process; imports torch only there."""
    # OpenMP's threads otherwise spin for milliseconds at every barrier, which ruins them and their neighbours on a busy
    # machine; read when the library is loaded, so it must stand before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    from services.inference.engine.worker import main  # noqa: PLC0415

    main(connection, threads)

"""What the service and the engine's process say to each other, and how that process starts; free of torch."""

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from services.inference.engine.request import Emission, EngineLimits, Figures, Request
from services.llama.config import Quantisation

SPIN_COUNT = "2000"


@dataclass(frozen=True, kw_only=True)
class Load:
    """Load a model; answered by `Loaded` or `LoadFailed`."""

    model: str
    kind: Literal["llm", "embedding", "classifier", "rerank"]
    path: Path
    cache_dir: Path
    dtype: str
    """Of a text model's weights that are not quantised, and of its keys and values."""
    device: str
    limits: EngineLimits
    quantisation: Literal["auto"] | Quantisation = "none"
    """Format of a text model's weights; auto is int8 where the compiled kernels run, else none."""
    kernels: bool = True
    """Whether the compiled kernels may run it, in their own arithmetic."""
    tensor_parallel: int = 1
    """Processes that compute a text model together; 1 is the engine's own alone."""
    threads: int = 1
    """CPU threads of the engine, which those processes divide among them."""


@dataclass(frozen=True, kw_only=True)
class LoadAdapter:
    """Load a LoRA adapter; answered by `Loaded` or `LoadFailed`. It waits while its base is being loaded."""

    model: str
    """Identifier under which the adapter is served."""
    base: str
    """The loaded text model that it changes."""
    path: Path
    """Folder in PEFT's format."""


@dataclass(frozen=True, kw_only=True)
class Unload:
    """Forget a model or an adapter, and all its requests."""

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


@dataclass(frozen=True, kw_only=True)
class Classify:
    """Classify windows given as token ids with their special tokens; answered by `Classified` or `RequestFailed`.

    To a rerank model a window is a query and an item.
    """

    model: str
    request_id: str
    windows: list[list[int]]
    firsts: list[int] | None = None
    """Of each window, how many tokens belong to the first of two texts; None = the windows are single texts."""


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
    """Length of an embedding model's vectors, classes of a classifier, 1 for rerank models; 0 for text models."""
    architecture: str = ""
    """Of a classifier or rerank model, as its folder names it."""
    cached_tokens: int = 0
    """Tokens that the key/value cache holds; 0 for embedding models."""
    quantisation: Quantisation = "none"
    """Format of a text model's weights."""
    kernels: str = ""
    """Variant of the compiled kernels that runs it; empty for plain PyTorch."""
    weights_hash: str = ""
    """Identity of the weights of a model other than embedding ones, or of those that an adapter says it was trained on;
    "" when it does not."""
    rank: int = 0
    """An adapter's largest rank; 0 for models."""
    targets: tuple[str, ...] = ()
    """Kinds of linears that an adapter changes; empty for models."""


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


@dataclass(frozen=True, kw_only=True)
class Classified:
    """The raw outputs of a `Classify`, row-major float32 of shape (windows, classes)."""

    request_id: str
    logits: bytes
    classes: int


Command = Load | LoadAdapter | Unload | Add | Abort | Embed | Classify | Stop
Event = Loaded | LoadFailed | Progress | Stepped | RequestFailed | Embedded | Classified


def run(connection: Connection, threads: int) -> None:
    """Target of the spawned process; imports torch only there."""
    # OpenMP's threads otherwise spin for milliseconds at every barrier, which ruins them and their neighbours on a busy
    # machine; read when the library is loaded, so it must stand before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    from services.inference.engine.worker import main  # noqa: PLC0415

    main(connection, threads)

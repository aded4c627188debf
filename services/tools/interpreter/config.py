"""Settings of the code interpreter, `tools.providers.code-interpreter`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class WasmConfig:
    """Python in WebAssembly: the standard library, no packages."""

    fuel: int = 150_000_000_000
    """Units of work that a call may use, about 5e9 a second; loops without end stop here or at `seconds`."""
    memory_bytes: int = 256 * MIB
    """Memory of a call."""
    warm: int = 1
    """Processes kept started for the next calls, 45 MiB each; 0 starts one with each call."""


@dataclass(frozen=True, kw_only=True)
class NativeConfig:
    """Python of the system behind bubblewrap: numpy, pandas and whatever else its environment has."""

    python: Path | None = None
    """The interpreter; None is the one that runs the service. Its whole environment can be read by the code."""
    bubblewrap: str = "bwrap"
    """The launcher: a path, or a name on PATH."""
    readable: tuple[Path, ...] = ()
    """More files and folders that the code may read."""
    memory_bytes: int = 1024 * MIB
    """Memory of all processes of a kernel together, and address space of each beyond what libraries reserve."""
    processes: int = 64
    """Processes and threads of a kernel."""
    kernels: int = 4
    """Kernels kept between calls; the one idle for longest makes room."""
    idle_seconds: float = 600.0
    """Idle time after which a kernel's variables are written down and it ends."""
    uid: int = 65534
    """User as whom the code runs where the service is root; elsewhere it runs as the service's user, mapped."""


@dataclass(frozen=True, kw_only=True)
class InterpreterConfig:
    """Where code runs, and what a call may cost."""

    tier: Literal["auto", "wasm", "native"] = "auto"
    """`wasm`, `native`, or `auto`: wasm where its packages are installed, else native where the kernel allows it."""
    prepare: Literal["start", "use"] = "start"
    """When a tier is made ready (python.wasm compiled, the sandbox tried): in the background of the service's start, or
    with the first call."""
    seconds: float = 30.0
    """Wall clock of a call; a call's own shorter timeout goes first."""
    concurrency: int = 4
    """Calls that run at once; others wait."""
    output_bytes: int = 64 << 10
    """Of each of stdout and stderr in a result; the middle of longer output is left out."""
    flood_bytes: int = 16 * MIB
    """Output at which a call is ended."""
    disk_bytes: int = 64 * MIB
    """Files of a call or session, its kept variables included."""
    disk_entries: int = 1000
    """Files and folders of a call or session."""
    attachments: int = 16
    """Files that a result brings back at most."""
    attachment_bytes: int = 4 * MIB
    """Of them together."""
    session_seconds: float = 86_400.0
    """Time without a call after which a session's files and variables are deleted."""
    sessions_bytes: int = 1024 * MIB
    """Of all sessions on disk; those unused for longest make room."""
    wasm: WasmConfig = field(default_factory=WasmConfig)
    """The tier `wasm`."""
    native: NativeConfig = field(default_factory=NativeConfig)
    """The tier `native`."""

    def __post_init__(self) -> None:
        positive = (
            "seconds", "concurrency", "output_bytes", "flood_bytes", "disk_bytes", "disk_entries", "session_seconds",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0")
        for name in ("attachments", "attachment_bytes", "sessions_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must not be below 0")

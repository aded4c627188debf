"""The folder of a stack on this machine, and the record of the stack that runs there."""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stack_client.errors import FailedPreconditionError


@dataclass(frozen=True, kw_only=True)
class ServiceRecord:
    """One service of a running stack."""

    process: str
    """The process that hosts it."""
    addresses: list[str]
    """Targets to dial; the first is preferred."""


@dataclass(frozen=True, kw_only=True)
class ProcessRecord:
    """One supervised process."""

    pid: int
    """Its process id, which is also its process group."""
    created: float
    """When the system started it, in seconds since 1970; tells it from a later process with the same id."""


@dataclass(kw_only=True)
class StackRecord:
    """The running stack, kept in `run/stack.json`."""

    pid: int
    """Process id of the supervisor."""
    version: str
    """Version of the distribution."""
    started_at: str
    """When the supervisor started, ISO 8601."""
    config: str | None
    """The configuration file, if one was given."""
    services: dict[str, ServiceRecord] = field(default_factory=dict)
    """The services by name."""
    processes: dict[str, ProcessRecord] = field(default_factory=dict)
    """The supervised processes by name."""


@dataclass(frozen=True, kw_only=True)
class Home:
    """The folder of a stack: `run/` for what lives, `logs/`, `data/` to keep, `cache/` that can be made again."""

    path: Path
    """The folder."""

    @classmethod
    def choose(cls, given: Path | None) -> "Home":
        """The folder given, else that of STACK_HOME, else `~/.llama-stack-mesh`."""
        chosen = given or Path(os.environ.get("STACK_HOME") or Path.home() / ".llama-stack-mesh")
        return cls(path=chosen.expanduser().absolute())

    @property
    def run(self) -> Path:
        """Sockets, lock and record of the running stack; mode 0700."""
        return self.path / "run"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.path / "logs"

    @property
    def record_path(self) -> Path:
        """The record of the running stack."""
        return self.run / "stack.json"

    @property
    def lock_path(self) -> Path:
        """Locked by the supervisor for life; holds its process id."""
        return self.run / "stack.lock"

    def create(self) -> None:
        """Make the folders."""
        for folder in (self.path, self.logs, self.path / "data", self.path / "cache"):
            folder.mkdir(parents=True, exist_ok=True)
        self.run.mkdir(mode=0o700, exist_ok=True)
        self.run.chmod(0o700)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one stack of this home.

        Raises:
            FailedPreconditionError: Another one is running; the message names it.
        """
        self.create()
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FailedPreconditionError(
                    f"a stack is already running in {self.path} (pid {self.running_pid() or 'unknown'}); see it with "
                    "`stack status`, stop it with `stack down`, or give another --home"
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def running_pid(self) -> int | None:
        """Process id of the running supervisor; None when no stack is running."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 20, 0).decode().strip()
            return int(text) if text.isdigit() else None
        else:
            return None
        finally:
            os.close(descriptor)

    def read_record(self) -> StackRecord | None:
        """What `stack.json` says, also of a stack that died; None without one."""
        try:
            loaded = json.loads(self.record_path.read_text(encoding="utf-8"))
            loaded["services"] = {name: ServiceRecord(**item) for name, item in loaded["services"].items()}
            loaded["processes"] = {name: ProcessRecord(**item) for name, item in loaded["processes"].items()}
            return StackRecord(**loaded)
        except (OSError, ValueError, KeyError, TypeError):  # missing, cut off by a crash, or of another version
            return None

    def write_record(self, record: StackRecord) -> None:
        """Replace `stack.json` in one step, so that readers never see half of it."""
        fresh = self.record_path.with_suffix(".new")
        fresh.write_text(json.dumps(dataclasses.asdict(record), indent=2), encoding="utf-8")
        fresh.replace(self.record_path)

    def running(self) -> StackRecord:
        """The record of the stack that is running.

        Raises:
            FailedPreconditionError: None is.
        """
        pid, record = self.running_pid(), self.read_record()
        if pid is None or record is None or record.pid != pid:
            raise FailedPreconditionError(f"no stack is running in {self.path}; start one with `stack up`")
        return record

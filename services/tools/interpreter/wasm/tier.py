"""The tier `wasm`: a process for each execution, started before it is needed and used once."""

import asyncio
import contextlib
import importlib.util
import json
import logging
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.runtime.spawn import spawn
from services.tools.interpreter.config import InterpreterConfig
from services.tools.interpreter.job import End, Outcome, Room, Unavailable
from services.tools.interpreter.output import Output, Pipes
from services.tools.interpreter.wasm import engine, module

_log = logging.getLogger(__name__)
_ENDS: dict[int, End] = {engine.ENDED: "", engine.FUEL: "fuel", engine.TRAPPED: "memory", engine.DISK: "disk"}


@dataclass
class _Child:
    """A process that waits for its one job."""

    process: asyncio.subprocess.Process
    pipes: Pipes

    async def end(self) -> None:
        """Kill it and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        self.pipes.close()


class WasmTier:
    """Runs code in CPython compiled to WebAssembly. Call `prepare` once, `close` at the end.

    Args:
        config: What a call may cost.
        cache_dir: Where the compiled module is kept.
        tell: Told once that it is ready, or why it is not.
    """

    name = "wasm"
    figures = False

    def __init__(self, config: InterpreterConfig, cache_dir: Path, *, tell: Callable[[str], object] = str) -> None:
        self._tell = tell
        self._config = config
        self._cache_dir = cache_dir
        self._prepared = asyncio.Event()
        self._module: Path | None = None
        self._problem = ""
        self._idle: deque[_Child] = deque()
        self._taken = asyncio.Event()

    async def prepare(self) -> None:
        """Find or compile the module, then keep processes ready, for ever; `run` says what is wrong."""
        try:
            self._module = await module.compiled(self._cache_dir)
            self._tell(self.name)
            _log.info("code interpreter ready", extra={"tier": self.name})
        except (Unavailable, OSError) as error:
            self._problem = str(error)
            self._tell(f"none: {error}")
            _log.warning("code interpreter without its WebAssembly tier", extra={"reason": self._problem})
        finally:
            self._prepared.set()
        while self._module is not None:
            self._taken.clear()
            while len(self._idle) < self._config.wasm.warm:
                self._idle.append(await self._start(self._module))
            await self._taken.wait()

    async def run(self, room: Room, *, output: Output, seconds: float) -> Outcome:
        """See `Tier`."""
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                await self._prepared.wait()
        except TimeoutError:
            message = "python.wasm is still being compiled, once for this machine: try again in half a minute"
            raise Unavailable(message) from None
        if self._module is None:
            raise Unavailable(self._problem)
        one = await self._take(self._module)
        try:
            return await self._ask(one, room, output=output, deadline=deadline, seconds=seconds)
        finally:
            await one.end()

    async def forget(self, key: str) -> None:
        """See `Tier`; no process stays."""

    async def close(self) -> None:
        """End the processes that wait."""
        while self._idle:
            await self._idle.pop().end()

    async def _take(self, file: Path) -> _Child:
        self._taken.set()
        while self._idle:
            one = self._idle.popleft()
            if one.process.returncode is None:
                return one
            await one.end()
        return await self._start(file)

    async def _start(self, file: Path) -> _Child:
        pipes = Pipes()
        try:
            process = await spawn(
                *module.child_command("child.py"), str(file), str(self._config.wasm.memory_bytes),
                stdin=asyncio.subprocess.PIPE, stdout=pipes.writing[0], stderr=pipes.writing[1], env={},
            )  # fmt: skip
        except BaseException:
            pipes.close()
            raise
        pipes.close_writing()
        return _Child(process, pipes)

    async def _ask(self, one: _Child, room: Room, *, output: Output, deadline: float, seconds: float) -> Outcome:
        assert one.process.stdin is not None
        one.pipes.follow(output, flooded=lambda: _kill(one.process))
        job = {
            "fuel": self._config.wasm.fuel,
            "cpu_seconds": int(seconds) + 2,
            "disk_bytes": self._config.disk_bytes,
            "disk_entries": self._config.disk_entries,
            "cloudpickle": _cloudpickle(),
            **{name: str(getattr(room, name)) for name in ("inbox", "state", "work")},
        }
        one.process.stdin.write(json.dumps(job).encode() + b"\n")
        try:
            async with asyncio.timeout_at(deadline):
                with contextlib.suppress(ConnectionError):  # it is dead already: its status says so
                    await one.process.stdin.drain()
                status = await one.process.wait()
        except TimeoutError:
            await _stop(one.process)
            one.pipes.drain(output)
            return Outcome(end="time")
        one.pipes.drain(output)
        if output.flooded:
            return Outcome(end="output")
        end = _ENDS.get(status, "died")
        if status == -signal.SIGXCPU:
            end = "time"
        return Outcome(end=end, detail=f"status {status}" if end == "died" else "")


async def _stop(process: asyncio.subprocess.Process) -> None:
    _kill(process)
    await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _cloudpickle() -> str:
    spec = importlib.util.find_spec("cloudpickle")
    assert spec is not None  # `prepare` found it
    assert spec.origin is not None
    return str(Path(spec.origin).parent)

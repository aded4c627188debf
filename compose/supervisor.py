"""Keep processes running: start, restart with back-off, stop without leaving any behind."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from compose.logfile import LogFile
from stack_client.home import ProcessRecord

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
"""A process that ran this long is restarted with the first pause again."""
CONFIG_EXIT_CODE = 2
"""`stack serve` ends with this code when starting again cannot help."""


@dataclass(kw_only=True)
class Child:
    """One process to keep running."""

    name: str
    """Its name, also that of its log."""
    command: Sequence[str]
    """Program and arguments."""
    log: LogFile
    """Where its output goes."""
    process: asyncio.subprocess.Process | None = field(default=None, init=False)
    """The running process."""
    restarts: int = field(default=0, init=False)
    """How often it was started again."""


class Supervisor:
    """Runs children until told to stop."""

    def __init__(
        self,
        *,
        children: Sequence[Child],
        on_start: Callable[[str, ProcessRecord], None],
        on_death: Callable[[str, str], None],
    ) -> None:
        self._children = children
        self._on_start = on_start
        self._on_death = on_death

    async def run(self, *, stop: asyncio.Event, stop_seconds: float) -> str:
        """Keep every child running until `stop` is set; then end all, by force after `stop_seconds`.

        Returns:
            "" after a stop; else why a child cannot start as configured, in which case all were ended too.
        """
        broken: list[str] = []
        try:
            async with asyncio.TaskGroup() as group:
                for child in self._children:
                    group.create_task(self._keep(child, stop=stop, broken=broken))
        finally:
            await asyncio.shield(self._end(stop_seconds))
        return broken[0] if broken else ""

    def hurry(self) -> None:
        """Ask the children to end; asked a second time, they cut off the calls in flight."""
        for child in self._children:
            if child.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(signal.SIGTERM)

    async def _keep(self, child: Child, *, stop: asyncio.Event, broken: list[str]) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not stop.is_set():
            started = time.monotonic()
            process = await self._start(child)
            if not await _first(process.wait(), stop.wait()):
                return  # asked to stop; `_end` ends the process
            code = process.returncode
            _kill_group(process.pid)  # what it had started must not outlive it
            await asyncio.to_thread(child.log.close)
            if code == CONFIG_EXIT_CODE:
                last = [line for line in child.log.tail(20) if line.startswith("error: ")]
                broken.append(f"{child.name} cannot start: {last[-1][7:] if last else f'see {child.log.path}'}")
                stop.set()
                return
            if time.monotonic() - started >= HEALTHY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self._on_death(child.name, f"{_how(code)}; starting again in {pause:g} s, see {child.log.path}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            child.restarts += 1

    async def _start(self, child: Child) -> asyncio.subprocess.Process:
        output = child.log.attach()
        try:
            # A session of its own: Ctrl-C in the terminal reaches the supervisor only, and the group can be killed.
            child.process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)
        with contextlib.suppress(psutil.NoSuchProcess):
            created = psutil.Process(child.process.pid).create_time()
            self._on_start(child.name, ProcessRecord(pid=child.process.pid, created=created))
        return child.process

    async def _end(self, seconds: float) -> None:
        """Ask all to end, wait, kill the rest and everything that they had started."""
        self.hurry()
        processes = [child.process for child in self._children if child.process is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for process in processes:
                    await process.wait()
        for process in processes:
            _kill_group(process.pid)
            await process.wait()
        for child in self._children:
            await asyncio.to_thread(child.log.close)


def serve_command(services: Sequence[str], *, config: Path | None, home: Path, overlay: Path, parent: int) -> list[str]:
    """The command line of a child: `stack serve`, as in a container."""
    command = [sys.executable, "-m", "stack_client.cli", "serve", *services, "--home", str(home)]
    command += ["--overlay", str(overlay), "--parent", str(parent)]
    return command + (["--config", str(config)] if config else [])


def end_leftovers(processes: dict[str, ProcessRecord], *, seconds: float) -> None:
    """Wait for the children of a supervisor that was killed, which end by themselves; kill those that do not."""
    living = []
    for record in processes.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(record.pid)
            if abs(process.create_time() - record.created) < 1:
                living.append(process)
    _, stubborn = psutil.wait_procs(living, timeout=seconds)
    for process in stubborn:
        _kill_group(process.pid)
    psutil.wait_procs(stubborn, timeout=seconds)


async def _first(process: Coroutine[Any, Any, object], stop: Coroutine[Any, Any, object]) -> bool:
    """Whether the process ended before the stop was asked for."""
    waits = [asyncio.ensure_future(process), asyncio.ensure_future(stop)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return not waits[1].done()
    finally:
        for wait in waits:
            wait.cancel()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _how(code: int | None) -> str:
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"

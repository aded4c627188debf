"""A running sandbox of the tier `native`: started, asked, stopped between calls, ended."""

import asyncio
import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass, field

import psutil

from services.runtime.spawn import spawn
from services.tools.interpreter import folder
from services.tools.interpreter.config import InterpreterConfig
from services.tools.interpreter.job import End, Room, Unavailable
from services.tools.interpreter.native.profile import command
from services.tools.interpreter.output import Output, Pipes

START_SECONDS = 20.0
_WATCH_SECONDS = 0.1
_LINE = 64 << 10
_ROUNDS = 50


@dataclass
class Kernel:
    """One Python behind bubblewrap; `start` makes it.

    Attributes:
        held: Names of what holds it.
        used: When it was used last, on the event loop's clock.
        busy: Whether a call uses it.
    """

    room: Room
    config: InterpreterConfig
    process: asyncio.subprocess.Process
    pipes: Pipes
    answers: asyncio.StreamReader
    transport: asyncio.ReadTransport
    held: list[str] = field(default_factory=list)
    used: float = 0.0
    busy: bool = False
    _init: psutil.Process | None = None
    """The first process inside: everybody else there dies with it (pid_namespaces(7))."""
    _python: psutil.Process | None = None
    _over: End = ""
    _number: int = 0
    """Of the job."""

    async def ask(self, output: Output, *, deadline: float) -> End:
        """Run the job in the inbox; the kernel is stopped afterwards, or killed when the answer is not ""."""
        assert self.process.stdin is not None
        self._over = ""
        self.pipes.follow(output, flooded=lambda: self._kill("output"))
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            end = await self._answer(deadline)
            watching.cancel()
        if not end:
            end = await asyncio.to_thread(self._rest) or await asyncio.to_thread(self._too_much)
        if end:
            await self.end(output)
        else:
            self.pipes.drain(output)
            if output.flooded:
                end = "output"
                await self.end(output)
        return self._over or end

    async def end(self, output: Output | None = None) -> None:
        """Kill everything in it and wait until it is gone; takes what was printed last."""
        everyone = await asyncio.to_thread(self._everyone)
        self._kill("")
        try:
            async with asyncio.timeout(5):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await asyncio.to_thread(_gone, everyone)
        if output is not None:
            self.pipes.drain(output)
        self.transport.close()
        self.pipes.close()

    async def _answer(self, deadline: float) -> End:
        assert self.process.stdin is not None
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.to_thread(self._go_on)
                self._number += 1
                self.process.stdin.write(b"%d\n" % self._number)
                await self.process.stdin.drain()
                # What an earlier call wrote there counts for nothing.
                while (line := await self.answers.readline()) and line != b"done %d\n" % self._number:
                    pass
        except TimeoutError:
            return "time"
        except (ConnectionError, ValueError):  # it is dead, or writes what is no answer
            return "died"
        done = bool(line) and (self.room.state / "result").is_file()
        return "" if done else "died"

    async def _watch(self) -> None:
        """Kill it when it has too much on disk or in memory."""
        while True:
            over = await asyncio.to_thread(self._too_much)
            if over:
                self._kill(over)
            await asyncio.sleep(_WATCH_SECONDS)

    def _too_much(self) -> End:
        most = self.config.disk_entries
        used = folder.usage(str(self.room.work), str(self.room.state), most=most)
        if used.bytes > self.config.disk_bytes or used.entries > most:
            return "disk"
        total = 0
        for one in self._everyone():
            with contextlib.suppress(psutil.Error):
                memory = one.memory_info()
                total += memory.rss - memory.shared
        return "memory" if total > self.config.native.memory_bytes else ""

    def _kill(self, over: End) -> None:
        self._over = self._over or over
        try:
            if self._init is not None:
                self._init.kill()  # bubblewrap sees it end, and ends
                return
        except psutil.Error:
            pass
        with contextlib.suppress(ProcessLookupError):
            _kill_all(self.process)

    def _everyone(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []

    def _go_on(self) -> None:
        if self._python is not None:
            with contextlib.suppress(psutil.Error):
                self._python.resume()

    def _rest(self) -> End:
        """Stop it, and end whatever else the call started: nothing runs between calls."""
        try:
            assert self._init is not None
            if self._python is None:
                self._python = self._init.children()[0]
            self._python.suspend()
            for _ in range(_ROUNDS):
                others = [one for one in self._everyone_else() if _lives(one)]
                if not others:
                    return ""
                for one in others:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.send_signal(signal.SIGKILL)
                psutil.wait_procs(others, timeout=0.1)
        except (psutil.Error, IndexError):
            return "died"
        return "died"

    def _everyone_else(self) -> list[psutil.Process]:
        assert self._init is not None
        return [one for one in self._init.children(recursive=True) if one != self._python]

    def find_init(self) -> None:
        """Find the first process inside, once it runs."""
        with contextlib.suppress(psutil.Error, ValueError):
            [self._init] = psutil.Process(self.process.pid).children()


async def start(config: InterpreterConfig, room: Room) -> Kernel:
    """Start a kernel in a room.

    Raises:
        Unavailable: If it does not start; says what the launcher said.
    """
    await asyncio.to_thread(_hand_over, config, room)
    answers = asyncio.StreamReader(limit=_LINE)
    reading, writing = os.pipe()
    pipes = Pipes()
    try:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(answers), os.fdopen(reading, "rb", buffering=0)
        )
        try:
            process = await spawn(
                *command(config, room, answers=writing), kill=_kill_all, stdin=asyncio.subprocess.PIPE,
                stdout=pipes.writing[0], stderr=pipes.writing[1], pass_fds=(writing,), env={}, cwd="/",
            )  # fmt: skip
        except BaseException:
            transport.close()
            raise
    except BaseException:
        pipes.close()
        raise
    finally:
        os.close(writing)
    # From here to the block below nothing waits: a cancelled start must not leave the process.
    pipes.close_writing()
    kernel = Kernel(room, config, process, pipes, answers, transport)
    said = Output(lambda _stream, _text: None, most=4096, flood=1 << 20)
    try:
        async with asyncio.timeout(START_SECONDS):
            kernel.held = list(map(str, json.loads(await answers.readline())["held"]))
            await asyncio.to_thread(kernel.find_init)
    except (TimeoutError, ValueError, KeyError, TypeError):
        await kernel.end(said)
        last = said.text("stderr").strip().splitlines()[-1:]
        raise Unavailable(f"bubblewrap does not work here: {' '.join(last)[:300] or 'no answer'}") from None
    except BaseException:
        await kernel.end()
        raise
    return kernel


def _kill_all(process: asyncio.subprocess.Process) -> None:
    """Kill a launcher and its children; one that it has just made would wait for it for ever (bubblewrap 0.8)."""
    with contextlib.suppress(psutil.Error):
        launcher = psutil.Process(process.pid)
        launcher.suspend()
        for one in launcher.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                one.kill()
    process.kill()


def _gone(processes: list[psutil.Process]) -> None:
    """Wait until they are; who is dead but not fetched by its parent counts as gone."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline and any(_lives(one) for one in processes):
        time.sleep(0.002)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _hand_over(config: InterpreterConfig, room: Room) -> None:
    """Where the service is root, the code's user gets the folders that it writes."""
    if os.geteuid() == 0:
        for path in (room.work, room.state):
            os.chown(path, config.native.uid, config.native.uid, follow_symlinks=False)
        room.inbox.chmod(0o755)

"""The tier `native`: a kernel for each session, kept between calls, and a new one for each call without a session."""

import asyncio
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from services.tools.interpreter import folder
from services.tools.interpreter.config import InterpreterConfig
from services.tools.interpreter.job import Outcome, Room, Unavailable
from services.tools.interpreter.native.kernel import START_SECONDS, Kernel, start
from services.tools.interpreter.output import Output

_log = logging.getLogger(__name__)
_HELP = (
    "it needs a kernel that gives namespaces to the service's user (containers and Ubuntu's AppArmor often do not), "
    "or use tier: wasm"
)


class NativeTier:
    """Runs code in the system's Python behind bubblewrap. Run `prepare` beside the calls, `close` at the end.

    Args:
        config: What a call may cost.
        tell: Told once that it is ready, or why it is not.
    """

    name = "native"
    figures = True

    def __init__(self, config: InterpreterConfig, *, tell: Callable[[str], object] = str) -> None:
        self._tell = tell
        self._config = config
        self._kernels: dict[str, Kernel] = {}
        self._probed = asyncio.Event()
        self._problem = ""

    async def prepare(self) -> None:
        """Run a piece of code in the full profile, then end idle kernels, for ever."""
        try:
            held = await self._probe()
            self._tell(f"{self.name}, held by {', '.join(held)}")
            _log.info("code interpreter ready", extra={"tier": self.name, "held_by": held})
        except (Unavailable, OSError) as error:
            self._problem = f"{error}; {_HELP}"
            self._tell(f"none: {self._problem}")
            _log.warning("code interpreter without its native tier", extra={"reason": self._problem})
        finally:
            self._probed.set()
        while not self._problem:
            await asyncio.sleep(min(self._config.native.idle_seconds, 30.0))
            await self._end_idle()

    async def problem(self) -> str:
        """Why it cannot run here, found by running it; empty when it can."""
        await self._probed.wait()
        return self._problem

    async def run(self, room: Room, *, output: Output, seconds: float) -> Outcome:
        """See `Tier`."""
        kernel = self._kernels.pop(room.key, None) if room.key else None
        if kernel is not None and kernel.process.returncode is not None:
            await kernel.end()
            kernel = None
        if kernel is None:
            await self._make_room()
            kernel = await start(self._config, room)
        loop = asyncio.get_running_loop()
        kernel.busy, keep = True, False
        if room.key:
            self._kernels[room.key] = kernel
        try:
            end = await kernel.ask(output, deadline=loop.time() + seconds)
            keep = not end and bool(room.key)
        finally:
            kernel.busy, kernel.used = False, loop.time()
            if not keep:
                self._kernels.pop(room.key, None)
                await kernel.end()
        return Outcome(end=end, detail=f"status {kernel.process.returncode}")

    async def forget(self, key: str) -> None:
        """See `Tier`."""
        kernel = self._kernels.pop(key, None)
        if kernel is not None:
            await kernel.end()

    async def close(self) -> None:
        """End all kernels; what they kept is on disk."""
        for key in list(self._kernels):
            await self.forget(key)

    async def _end_idle(self) -> None:
        now = asyncio.get_running_loop().time()
        for key, kernel in list(self._kernels.items()):
            if not kernel.busy and now - kernel.used >= self._config.native.idle_seconds:
                await self.forget(key)

    async def _make_room(self) -> None:
        """End the kernels idle for longest until there is room for one more."""
        idle = sorted((kernel.used, key) for key, kernel in self._kernels.items() if not kernel.busy)
        over = len(self._kernels) + 1 - self._config.native.kernels
        for _, key in idle[: max(over, 0)]:
            await self.forget(key)

    async def _probe(self) -> list[str]:
        """What holds a kernel.

        Raises:
            Unavailable: If none runs to the end of a line of code.
        """
        path = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="interpreter-"))
        room = Room(key="", path=path)
        try:
            await asyncio.to_thread(_lay_out, room)
            kernel = await start(self._config, room)
            try:
                output = Output(lambda _stream, _text: None, most=4096, flood=1 << 20)
                deadline = asyncio.get_running_loop().time() + START_SECONDS
                end = await kernel.ask(output, deadline=deadline)
            finally:
                await kernel.end()
            if end or output.text("stdout") != "2\n":
                raise Unavailable(f"the sandbox runs no code: {end} {output.text('stderr').strip()[-300:]}")
            return kernel.held
        finally:
            await asyncio.to_thread(folder.remove, str(path))


def _lay_out(room: Room) -> None:
    for path in (room.inbox, room.state, room.work):
        path.mkdir()
    (room.inbox / "job").write_text("number=1\nkeep=0\nstate_bytes=0\n", encoding="ascii")
    (room.inbox / "code").write_text("1 + 1", encoding="ascii")

"""What a call of the code interpreter costs: `python -m benchmarks.tools.interpreter`.

CPU counts the service and processes that ended; a native session's process stays and is not in it. `alone`
is a call without a session, with nothing started before it; `session` is a further call of a session.
"""

import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.tools.interpreter.config import InterpreterConfig, WasmConfig
from services.tools.interpreter.job import Room, Unavailable
from services.tools.interpreter.native.tier import NativeTier
from services.tools.interpreter.output import Output
from services.tools.interpreter.wasm.tier import WasmTier

ROUNDS = 10
CACHE = Path.home() / ".llama-stack-mesh" / "cache"


def main() -> None:
    """Print a table."""
    asyncio.run(_main())


async def _main() -> None:
    print(f"{'tier':8} {'call':8} {'CPU ms':>8} {'wall ms':>8}")
    config = InterpreterConfig(wasm=WasmConfig(warm=0))
    with tempfile.TemporaryDirectory() as folder:
        for name, tier in (("wasm", WasmTier(config, CACHE)), ("native", NativeTier(config))):
            preparing = asyncio.create_task(tier.prepare())
            try:
                await _measure(name, tier, Path(folder) / name)
            except Unavailable as error:
                print(f"{name:8} cannot run here: {error}")
            finally:
                preparing.cancel()
                await asyncio.gather(preparing, return_exceptions=True)
                await tier.close()


async def _measure(name: str, tier: WasmTier | NativeTier, folder: Path) -> None:
    if isinstance(tier, NativeTier) and (problem := await tier.problem()):
        raise Unavailable(problem)
    alone = Room(key="", path=folder / "alone")
    session = Room(key="session", path=folder / "session")
    for room in (alone, session):
        _lay_out(room)
        await _call(tier, room)
    await _print(name, "alone", lambda: _call(tier, alone))
    await _print(name, "session", lambda: _call(tier, session))


async def _call(tier: WasmTier | NativeTier, room: Room) -> None:
    output = Output(lambda _stream, _text: None, most=1000, flood=1 << 20)
    outcome = await tier.run(room, output=output, seconds=120)
    assert (outcome.end, output.text("stdout")) == ("", "2\n"), (outcome, output.text("stderr"))


async def _print(name: str, call: str, work: Callable[[], Awaitable[None]]) -> None:
    walls, before = [], _cpu()
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await work()
        walls.append(time.perf_counter() - began)
    cpu = (_cpu() - before) / ROUNDS
    print(f"{name:8} {call:8} {1000 * cpu:8.1f} {1000 * statistics.median(walls):8.1f}")


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _lay_out(room: Room) -> None:
    for path in (room.inbox, room.state, room.work):
        path.mkdir(parents=True)
    keep = int(bool(room.key))
    (room.inbox / "job").write_text(f"number=1\nkeep={keep}\nstate_bytes=1000000\n", encoding="ascii")
    (room.inbox / "code").write_text("n = 1\nn + 1", encoding="ascii")


if __name__ == "__main__":
    main()

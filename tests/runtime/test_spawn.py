"""Child processes whose start is cancelled."""

import asyncio
import sys

import psutil

from services.runtime.spawn import spawn


async def test_a_start_that_is_cancelled_at_any_step_ends_and_leaves_no_process() -> None:
    command = (sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)")
    before = set(psutil.Process().children())
    for steps in range(12):
        task = asyncio.ensure_future(spawn(*command, stdin=asyncio.subprocess.PIPE))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(30):
            [outcome] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, asyncio.subprocess.Process):  # it was started before
            outcome.kill()
            await outcome.wait()
        assert set(psutil.Process().children()) <= before

"""Starting child processes so that cancelling the start neither hangs nor leaves the process."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

Process = asyncio.subprocess.Process


async def spawn(
    *command: str,
    kill: Callable[[Process], None] = Process.kill,
    **settings: Any,  # noqa: ANN401 (asyncio's own)
) -> Process:
    """`asyncio.create_subprocess_exec`; a caller that is cancelled meanwhile gets the process killed first.

    asyncio waits for ever when it is cancelled between the start of the process and the connection of its pipes
    (Python 3.11): the end of the process is then told to nobody.

    Args:
        command: Program and arguments.
        kill: Ends the process, for programs whose children do not end with them.
        settings: See asyncio.

    Raises:
        OSError: If the program cannot be started.
    """
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*command, **settings))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        while not starting.done():  # cancelled again: it still takes only milliseconds
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([starting])
        if starting.exception() is None:
            process = starting.result()
            with contextlib.suppress(ProcessLookupError):
                kill(process)
            await process.wait()
        raise

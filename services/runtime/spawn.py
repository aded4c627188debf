"""Starting child processes so that cancelling the start neither hangs nor leaves the process."""

import asyncio
import contextlib
from typing import Any


async def spawn(*command: str, **settings: Any) -> asyncio.subprocess.Process:  # noqa: ANN401 (asyncio's own)
    """`asyncio.create_subprocess_exec`; a caller that is cancelled meanwhile gets the process killed first.

    asyncio waits for ever when it is cancelled between the start of the process and the connection of its pipes
    (Python 3.11): the end of the process is then told to nobody.

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
                process.kill()
            await process.wait()
        raise

"""Work on long texts, off the event loop: everybody else's calls would stand still meanwhile."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LONG_TEXT = 20_000
"""Characters from which work on a text leaves the event loop: about 20 ms of work; a thread costs a tenth of one."""


async def offload(characters: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of some work, done at once for a short text and in a thread for a long one.

    Args:
        characters: Length of the text.
        work: Touches nothing but its arguments.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        Exception: What the work raises.
    """
    if characters < LONG_TEXT:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)

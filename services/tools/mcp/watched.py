"""A stream of messages that tells when it ends."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Watched:
    """A program's messages.

    The SDK tells of their end only those who wait for an answer; an idle connection whose program died would be taken
    for alive.

    Args:
        stream: The SDK's stream.
        ended: Called once, when no more messages come.
    """

    def __init__(self, stream: Any, ended: Callable[[], None]) -> None:  # noqa: ANN401 (the SDK has no public type)
        self._stream = stream
        self._ended = ended

    async def receive(self) -> Any:  # noqa: ANN401
        """The next message."""
        return await self._stream.receive()

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401
        try:
            return await self._stream.__anext__()
        except StopAsyncIteration:
            self._ended()
            raise

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, traceback)

"""Joins the pieces of an answer into deltas: the first goes out at once, later ones after 20 ms or 8 tokens.

Sending costs a wake-up of both sides per message, so fewer messages is all that helps; 20 ms cannot be seen.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from llamastack import v1

WINDOW_SECONDS = 0.020
WINDOW_TOKENS = 8


@dataclass
class Delta:
    """What one progress event carries: text, or one tool call."""

    text: list[str] = field(default_factory=list)
    logprobs: list[v1.TokenLogProbs] = field(default_factory=list)
    tool_call: v1.ToolCall | None = None
    tokens: int = 0


class DeltaBuffer:
    """A `Sink` whose reader gets coalesced deltas. One writer and one reader on the same event loop."""

    def __init__(self) -> None:
        self._queue: list[Delta] = []
        self._open = Delta()
        self._tokens = 0
        self._started = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._ready = asyncio.Event()
        self._decided = asyncio.Event()
        self._accepted = False

    def admitted(self) -> None:
        """The request is accepted."""
        self._accepted = True
        self._decided.set()

    async def admission(self) -> bool:
        """Whether the request is accepted, as soon as that is known; False when it has ended without."""
        await self._decided.wait()
        return self._accepted

    def text(self, text: str, *, tokens: int, logprobs: Sequence[v1.TokenLogProbs] = ()) -> None:
        """Add text; it becomes visible to the reader when the window closes."""
        self._tokens += tokens
        self._open.tokens += tokens
        if text:
            self._open.text.append(text)
        self._open.logprobs.extend(logprobs)
        if not self._open.text:
            return
        if not self._started or self._tokens >= WINDOW_TOKENS:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WINDOW_SECONDS, self._flush)

    def tool_call(self, call: v1.ToolCall) -> None:
        """Add a tool call, after all text before it."""
        self._flush()
        self._queue.append(Delta(tool_call=call))
        self._ready.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._flush()
        self._closed = True
        self._ready.set()
        self._decided.set()

    async def next(self) -> list[Delta]:
        """The deltas that are ready, at least one; an empty list once the buffer is closed and read."""
        await self._ready.wait()
        deltas, self._queue = self._queue, []
        if not self._closed:
            self._ready.clear()
        return deltas

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._open.text or self._open.logprobs:
            self._queue.append(self._open)
            self._open = Delta()
            self._started = True
            self._ready.set()
        self._tokens = 0


class Collector:
    """A `Sink` that keeps everything, for unary answers."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[v1.TokenLogProbs] = []
        self.tool_calls: list[v1.ToolCall] = []

    def admitted(self) -> None:
        """Nothing waits for this."""

    def text(self, text: str, *, tokens: int, logprobs: Sequence[v1.TokenLogProbs] = ()) -> None:  # noqa: ARG002
        """Keep text."""
        self.texts.append(text)
        self.logprobs.extend(logprobs)

    def tool_call(self, call: v1.ToolCall) -> None:
        """Keep a call."""
        self.tool_calls.append(call)

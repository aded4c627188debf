"""A call while it runs: what it has reported so far, and who waits for it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from llamastack import v1
from services.tools.provider import Access
from services.tools.secrets import Scrubber, StreamScrubber
from stack_client.errors import StackError

KEPT_CHARACTERS = 256 * 1024
"""Of output, for those who join late."""
PIECE = 64 * 1024
"""Characters of one event at most."""

Event = tuple[str, Any]
"""Member of the stream's oneof, and its message."""


class Running:
    """One call; several callers may wait for it.

    Args:
        key: Idempotency key.
        tool_name: `group/tool`.
        digest: Of tool and arguments.
        keyed: Whether the caller chose the key; then it goes on when nobody waits any more.
    """

    def __init__(self, *, key: str, tool_name: str, digest: str, keyed: bool) -> None:
        self.key = key
        self.tool_name = tool_name
        self.digest = digest
        self.keyed = keyed
        self.task: asyncio.Task[None] | None = None
        self.cancel_requested = False
        self.elsewhere = False
        """Whether another process runs it, and this one waits for that."""
        self.stopped = False
        """Whether the tool has ended, so that there is nothing to cancel any more."""
        self._begun = False
        self._events: list[Event] = []
        self._first = 0  # number of events that were let go of
        self._characters = 0
        self._changed = asyncio.Event()
        self._result: v1.ToolInvocationResult | None = None
        self._error: StackError | None = None
        self._watchers = 0

    @property
    def ended(self) -> bool:
        """Whether there is a result or an error."""
        return self._result is not None or self._error is not None

    def put(self, name: str, message: Any, *, characters: int = 0) -> None:  # noqa: ANN401 (an event's message)
        """Add an event; the oldest outputs make room."""
        if self.ended:
            return
        self._events.append((name, message))
        self._characters += characters
        while self._characters > KEPT_CHARACTERS and len(self._events) > 1:
            self._characters -= _characters(self._events.pop(0))
            self._first += 1
        self._tell()

    def finish(self, result: v1.ToolInvocationResult) -> None:
        """It has a result."""
        self._result = result
        self._tell()

    def fail(self, error: StackError) -> None:
        """It did not run."""
        self._error = error
        self._tell()

    def cancel(self) -> None:
        """Ask it to stop."""
        if self.task is not None and not (self.ended or self.stopped or self.cancel_requested):
            self.cancel_requested = True
            if self._begun:  # a task that is cancelled before its first step could not even say so
                self.task.cancel()

    def begin(self) -> None:
        """The first step of its task."""
        self._begun = True
        if self.cancel_requested and self.task is not None:
            self.task.cancel()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Somebody waits for it; a call without a key is stopped when the last one has left."""
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers and not self.keyed:
                self.cancel()

    async def result(self) -> v1.ToolInvocationResult:
        """Its result, when it is there.

        Raises:
            StackError: If it did not run.
        """
        while not self.ended:
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def events(self) -> AsyncIterator[Event]:
        """What it reports, from its beginning or as far back as is kept, and last its result.

        Raises:
            StackError: If it did not run.
        """
        at = 0
        yield_started = False
        while True:
            changed = self._changed
            at = max(at, self._first)
            while at < self._first + len(self._events):
                name, message = self._events[at - self._first]
                at += 1
                if name != "started" and not yield_started:  # its start was let go of
                    yield "started", v1.ToolStarted(idempotency_key=self.key, tool_name=self.tool_name)
                yield_started = True
                yield name, message
                at = max(at, self._first)
            if self.ended:
                result = await self.result()
                if not yield_started:
                    yield "started", v1.ToolStarted(idempotency_key=self.key, tool_name=self.tool_name)
                yield "result", result
                return
            await changed.wait()

    def _tell(self) -> None:
        changed = self._changed
        if not self.ended:
            self._changed = asyncio.Event()
        changed.set()


class RunningReport:
    """What a provider tells about a call, with secrets taken out.

    Args:
        running: Who hears it.
        access: Its secrets.
    """

    def __init__(self, running: Running, access: Access) -> None:
        self._running = running
        self._scrubber = Scrubber(access)
        self._streams: dict[str, StreamScrubber] = {}

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Tell how far it is."""
        share = None if fraction is None else min(1.0, max(0.0, fraction))
        self._running.put(
            "progress", v1.ToolProgress(fraction=share, message=self._scrubber.text(_valid(message))[:PIECE])
        )

    def output(self, stream: str, text: str) -> None:
        """Show a piece of output."""
        clean = self._streams.setdefault(stream, StreamScrubber(self._scrubber))
        self._put(stream, clean.push(_valid(text)))

    def flush(self) -> None:
        """Show what was held back."""
        for stream, clean in self._streams.items():
            self._put(stream, clean.rest())

    def _put(self, stream: str, text: str) -> None:
        for start in range(0, len(text), PIECE):
            piece = text[start : start + PIECE]
            self._running.put("output", v1.ToolOutput(stream=stream, text=piece), characters=len(piece))


def _characters(event: Event) -> int:
    name, message = event
    return len(message.text) if name == "output" else 0


def _valid(text: str) -> str:
    """A text that can be sent: halves of surrogate pairs are replaced."""
    return text.encode("utf-8", "replace").decode()

"""What a sandboxed process prints: read from its pipes, shown while it runs, and kept within bounds."""

import asyncio
import codecs
import os
from collections.abc import Callable
from dataclasses import dataclass, field

STREAMS = ("stdout", "stderr")
_PIECE = 64 << 10


@dataclass
class _Kept:
    """The beginning and the end of one stream."""

    most: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    total: int = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = max(self.most * 3 // 4 - len(self.head), 0)
        self.head += data[:room]
        self.tail += data[room:]
        if len(self.tail) > 2 * self.most:
            del self.tail[: -self.most]

    def text(self) -> str:
        """All of it, or its ends."""
        if self.total <= self.most:
            return (self.head + self.tail).decode("utf-8", "replace")
        end = self.tail[-(self.most // 4) :]
        left_out = self.total - len(self.head) - len(end)
        head, tail = self.head.decode("utf-8", "ignore"), end.decode("utf-8", "ignore")
        return f"{head}\n[... {left_out} bytes left out: print less, or write to a file ...]\n{tail}"


class Output:
    """The two streams of one call.

    Args:
        show: Gets each piece as (stream, whole characters), up to `most` bytes of each stream.
        most: Bytes of each stream that are kept.
        flood: Bytes of both together from which on `flooded` is set.
    """

    def __init__(self, show: Callable[[str, str], None], *, most: int, flood: int) -> None:
        self._show = show
        self._most, self._flood = most, flood
        self._kept = {name: _Kept(most) for name in STREAMS}
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in STREAMS}

    @property
    def flooded(self) -> bool:
        """Whether more was printed than any call may."""
        return sum(kept.total for kept in self._kept.values()) > self._flood

    def add(self, stream: str, data: bytes) -> None:
        """Take a piece as it was read."""
        kept = self._kept[stream]
        room = max(self._most - kept.total, 0)
        kept.add(data)
        if text := self._decoders[stream].decode(data[:room]):
            self._show(stream, text)

    def text(self, stream: str) -> str:
        """What is told of a stream."""
        return self._kept[stream].text()


class Pipes:
    """The reading ends of a process's stdout and stderr. Make them on the event loop, and close them.

    Attributes:
        writing: The other ends, for the process; close them here once it has them.
    """

    def __init__(self) -> None:
        self.writing: list[int] = []
        self._reading: dict[str, int] = {}
        for name in STREAMS:
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            self._reading[name] = reading
            self.writing.append(writing)

    def close_writing(self) -> None:
        """The process has its ends now."""
        for number in self.writing:
            os.close(number)
        self.writing = []

    def follow(self, output: Output, *, flooded: Callable[[], None]) -> None:
        """Hand over what comes, until `drain`.

        Args:
            output: Where it goes.
            flooded: Called, perhaps more than once, when it is too much.
        """
        loop = asyncio.get_running_loop()

        def read(name: str, number: int) -> None:
            if not self._read(name, number, output):
                loop.remove_reader(number)
            if output.flooded:
                flooded()

        for name, number in self._reading.items():
            loop.add_reader(number, read, name, number)

    def drain(self, output: Output) -> None:
        """Take what is left and stop following; nobody writes any more."""
        loop = asyncio.get_running_loop()
        for name, number in self._reading.items():
            loop.remove_reader(number)
            while not output.flooded and self._read(name, number, output):
                pass

    def close(self) -> None:
        """Close all ends."""
        loop = asyncio.get_running_loop()
        self.close_writing()
        for number in self._reading.values():
            loop.remove_reader(number)
            os.close(number)
        self._reading = {}

    @staticmethod
    def _read(name: str, number: int, output: Output) -> bool:
        """Whether there was something."""
        try:
            data = os.read(number, _PIECE)
        except BlockingIOError:
            return False
        if data:
            output.add(name, data)
        return bool(data)

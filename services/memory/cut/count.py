"""Counting the tokens of any part of a text, from one look at where its tokens lie."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from services.memory.text import TokenCounter

PART = 100_000
"""Characters of one question for tokens; longer texts are asked about in parts, which end at line ends."""


@dataclass(frozen=True)
class Tokens:
    """Where the tokens of a text lie."""

    starts: Sequence[int]
    """First character of each, ascending."""
    stops: Sequence[int]
    """One past the last."""

    @classmethod
    async def of(cls, text: str, counter: TokenCounter) -> Self:
        """Ask the model.

        Raises:
            StackError: If it cannot be asked.
        """
        starts: list[int] = []
        stops: list[int] = []
        for at, part in parts_of(text):
            # Several tokens may share a character (bytes of it), and a tokenizer may report them in any order.
            high = at
            for start, stop in sorted(await counter.offsets(part)):
                high = max(high, at + stop)
                starts.append(at + start)
                stops.append(high)
        return cls(starts, stops)

    def count(self, start: int, stop: int) -> int:
        """Tokens that a part of the text touches."""
        if stop <= start:
            return 0
        return max(bisect_left(self.starts, stop) - bisect_right(self.stops, start), 0)

    def after(self, start: int, count: int) -> int:
        """The furthest end of a part from `start` that touches at most `count` tokens; past the last one: -1."""
        index = bisect_right(self.stops, start) + count
        return self.starts[index] if index < len(self.starts) else -1

    def before(self, stop: int, count: int) -> int:
        """The furthest beginning of a part up to `stop` that touches at most `count` tokens."""
        index = bisect_left(self.starts, stop) - count
        return self.stops[index - 1] if index > 0 else 0


def parts_of(text: str) -> list[tuple[int, str]]:
    """A text in parts of at most `PART` characters, with where they begin."""
    parts, at = [], 0
    while at < len(text):
        stop = min(at + PART, len(text))
        if stop < len(text):
            stop = max(text.rfind("\n", at, stop), text.rfind(" ", at, stop)) if " " in text[at:stop] else stop
            stop = stop if stop > at else min(at + PART, len(text))
        parts.append((at, text[at:stop]))
        at = stop
    return parts

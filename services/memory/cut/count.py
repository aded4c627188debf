"""Counting the tokens of any part of a text, from one look at where its tokens lie."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from services.memory.text import TokenCounter

PART = 100_000
"""Characters of one question for tokens; longer texts are asked about in parts, which end at line ends."""

LONGEST_TOKEN = 100
"""Characters of a token from which a tokenizer gave up on a word: BERT's makes one [UNK] of longer ones."""
UNKNOWN_TOKEN = 4
"""Characters of such a word that count as a token."""
TOKEN_CHARACTERS = 8
"""Characters for each token of a piece at most, so that texts that a tokenizer cannot count give small pieces too."""


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
                for first, last in _counted(start, stop):
                    high = max(high, at + last)
                    starts.append(at + first)
                    stops.append(high)
        return cls(starts, stops)

    def count(self, start: int, stop: int) -> int:
        """Tokens that a part of the text touches."""
        if stop <= start:
            return 0
        return max(bisect_left(self.starts, stop) - bisect_right(self.stops, start), 0)

    def fits(self, start: int, stop: int, *, size: int) -> bool:
        """Whether a part of the text is small enough for a piece of `size` tokens."""
        return stop - start <= size * TOKEN_CHARACTERS and self.count(start, stop) <= size

    def after(self, start: int, count: int) -> int:
        """The furthest end of a part from `start` that touches at most `count` tokens; past the last one: -1."""
        index = bisect_right(self.stops, start) + count
        return self.starts[index] if index < len(self.starts) else -1

    def before(self, stop: int, count: int) -> int:
        """The furthest beginning of a part up to `stop` that touches at most `count` tokens."""
        index = bisect_left(self.starts, stop) - count
        return self.stops[index - 1] if index > 0 else 0


def _counted(start: int, stop: int) -> list[tuple[int, int]]:
    """A token, or those that one counts as which stands for a word that is too long for the tokenizer."""
    if stop - start <= LONGEST_TOKEN:
        return [(start, stop)]
    return [(at, min(at + UNKNOWN_TOKEN, stop)) for at in range(start, stop, UNKNOWN_TOKEN)]


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

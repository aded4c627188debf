"""A text under repair that knows where each of its characters stood in the raw text."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One replacement in a mapped text."""

    start: int
    """First character replaced."""
    end: int
    """One past the last."""
    text: str
    """What comes instead. Of equal length, each character keeps its own place; else all point to the whole part."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A text whose characters carry their ranges in the raw text, in Unicode code points, never falling."""

    text: str
    """The text as it is now."""
    starts: list[int]
    """For each character, the first raw character that it came from."""
    ends: list[int]
    """For each character, one past the last."""

    @classmethod
    def raw(cls, text: str) -> "Mapped":
        """A text as it came."""
        return cls(text=text, starts=list(range(len(text))), ends=list(range(1, len(text) + 1)))

    def raw_span(self, start: int, end: int) -> tuple[int, int]:
        """The raw range behind a range of this text; empty ranges have an empty one."""
        if start >= end:
            at = self.starts[start] if start < len(self.starts) else (self.ends[-1] if self.ends else 0)
            return at, at
        return self.starts[start], self.ends[end - 1]

    def apply(self, edits: Iterable[Edit]) -> "Mapped":
        """The text after replacements, which must not overlap and come in the order of the text."""
        pieces: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        done = 0
        for edit in edits:
            pieces += [self.text[done : edit.start], edit.text]
            starts += self.starts[done : edit.start]
            ends += self.ends[done : edit.start]
            if len(edit.text) == edit.end - edit.start:
                starts += self.starts[edit.start : edit.end]
                ends += self.ends[edit.start : edit.end]
            else:
                first, last = self.raw_span(edit.start, edit.end)
                starts += [first] * len(edit.text)
                ends += [last] * len(edit.text)
            done = edit.end
        if not done and not pieces:
            return self
        pieces.append(self.text[done:])
        return Mapped(text="".join(pieces), starts=starts + self.starts[done:], ends=ends + self.ends[done:])

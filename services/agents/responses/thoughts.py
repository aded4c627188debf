"""A model's thoughts, `<think>...</think>` before its answer, told apart while they are written."""

from typing import Literal

OPEN, CLOSE = "<think>", "</think>"
Piece = tuple[Literal["thought", "answer"], str]


class Thoughts:
    """Splits the text of one answer, in whatever pieces it comes; the marks and the blanks around them are dropped."""

    def __init__(self) -> None:
        self._mode: Literal["before", "thinking", "gap", "answer"] = "before"
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        """Take more; what may still be part of a mark is held."""
        self._held += text
        pieces: list[Piece] = []
        if self._mode == "before":
            begun = self._held.lstrip()
            if OPEN.startswith(begun):
                return []
            if begun.startswith(OPEN):
                self._held, self._mode = begun.removeprefix(OPEN), "thinking"
            else:
                self._mode = "answer"
        if self._mode == "thinking":
            thought, closed, rest = self._held.partition(CLOSE)
            if not closed:
                kept = next(n for n in range(len(CLOSE) - 1, -1, -1) if thought.endswith(CLOSE[:n]))
                thought, rest = thought[: len(thought) - kept], thought[len(thought) - kept :]
            pieces += [("thought", thought)] if thought else []
            self._held = rest
            if closed:
                self._mode = "gap"
        if self._mode == "gap":
            self._held = self._held.lstrip()
            self._mode = "answer" if self._held else "gap"
        if self._mode == "answer" and self._held:
            pieces.append(("answer", self._held))
            self._held = ""
        return pieces

    def finish(self) -> list[Piece]:
        """What was held at the end."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [("thought" if self._mode == "thinking" else "answer", held)]

"""Long texts in overlapping windows that an encoder reads whole."""

import re
from dataclasses import dataclass

# A BERT tokenizer splits at spaces and around every mark of punctuation; letters of other alphabets are often one
# token each. These costs are above the true number of tokens for nearly every text, so no window is cut unseen.
_LETTERS_PER_TOKEN = 3
_PIECE = re.compile(r"[A-Za-z]+|[0-9]+|\s+|.", re.DOTALL)
_LONGEST_RUN = 60


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a text."""

    start: int
    """First character, in Unicode code points."""
    end: int
    """One past the last."""


def cut(text: str, *, tokens: int = 250, overlap: int = 50) -> list[Window]:
    """Windows that together hold the whole text; neighbours share about `overlap` tokens.

    Linear in the length of the text. An empty text has none.

    Args:
        text: The text.
        tokens: Tokens per window at most, special tokens not counted.
        overlap: Tokens that two neighbours share; less than half of `tokens`.
    """
    pieces = _pieces(text)
    windows: list[Window] = []
    first = last = 0
    cost = 0
    while last < len(pieces):
        while last < len(pieces) and cost + pieces[last][1] <= tokens:
            cost += pieces[last][1]
            last += 1
        windows.append(Window(start=pieces[first][0], end=_end(pieces, last, text)))
        if last == len(pieces):
            break
        while cost > overlap:
            cost -= pieces[first][1]
            first += 1
    return windows


def _end(pieces: list[tuple[int, int]], index: int, text: str) -> int:
    return pieces[index][0] if index < len(pieces) else len(text)


def _pieces(text: str) -> list[tuple[int, int]]:
    """Start and cost of every piece; a run without end is taken apart."""
    found: list[tuple[int, int]] = []
    for match in _PIECE.finditer(text):
        piece = match.group()
        if piece.isspace():
            found.append((match.start(), 0))
            continue
        for start in range(0, len(piece), _LONGEST_RUN):
            length = min(_LONGEST_RUN, len(piece) - start)
            found.append((match.start() + start, -(-length // _LETTERS_PER_TOKEN)))
    return found

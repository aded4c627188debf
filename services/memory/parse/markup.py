"""Pieces of Markdown."""

import re
from collections.abc import Iterator, Sequence

_SPACE = re.compile(r"\s+")


def escape_line(text: str) -> str:
    """Text on one line."""
    return _SPACE.sub(" ", text).strip()


def table_lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as a Markdown table, the first one its head."""
    rows = [[escape_line(cell).replace("|", "\\|") for cell in row] for row in rows]
    rows = [row for row in rows if any(row)]
    width = max((len(row) for row in rows), default=0)
    for number, row in enumerate(rows):
        yield "| " + " | ".join([*row, *[""] * (width - len(row))]) + " |"
        if number == 0:
            yield "|" + " --- |" * width

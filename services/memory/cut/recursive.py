"""Cutting along borders: a part that is too large is cut at the strongest borders in it, and small neighbours join."""

import itertools
from collections.abc import Sequence

from services.memory.cut.borders import Borders, sections, within
from services.memory.cut.count import TOKEN_CHARACTERS, Tokens
from services.memory.text import Parsed

Span = tuple[int, int]
"""First character, and one past the last."""


def cut_along(parsed: Parsed, tokens: Tokens, levels: Sequence[Borders], *, size: int, overlap: int) -> list[Span]:
    """Spans of each page; see `cut_section`."""
    spans: list[Span] = []
    for section in sections(parsed, tokens):
        spans += cut_section(parsed.text, tokens, levels, section, size=size, overlap=overlap)
    return spans


def cut_section(
    text: str, tokens: Tokens, levels: Sequence[Borders], section: Span, *, size: int, overlap: int
) -> list[Span]:
    """Spans of at most `size` tokens and `TOKEN_CHARACTERS` for each that cover everything visible.

    Args:
        text: What is cut.
        tokens: Its tokens.
        levels: Borders, strongest first.
        section: Part of the text that is cut.
        size: Tokens of a span at most, overlap included.
        overlap: Tokens shared with the span before; where that begins in the middle of a word, fewer.
    """
    whole = trimmed(text, *section)
    if whole is None:
        return []
    if tokens.fits(*whole, size=size):
        return [whole]
    spans = [trimmed(text, *span) for span in _split(tokens, levels, whole, level=0, size=size - overlap)]
    found = [span for span in spans if span is not None]
    return overlapping(text, tokens, found, levels, size=size, overlap=overlap)


def overlapping(
    text: str, tokens: Tokens, spans: Sequence[Span], levels: Sequence[Borders], *, size: int, overlap: int
) -> list[Span]:
    """Spans that begin a little earlier: at a sentence or line in the span before, else at a word."""
    if not overlap:
        return list(spans)
    result = list(spans[:1])
    for (start, stop), (before, _) in zip(spans[1:], spans, strict=False):
        room = min(overlap, size - tokens.count(start, stop))
        least = stop - size * TOKEN_CHARACTERS
        earliest = max(tokens.before(start, room), before + 1, min(least, start)) if room > 0 else start
        begin = start
        for borders in reversed(levels[-3:]):
            # From words up: a stronger border is taken where it keeps at least half of the overlap.
            inside = within(borders, earliest - 1, start)
            if inside and (begin == start or tokens.count(inside[0], start) * 2 >= overlap):
                begin = inside[0]
        span = trimmed(text, begin, stop)
        assert span is not None
        result.append(span if tokens.fits(*span, size=size) else (start, stop))
    return result


def trimmed(text: str, start: int, stop: int) -> Span | None:
    """The part without space around it; the indentation of its first line stays. None where nothing is visible."""
    part = text[start:stop]
    body = part.lstrip()
    if not body:
        return None
    first = start + len(part) - len(body)
    line = text.rfind("\n", start, first) + 1
    if not line:
        line = start if start == 0 or text[start - 1] == "\n" else first
    return line, start + len(part.rstrip())


def _split(tokens: Tokens, levels: Sequence[Borders], span: Span, *, level: int, size: int) -> list[Span]:
    start, stop = span
    if tokens.fits(start, stop, size=size):
        return [span]
    while level < len(levels):
        places = within(levels[level], start, stop)
        if places:
            edges = [start, *places, stop]
            parts: list[Span] = []
            for part in itertools.pairwise(edges):
                parts += _split(tokens, levels, part, level=level + 1, size=size)
            return _joined(tokens, parts, size=size)
        level += 1
    return _by_tokens(tokens, span, size=size)


def _joined(tokens: Tokens, parts: Sequence[Span], *, size: int) -> list[Span]:
    """Neighbours that fit together."""
    result: list[Span] = []
    for start, stop in parts:
        if result and tokens.fits(result[-1][0], stop, size=size):
            result[-1] = (result[-1][0], stop)
        else:
            result.append((start, stop))
    return result


def _by_tokens(tokens: Tokens, span: Span, *, size: int) -> list[Span]:
    """One long word, cut between tokens."""
    start, stop = span
    result = []
    while start < stop:
        end = tokens.after(start, size)
        end = min(stop if end < 0 or end > stop else max(end, start + 1), start + size * TOKEN_CHARACTERS)
        result.append((start, end))
        start = end
    return result

"""Cutting where the matter changes: between sentences whose embeddings lie far apart."""

import itertools
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from services.memory.chunks import Vector
from services.memory.cut.borders import levels, sections, sentences, within
from services.memory.cut.count import Tokens
from services.memory.cut.recursive import Span, cut_along, trimmed
from services.memory.text import Parsed

Embed = Callable[[Sequence[str]], Awaitable[list[Vector]]]
"""Embeddings of texts, in their order, of length 1."""

BREAKS = 0.9
"""Quantile of the distances between neighbours from which the matter changes."""
LEAST_TOKENS = 1 / 8
"""Share of the size below which no piece ends."""
MOST_SENTENCES = 20_000


async def cut_by_meaning(parsed: Parsed, tokens: Tokens, embed: Embed, *, size: int) -> list[Span]:
    """Spans of sentences about the same matter, at most `size` tokens each.

    Raises:
        StackError: If embeddings cannot be had.
    """
    text = parsed.text
    ends = [stop for _, stop in sections(parsed, tokens)]
    edges = [0, *within(sorted({*sentences(text), *ends}), 0, len(text)), len(text)]
    spans = [span for edge in itertools.pairwise(edges) if (span := trimmed(text, *edge)) is not None]
    if len(spans) < 3 or len(spans) > MOST_SENTENCES:
        return cut_along(parsed, tokens, levels(parsed), size=size, overlap=0)
    vectors = np.stack(await embed([text[start:stop] for start, stop in spans]))
    distances = 1.0 - np.einsum("ij,ij->i", vectors[:-1], vectors[1:])
    far = distances > np.quantile(distances, BREAKS)
    section = [bisect_right(ends, start) for start, _ in spans]
    result: list[Span] = []
    begin = spans[0][0]
    for index, (_, stop) in enumerate(spans):
        last = index == len(spans) - 1
        same = not last and section[index] == section[index + 1]
        if same and tokens.fits(begin, spans[index + 1][1], size=size):
            enough = tokens.count(begin, stop) >= size * LEAST_TOKENS
            if not (far[index] and enough):
                continue
        result += _fitting(parsed, tokens, (begin, stop), size=size)
        begin = stop if last else spans[index + 1][0]
    return result


def _fitting(parsed: Parsed, tokens: Tokens, span: Span, *, size: int) -> list[Span]:
    start, stop = span
    if tokens.fits(start, stop, size=size):
        return [span]
    inner = Tokens(*_shifted(tokens, start, stop))
    part = Parsed(text=parsed.text[start:stop], mime_type=parsed.mime_type)
    return [(start + a, start + b) for a, b in cut_along(part, inner, levels(part), size=size, overlap=0)]


def _shifted(tokens: Tokens, start: int, stop: int) -> tuple[list[int], list[int]]:
    pairs = zip(tokens.starts, tokens.stops, strict=True)
    inside = [(max(a, start), min(b, stop)) for a, b in pairs if b > start and a < stop]
    return [a - start for a, _ in inside], [b - start for _, b in inside]

"""Marking in a text what a search by words found in it, by the same analysis."""

from collections.abc import Iterable, Sequence

from llamastack import v1
from services.memory.analysis import Analyser, Token
from services.memory.chunks import KeywordQuery
from services.memory.indexes.words import PhrasePlan, phrase_places

DEFAULT_SPANS = 10
Span = tuple[int, int]
"""First character and one past the last."""


def spans(text: str, query: KeywordQuery, *, analyser: Analyser, field: str = "content") -> list[Span]:
    """Places of a text that match: words, phrases as a whole, and words that begin with a prefix.

    Stop words are marked in phrases only, unless the query has nothing else.

    Args:
        text: One field of a chunk.
        query: What was looked for.
        analyser: Of the bank's language.
        field: Which field it is; phrases of other fields are not marked.
    """
    tokens = analyser.tokens(text)
    marked: set[Span] = set()
    for phrase in query.phrases:
        if phrase.field in {"", field}:
            marked.update(_phrases(tokens, [one.stem for one in analyser.tokens(phrase.text)], phrase.slop))
    if not query.fields or field in query.fields:
        wanted = [one for part in (query.text, *query.required) for one in analyser.tokens(part)]
        telling = [one for one in wanted if not analyser.is_stop_word(one.form)]
        only_stops = not (telling or query.phrases or query.prefixes)
        stems = {one.stem for one in (wanted if only_stops else telling)}
        begins = tuple(words[-1].form for prefix in query.prefixes if (words := analyser.tokens(prefix)))
        marked.update((one.start, one.stop) for one in tokens if one.stem in stems or one.form.startswith(begins))
    return _merged(sorted(marked))


def highlight(
    text: str,
    query: KeywordQuery,
    *,
    analyser: Analyser,
    field: str = "content",
    max_spans: int = 0,
    fragment_characters: int = 0,
) -> v1.FieldHighlight | None:
    """A field with its matches marked; None where nothing matches.

    Args:
        text: The field.
        query: What was looked for.
        analyser: Of the bank's language.
        field: Its name.
        max_spans: Marks at most; 0 means 10.
        fragment_characters: Length of the excerpt; 0 means the whole field.
    """
    found = spans(text, query, analyser=analyser, field=field)
    if not found:
        return None
    start, stop = _excerpt(text, found, fragment_characters) if fragment_characters else (0, len(text))
    inside = [span for span in found if span[0] >= start and span[1] <= stop][: max_spans or DEFAULT_SPANS]
    return v1.FieldHighlight(
        field=field,
        excerpt=text[start:stop],
        spans=[v1.TextSpan(start=first - start, end=last - start) for first, last in inside],
        excerpt_start=start,
    )


def _phrases(tokens: Sequence[Token], stems: Sequence[str], slop: int) -> Iterable[Span]:
    if stems:
        for first, last in phrase_places([one.stem for one in tokens], PhrasePlan(stems, slop, ())):
            yield tokens[first].start, tokens[last].stop


def _merged(ordered: Sequence[Span]) -> list[Span]:
    """The same places without overlaps."""
    result: list[Span] = []
    for start, stop in ordered:
        if result and start < result[-1][1]:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        else:
            result.append((start, stop))
    return result


def _excerpt(text: str, found: Sequence[Span], length: int) -> Span:
    """The part of a text with the most matches in it, cut between words, its matches about in the middle."""
    best, count, last = 0, 0, 0
    for place, (start, _) in enumerate(found):
        last = max(last, place)
        while last + 1 < len(found) and found[last + 1][1] - start <= length:
            last += 1
        if last - place + 1 > count:
            best, count = place, last - place + 1
    first, stop = found[best][0], max(found[best + count - 1][1], found[best][1])
    if stop - first >= length:  # one match is longer than the excerpt
        return first, stop
    start = max(0, min(first - (length - (stop - first)) // 2, len(text) - length))
    end = min(len(text), start + length)
    while 0 < start < first and text[start - 1].isalnum():
        start += 1
    while stop < end < len(text) and text[end].isalnum():
        end -= 1
    return start, end

"""Windows of a fixed number of tokens."""

from bisect import bisect_right

from services.memory.cut.count import TOKEN_CHARACTERS, Tokens
from services.memory.cut.recursive import Span, trimmed


def windows(text: str, tokens: Tokens, *, size: int, overlap: int) -> list[Span]:
    """Spans of `size` tokens, each sharing `overlap` with the one before; words stay whole where they fit.

    Spans whose tokens have more than `TOKEN_CHARACTERS` each have fewer, and share fewer.
    """
    count = len(tokens.starts)
    whole = trimmed(text, 0, len(text))
    if whole is None or tokens.fits(*whole, size=size):
        return [whole] if whole else []
    result: list[Span] = []
    first = 0
    while first < count:
        room = bisect_right(tokens.stops, tokens.starts[first] + size * TOKEN_CHARACTERS) - first
        room = min(size, max(room, 1))
        last = _whole_word(text, tokens, min(first + room, count), least=first + 1)
        span = trimmed(text, _place(text, tokens, first), _place(text, tokens, last))
        if span and result and span[0] == result[-1][0]:
            result[-1] = span  # what lay before it was space
        elif span and (not result or span[1] > result[-1][1]):
            result.append(span)
        if last >= count:
            break
        # The next one begins before this one ends, so that no character lies between them.
        first = _word_begin(text, tokens, max(last - overlap * room // size, first + 1), most=last)
    return result


def _place(text: str, tokens: Tokens, index: int) -> int:
    """The character at which a window begins or ends; what no token covers belongs to the token before it."""
    if index == 0:
        return 0
    return tokens.starts[index] if index < len(tokens.starts) else len(text)


def _is_clean(tokens: Tokens, index: int) -> bool:
    """Whether no token reaches over the border before a token."""
    return index in {0, len(tokens.starts)} or tokens.starts[index] >= tokens.stops[index - 1]


def _begins_word(text: str, tokens: Tokens, index: int) -> bool:
    if index in {0, len(tokens.starts)}:
        return True
    at = tokens.starts[index]
    return text[at].isspace() or text[at - 1].isspace()


def _whole_word(text: str, tokens: Tokens, index: int, *, least: int) -> int:
    """The last border of words up to `index`; of tokens where the word is longer than a window."""
    whole = [place for place in range(index, least - 1, -1) if _is_clean(tokens, place)]
    if whole:
        return next((place for place in whole if _begins_word(text, tokens, place)), whole[0])
    # One character of more tokens than the window has: it cannot be cut.
    place = index
    while place < len(tokens.starts) and not _is_clean(tokens, place):
        place += 1
    return place


def _word_begin(text: str, tokens: Tokens, index: int, *, most: int) -> int:
    """The first border of words from `index` on; at the latest `most`, which is one of tokens."""
    for place in range(max(index, 0), most):
        if _is_clean(tokens, place) and _begins_word(text, tokens, place):
            return place
    return next((place for place in range(max(index, 0), most) if _is_clean(tokens, place)), most)

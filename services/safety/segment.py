"""Where a growing text may be cut: sentences, clauses, words, and how many tokens it has at least."""

import re

_CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
_WIDE = re.compile(rf"[{_CJK}]")
_LONGEST = 12  # letters of a word that are commonly one token
_BLANKS = 16  # characters that are a token even if they are blanks: or blanks alone would be held for ever
_QUOTES = "\"')]*_\u2019\u201d\u00bb"
# A stop counts only with a blank behind it: "3." may go on as "3.14". Wide stops and line ends need none.
# Runs are taken whole (possessive, and never from their middle), or a long one would be read again from each character.
_STOP = re.compile(
    rf"(?<![.!?\u2026])[.!?\u2026]++[{re.escape(_QUOTES)}]*+(?=\s)|[\u3002\uff01\uff1f][\u300d\u300f\uff09]*|(?<!\n)\n++"
)
_CLAUSE = re.compile("[,;:)\u2013\u2014][\"'\u201d]?(?=\\s)|[\u3001\uff0c\uff1b\uff1a]")
_KNOWN = """
al approx apt art ave bzw ca cf co corp dept dr ed eg e.g est etc fig figs gen hr hrs ie i.e inc jr lt ltd max min
mr mrs ms mt no nr p pp ph prof r ref rep rev sec sen sr st str u.s u.k usw vol vs z.b
"""
_ABBREVIATIONS = frozenset(_KNOWN.split())
_LONGEST_ABBREVIATION = 8


def least_tokens(text: str) -> int:
    """A lower estimate of a text's tokens: words and signs, two wide characters as one, and long blanks.

    It is low on purpose: windows are then rather too long than too many.
    """
    tokens = wide = 0
    for found in _WORD.finditer(text):
        if _WIDE.match(found[0]):
            wide += 1
        else:
            tokens += -(-len(found[0]) // _LONGEST)
    return max(tokens + wide // 2, len(text) // _BLANKS)


def last_sentence_end(text: str, start: int, end: int) -> int:
    """One past the last sentence end between two places, or `start` where there is none."""
    at = start
    for found in _STOP.finditer(text, start, end):
        if found[0].rstrip(_QUOTES).endswith(".") and _is_abbreviation(_word_before(text, found.start())):
            continue
        at = found.end()
    return at


def last_clause_end(text: str, start: int, end: int) -> int:
    """One past the last clause end between two places, or `start` where there is none."""
    at = start
    for found in _CLAUSE.finditer(text, start, end):
        at = found.end()
    return at


def words_before(text: str, end: int, count: int, *, start: int = 0) -> int:
    """Where the last `count` words and signs before `end` begin, not before `start`."""
    near = max(start, end - count * 2 * _LONGEST)  # long words are cut: the whole text need not be looked through
    places = [found.start() for found in _WORD.finditer(text, near, end)]
    return places[-count] if len(places) >= count else near


def _word_before(text: str, end: int) -> str:
    """The word that ends at a place, as far as an abbreviation could be long."""
    near = text[max(0, end - _LONGEST_ABBREVIATION) : end]
    return near.split()[-1].lower().lstrip("\"'([*_") if near.strip() and not near[-1].isspace() else ""


def _is_abbreviation(word: str) -> bool:
    """Whether a stop behind this word does not end a sentence: abbreviations, initials, numbers of a list."""
    return word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha()) or word.isdigit()

"""Finding entities by words of their names: folded, ranked by how rare the words are."""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

_WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W_぀-ヿ㐀-鿿]+")
"""Scripts that write no spaces give a word for each character."""
MAX_WORDS = 64
"""Of a name or a question; the rest of a longer one is not looked at."""
COMMON = 0.5
"""Words that weigh less than this share of the rarest one found say nothing by themselves."""


def words_of(text: str) -> list[str]:
    """The words of a text without case and accents, each once, in their order."""
    decomposed = unicodedata.normalize("NFKD", text)
    plain = unicodedata.normalize("NFC", "".join(one for one in decomposed if not unicodedata.combining(one)))
    found = dict.fromkeys(match.group()[:64] for match in _WORD.finditer(plain.casefold()))
    return list(found)[:MAX_WORDS]


def weights_of(frequencies: Mapping[str, int], total: int) -> dict[str, float]:
    """How much each word says: more the fewer entities have it.

    Args:
        frequencies: Entities by word.
        total: All entities of the bank.
    """
    return {word: math.log(1 + total / count) for word, count in frequencies.items() if count}


def rank(
    names: Mapping[str, Sequence[str]], *, asked: Iterable[str], weights: Mapping[str, float]
) -> list[tuple[str, float]]:
    """Entities that a text names, best first, equal ones by identifier; scores above 0, at most 1.

    An entity with only common words is left out, and so is one whose words all belong to another that is named in
    full: "Ada Lovelace" does not mean Ada Smith.

    Args:
        names: Name and aliases of each candidate.
        asked: Words of the text.
        weights: Of those that occur.
    """
    asked = set(asked)
    enough = COMMON * max(weights.values(), default=0.0)
    matched: dict[str, frozenset[str]] = {}
    full: dict[str, frozenset[str]] = {}
    for entity, known in names.items():
        cut = [frozenset(words_of(name)) for name in known]
        have = frozenset().union(*cut) & asked
        named = max((one for one in cut if one and one <= asked), key=len, default=frozenset[str]())
        if named:
            full[entity] = named
        if named or any(weights.get(word, 0.0) >= enough for word in have):
            matched[entity] = have
    explained = [have for have in set(full.values()) if len(have) > 1]
    scores: dict[str, float] = defaultdict(float)
    for entity, have in matched.items():
        if entity not in full and any(have <= one for one in explained):
            continue
        # A full name counts twice: an exact hit goes before all who share a word.
        scores[entity] = sum(weights.get(word, 0.0) for word in sorted(have)) * (2 if entity in full else 1)
    best = max(scores.values(), default=1.0) or 1.0
    return sorted(((entity, score / best) for entity, score in scores.items()), key=lambda one: (-one[1], one[0]))

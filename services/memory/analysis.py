"""Words of a text, the same for every index of words and for highlights.

A word is a run of letters, digits and their marks. Its `form` has no case and no diacritics; its `stem` is what other
forms of it share, by Snowball's rules for the bank's language. Scripts that put no spaces between words (Chinese,
Japanese, Thai and others) and Hangul, whose particles cling to words, are taken character by character: single ones are
found, and runs of them as phrases.
"""

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import Stemmer

from services.memory.stop_words import STOP_WORDS

VERSION = 1
"""One more when texts are analysed differently: indexes are made again."""
LONGEST = 128
"""Characters of a word that count."""
KEPT_WORDS = 50_000
"""Analysed words remembered in each language."""
LANGUAGES: Mapping[str, str] = {
    "ar": "arabic", "hy": "armenian", "eu": "basque", "ca": "catalan", "da": "danish", "nl": "dutch", "en": "english",
    "eo": "esperanto", "et": "estonian", "fi": "finnish", "fr": "french", "de": "german", "el": "greek", "hi": "hindi",
    "hu": "hungarian", "id": "indonesian", "ga": "irish", "it": "italian", "lt": "lithuanian", "ne": "nepali",
    "no": "norwegian", "nb": "norwegian", "nn": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian",
    "sr": "serbian", "es": "spanish", "sv": "swedish", "ta": "tamil", "tr": "turkish", "yi": "yiddish",
}  # fmt: skip
"""Snowball's name of a language, by primary subtag (BCP 47); others are not stemmed."""
PLAIN_LETTERS = {"en", "id"}
"""Languages whose words have no diacritics of their own: they go before the stem is taken, so that résumé is resume."""

_CHARACTERS = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, kana, Han, Hangul."""
_FOLDED_MARKS = re.compile(
    "[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
    "\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
)
"""Diacritics of Latin, Greek and Cyrillic, Hebrew points, Arabic vowels; Indic vowel signs are letters."""


class Token(NamedTuple):
    """A word and where it stands."""

    stem: str
    """What is searched."""
    form: str
    """What prefixes are compared with."""
    start: int
    """First character in the text."""
    stop: int
    """One past the last."""


class Analyser:
    """Finds the words of texts in one language.

    Args:
        language: BCP 47 tag; of those that Snowball does not know, words are only folded.
    """

    def __init__(self, language: str) -> None:
        self.language = re.split("[-_]", language.lower())[0]
        self._stops = STOP_WORDS.get(self.language, frozenset())
        self._word = functools.lru_cache(KEPT_WORDS)(self._analyse)

    def tokens(self, text: str) -> list[Token]:
        """The words of a text in their order; a word's position is its place in the list."""
        result = []
        for match in _pattern().finditer(text):
            word = self._word(match.group())
            if word is not None:
                result.append(Token(*word, *match.span()))
        return result

    def is_stop_word(self, form: str) -> bool:
        """Whether a word says nothing by itself; by its form."""
        return form in self._stops

    def _analyse(self, word: str) -> tuple[str, str] | None:
        """Stem and form of a word; None where nothing is left of it."""
        lowered = word.lower() if word.isascii() else unicodedata.normalize("NFKC", word).casefold()
        form = fold(lowered)[:LONGEST]
        if not form:
            return None
        if self.language not in LANGUAGES:
            return form, form
        stemmer = Stemmer.Stemmer(LANGUAGES[self.language], 0)
        stem = stemmer.stemWord(form if self.language in PLAIN_LETTERS else lowered[:LONGEST])
        return fold(stem) or form, form


def fold(word: str) -> str:
    """A word without case and diacritics, of letters, digits and marks only."""
    if word.isascii() and word.isalnum():
        return word.lower()
    apart = unicodedata.normalize("NFKD", word).casefold()
    bare = unicodedata.normalize("NFC", _FOLDED_MARKS.sub("", unicodedata.normalize("NFKD", apart)))
    return "".join(one for one in bare if one.isalnum() or unicodedata.category(one)[0] == "M")


@functools.cache
def analyser(language: str) -> Analyser:
    """The analyser of a language; all texts of it share what it remembers."""
    return Analyser(language)


@functools.cache
def _pattern() -> re.Pattern[str]:
    """One character of a script without spaces, or a run of letters and digits; each with the marks on it."""
    marks = "".join(_ranges([code for code in [*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0)] if _is_mark(code)]))
    letter = rf"[^\W_{_CHARACTERS}]"
    return re.compile(rf"[{_CHARACTERS}](?<=[^\W_])[{marks}]*|{letter}(?:{letter}|[{marks}])*")


def _is_mark(code: int) -> bool:
    return unicodedata.category(chr(code))[0] == "M"


def _ranges(codes: Sequence[int]) -> list[str]:
    result, start = [], codes[0]
    for code, following in zip(codes, [*codes[1:], 0], strict=True):
        if following != code + 1:
            result.append(f"\\U{start:08x}-\\U{code:08x}")
            start = following
    return result

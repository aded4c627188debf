"""Text as a reader sees it: disguises taken off, with a map back to the raw text. Pure, and linear in its length.

The normalised text is judged in place of the raw one: the higher score of both would keep every false alarm of the raw
text. Encoded parts are cut out and judged alone (`blobs`).
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from confusable_homoglyphs.confusables import confusables_data

from services.safety.blobs import Blob, Decoder
from services.safety.mapped import Edit, Mapped

MAX_DEPTH = 2
"""Encodings inside encodings that are opened."""
MAX_DECODED = 65_536
"""Characters that all blobs of a text may decode to together."""


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Text that no reader sees, as tag characters or variation selectors carry it."""

    start: int
    """First raw character."""
    end: int
    """One past the last."""
    text: str
    """What it says."""


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """A text without its disguises."""

    mapped: Mapped
    """The text to be judged, with its places in the raw text."""
    changes: frozenset[str]
    """What was undone: `invisible`, `compatibility`, `look_alikes`, `spaced`, `leet`, `shouting`, `encoded`."""
    hidden: tuple[Hidden, ...] = ()
    """Hidden text, decoded; never part of `text`."""
    blobs: tuple[Blob, ...] = ()
    """Encoded parts, decoded; never part of `text`. Nested ones follow those that hold them."""
    unread: int = 0
    """Raw characters of blobs that lie behind the limits and were not decoded."""

    @property
    def text(self) -> str:
        """The text to be judged; empty when nothing visible is left."""
        return self.mapped.text


def normalise(text: str) -> Normalised:
    """Take the disguises off a text. Never raises."""
    changes: set[str] = set()
    visible, hidden = _remove_hidden(Mapped.raw(text), changes)
    composed = _change(visible, _compatibility_edits(visible.text), "compatibility", changes)
    decoder = Decoder(depth=MAX_DEPTH, characters=MAX_DECODED)
    found = decoder.find(composed)
    plain = _change(composed, iter(found.edits), "encoded", changes)
    latin = _change(plain, _look_alike_edits(plain.text), "look_alikes", changes)
    joined = _change(latin, _spaced_edits(latin.text), "spaced", changes)
    spelt = _change(joined, _leet_edits(joined.text), "leet", changes)
    calm = _change(spelt, _shouting_edits(spelt.text), "shouting", changes)
    return Normalised(
        mapped=calm, changes=frozenset(changes), hidden=tuple(hidden), blobs=tuple(found.blobs), unread=found.unread
    )


def _change(mapped: Mapped, edits: Iterator[Edit], name: str, changes: set[str]) -> Mapped:
    changed = mapped.apply(edits)
    if changed.text != mapped.text:
        changes.add(name)
    return changed


# Invisible text ------------------------------------------------------------------------------------------------------

_TAGS = (0xE0000, 0xE007F)
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")
_TAG_RUN = re.compile("[\U000e0000-\U000e007f]+")
_BLACK_FLAG = "\U0001f3f4"
# Fillers that print nothing but are letters or symbols by their category.
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_KEPT_CONTROLS = frozenset("\t\n\r")


def _remove_hidden(mapped: Mapped, changes: set[str]) -> tuple[Mapped, list[Hidden]]:
    if mapped.text.isascii() and mapped.text.isprintable():
        return mapped, []
    hidden: list[Hidden] = []
    for match in _TAG_RUN.finditer(mapped.text):
        said = "".join(chr(ord(tag) - _TAGS[0]) for tag in match.group() if 0x20 <= ord(tag) - _TAGS[0] < 0x7F)
        flag = match.start() and mapped.text[match.start() - 1] == _BLACK_FLAG and len(said) <= 6
        if said.strip() and not flag:
            hidden.append(Hidden(start=match.start(), end=match.end(), text=said))
    for match in _SELECTORS.finditer(mapped.text):
        said = bytes(_selector_byte(ord(char)) for char in match.group()).decode(errors="ignore")
        if said.strip():
            hidden.append(Hidden(start=match.start(), end=match.end(), text=said))
    edits = [Edit(start=at, end=at + 1, text="") for at, char in enumerate(mapped.text) if _invisible(char)]
    # Joiners and marks of direction are part of honest writing in many languages; inside Latin words they are not.
    if hidden or any(_inside_latin(mapped.text, edit.start) for edit in edits):
        changes.add("invisible")
    return mapped.apply(edits), hidden


def _selector_byte(code: int) -> int:
    return code - 0xFE00 if code <= 0xFE0F else code - 0xE0100 + 16


@lru_cache(maxsize=4096)
def _invisible(char: str) -> bool:
    if char.isascii():
        return not char.isprintable() and char not in _KEPT_CONTROLS
    category = unicodedata.category(char)
    return (
        category in {"Cf", "Cc", "Cs"}
        or char in _BLANKS
        or bool(re.match("[\ufe00-\ufe0f\U000e0100-\U000e01ef]", char))
    )


def _inside_latin(text: str, at: int) -> bool:
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    return bool(before and after and before.isascii() and before.isalpha() and after.isascii() and after.isalpha())


# Compatibility forms -------------------------------------------------------------------------------------------------

_CLUSTER_MARKS = 2
_SYLLABLE = 16
"""Characters of a Korean cluster that are composed: a syllable has three. Putting marks in order takes quadratic time,
so longer clusters, which nobody writes, stay as they are."""


def _compatibility_edits(text: str) -> Iterator[Edit]:
    """NFKC cluster by cluster, so that the map stays exact; stacks of marks are thrown away."""
    if text.isascii():
        return
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and _continues(text[end]):
            end += 1
        if end - start > 1 or not text[start].isascii():
            composed = _composed(text, start, end)
            if composed != text[start:end]:
                yield Edit(start=start, end=end, text=composed)
        start = end


def _composed(text: str, start: int, end: int) -> str:
    if _jamo(text[start]) and end - start > _SYLLABLE:
        return text[start:end]
    whole = end - start <= _CLUSTER_MARKS + 1 or _jamo(text[start])
    return unicodedata.normalize("NFKC", text[start:end] if whole else text[start])


@lru_cache(maxsize=4096)
def _continues(char: str) -> bool:
    return not char.isascii() and (unicodedata.combining(char) != 0 or "\u1160" <= char <= "\u11ff")


def _jamo(char: str) -> bool:
    return "\u1100" <= char <= "\u11ff"


# Look-alikes ---------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W\d_]+")
# Used as look-alikes by people though the Unicode table does not call them confusable.
_ALSO = dict(zip("квмнтгипьяАВЕЗІКМНОРСТУХ", "kbmhtrunbrABEZIKMHOPCTYX", strict=True))


@lru_cache(maxsize=4096)
def _latin_twin(char: str) -> str | None:
    """The ASCII letter that a letter of another alphabet, or a phonetic or small capital one, looks like."""
    if char.isascii() or not char.isalpha():
        return None
    name = unicodedata.name(char, "")
    if name.startswith("LATIN") and not "\u0250" <= char <= "\u02af" and not "\u1d00" <= char <= "\u1dbf":
        small = re.fullmatch(r"LATIN LETTER SMALL CAPITAL ([A-Z])", name)
        return small.group(1).lower() if small else None
    twins = [twin["c"] for twin in confusables_data.get(char, ()) if twin["c"].isascii() and twin["c"].isalpha()]
    single = [twin for twin in twins if len(twin) == 1]
    alike = [twin for twin in single if twin.isupper() == char.isupper()]
    small = re.fullmatch(r"LATIN LETTER SMALL CAPITAL ([A-Z])", name)
    known = _ALSO.get(char) or (small.group(1).lower() if small else None)
    return known or next(iter(alike or single), None)


def _look_alike_edits(text: str) -> Iterator[Edit]:
    if text.isascii():
        return
    ascii_letters = sum(char.isascii() and char.isalpha() for char in text)
    other_letters = sum(not char.isascii() and char.isalpha() for char in text)
    latin_text = ascii_letters > other_letters
    for match in _WORD.finditer(text):
        word = match.group()
        if word.isascii():
            continue
        twins = [char if char.isascii() or _plain_latin(char) else _latin_twin(char) for char in word]
        if all(_plain_latin(char) for char in word):
            continue
        mixed = any(unicodedata.name(char, "").startswith("LATIN") for char in word)
        # Mixed words lose what has a twin; whole words of another alphabet only inside Latin text, and completely.
        if mixed or (latin_text and None not in twins):
            yield Edit(start=match.start(), end=match.end(), text="".join(
                twin or char for twin, char in zip(twins, word, strict=True)
            ))  # fmt: skip


@lru_cache(maxsize=4096)
def _plain_latin(char: str) -> bool:
    return char.isascii() or (unicodedata.name(char, "").startswith("LATIN") and _latin_twin(char) is None)


# Spacing, leet, shouting ---------------------------------------------------------------------------------------------

_GAPS = r" .\-_*|·•,/~+"
_SPACED = re.compile(rf"(?<![^\W_])[^\W_](?:([{_GAPS}])[^\W_](?![^\W_]))(?:\1[^\W_](?![^\W_])){{2,}}")
_SPACED_SHORT = re.compile(rf"(?<![^\W_])[^\W_](?:([{_GAPS}])[^\W_](?![^\W_]))(?:\1[^\W_](?![^\W_]))*")
_LEET = str.maketrans({"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"})
_LEET_TOKEN = re.compile(r"[A-Za-z0-9@$!]+")
_LEET_SIGN = "[013457@$!]"
_LEET_INSIDE = re.compile(rf"[A-Za-z]{_LEET_SIGN}+[A-Za-z]")
_LEET_WORD = re.compile(rf"(?:{_LEET_SIGN}|[A-Za-z])+")
_ORDINAL = re.compile(
    r"(?:\d*1st|\d*2nd|\d*3rd|\d+th)|\d+(?:s|am|pm|[kmgt]?b|k|m|x|d|h|e\d+|kg|km|cm|mm|ms|kw|hz|ghz|mhz)", re.IGNORECASE
)
_SHOUTED = re.compile(r"\b[A-Z]{2,}(?:[^\w]{1,8}[A-Z]+\b){2,}")


def _spaced_edits(text: str) -> Iterator[Edit]:
    """Join letters that stand apart, at least four with the same sign between; then shorter runs of that text too."""
    pattern = _SPACED_SHORT if _SPACED.search(text) else _SPACED
    for match in pattern.finditer(text):
        letters = match.group()[::2]
        if sum(char.isalpha() for char in letters) * 2 > len(letters):
            yield Edit(start=match.start(), end=match.end(), text=letters)


def _leet_edits(text: str) -> Iterator[Edit]:
    """Digits and signs that stand for letters, in words that also hold letters; never in addresses, units, ordinals."""
    sure = [match for match in _LEET_TOKEN.finditer(text) if _is_leet(match, text)]
    # A digit at the edge of a word, as in mp3, is a letter only in a text that spells so elsewhere.
    habit = len(sure) >= 2
    for match in _LEET_TOKEN.finditer(text) if habit else iter(sure):
        word = match.group()
        core = word.rstrip("!")
        if _is_leet(match, text) or (
            _LEET_WORD.fullmatch(core) and not core.isdigit() and not _ORDINAL.fullmatch(core)
        ):
            yield Edit(start=match.start(), end=match.end(), text=core.translate(_LEET) + word[len(core) :])


def _is_leet(match: re.Match[str], text: str) -> bool:
    word = match.group().rstrip("!")
    if not _LEET_INSIDE.search(word) or re.search("[2689]", word) or _ORDINAL.fullmatch(word):
        return False
    around = text[match.start() - 1 : match.start()] + text[match.end() : match.end() + 1]
    # Addresses, paths, keys and versions.
    return not any(sign in around for sign in "/\\=&#%_") and not (
        "@" in word and "." in text[match.end() : match.end() + 1]
    )


def _shouting_edits(text: str) -> Iterator[Edit]:
    for match in _SHOUTED.finditer(text):
        yield Edit(start=match.start(), end=match.end(), text=match.group().lower())

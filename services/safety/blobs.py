"""Encoded parts of a text: base64, hex, percent and entities, found and decoded within limits."""

import base64
import binascii
import html
import re
import string
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from services.safety.mapped import Edit, Mapped

# No pattern may fail late after a long run, or texts made for it would take quadratic time.
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{16,}+={0,2}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?(?:[0-9A-Fa-f]{2}){10,}+")
_HEX_PAIRS = re.compile(
    r"(?<![0-9A-Za-z])(?:(?:\\x|0x)[0-9A-Fa-f]{2}[ ,:]?|[0-9A-Fa-f]{2}[ ,:]){10,}+(?:[0-9A-Fa-f]{2})?+"
)
_TOKEN = re.compile(r"\S+")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,10});")
# Python refuses to read numbers of thousands of digits; no character has one but for zeros in front.
_ZEROS = re.compile(r"(?<=&#)0++(?=[0-9])")
_ENDLESS_NUMBER = re.compile(r"&#[0-9]{1000,}+;?")
_ESCAPES = 3
_SHORTEST = 8
_OPAQUE = 200
_PRINTABLE = 0.9


@dataclass(frozen=True, kw_only=True)
class Blob:
    """One encoded part."""

    start: int
    """First raw character."""
    end: int
    """One past the last."""
    kind: str
    """`base64`, `hex`, `percent`, `entities`, or `binary` for a long run of base64 or hex that holds no text."""
    text: str
    """What it decodes to; empty for `binary`."""
    depth: int
    """1 for a part of the text itself, 2 for one inside another."""


@dataclass(kw_only=True)
class Found:
    """The encoded parts of one text."""

    edits: list[Edit] = field(default_factory=list)
    """Replacements that cut them out, in order."""
    blobs: list[Blob] = field(default_factory=list)
    """The parts."""
    unread: int = 0
    """Raw characters that were left encoded because of a limit."""


@dataclass(kw_only=True)
class Decoder:
    """Decodes the blobs of one text until a limit is reached.

    Args:
        depth: Encodings inside encodings that are opened.
        characters: Characters that all blobs may decode to together.
    """

    depth: int
    characters: int

    def find(self, mapped: Mapped) -> Found:
        """The blobs of a text; places are those of the raw text."""
        found = Found()
        for start, end, kind, text in _candidates(mapped.text):
            raw_start, raw_end = mapped.raw_span(start, end)
            if len(text) > self.characters:
                found.unread += raw_end - raw_start
                continue
            self.characters -= len(text)
            found.edits.append(Edit(start=start, end=end, text=" "))
            found.blobs.append(Blob(start=raw_start, end=raw_end, kind=kind, text=text, depth=1))
            self._open(found, found.blobs[-1])
        return found

    def _open(self, found: Found, outer: Blob) -> None:
        for _start, _end, kind, text in _candidates(outer.text):
            if outer.depth == self.depth or len(text) > self.characters:
                # Too deep or too much: the place counts as unread once, however much is in it.
                found.unread += outer.end - outer.start
                return
            self.characters -= len(text)
            inner = Blob(start=outer.start, end=outer.end, kind=kind, text=text, depth=outer.depth + 1)
            found.blobs.append(inner)
            self._open(found, inner)


def _candidates(text: str) -> Iterator[tuple[int, int, str, str]]:
    """Start, end, kind and decoded text of every blob, in order and without overlap."""
    found = [
        (match.start(), match.end(), kind, decoded)
        for kind, pattern, decode in _KINDS
        for match in pattern.finditer(text)
        if (decoded := decode(match.group())) is not None
    ]
    done = 0
    for start, end, kind, decoded in sorted(found, key=lambda item: (item[0], -item[1])):
        if start >= done:
            yield start, end, kind if decoded else "binary", decoded
            done = end


def _percent(part: str) -> str | None:
    few = "%" not in part or len(_PERCENT.findall(part)) < _ESCAPES
    return None if few else _changed(part, urllib.parse.unquote(part, errors="replace"))


def _entities(part: str) -> str | None:
    few = "&" not in part or len(_ENTITY.findall(part)) < _ESCAPES
    return None if few else _changed(part, html.unescape(_ENDLESS_NUMBER.sub("\ufffd", _ZEROS.sub("", part))))


def _changed(before: str, after: str) -> str | None:
    return after if after != before and _readable(after) else None


def _hex(part: str) -> str | None:
    digits = re.sub(r"\\x|0x|[ ,:]", "", part)
    if len(digits) % 2:
        return None
    return _text(bytes.fromhex(digits), part)


def _base64(part: str) -> str | None:
    body = part.rstrip("=").replace("-", "+").replace("_", "/")
    if len(body) % 4 == 1:
        return None
    try:
        return _text(base64.b64decode(body + "=" * (-len(body) % 4), validate=True), part)
    except (binascii.Error, ValueError):
        return None


_KINDS: Sequence[tuple[str, re.Pattern[str], Callable[[str], str | None]]] = (
    ("percent", _TOKEN, _percent),
    ("entities", _TOKEN, _entities),
    ("hex", _HEX, _hex),
    ("hex", _HEX_PAIRS, _hex),
    ("base64", _BASE64, _base64),
)


def _text(content: bytes, part: str) -> str | None:
    """The decoded text; empty for a long blob of something else; None when it is most likely no blob at all."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = ""
    if _readable(text):
        return text
    return "" if len(part) >= _OPAQUE and _random(part) else None


def _random(part: str) -> bool:
    """Whether letters and digits are mixed as in encoded bytes; words written without spaces are not."""
    digits, capitals = sum(map(str.isdigit, part)), sum(map(str.isupper, part))
    if all(char in string.hexdigits for char in part[:_OPAQUE]):
        return digits > 0.4 * len(part)
    return 0.06 < digits / len(part) < 0.35 and 0.2 < capitals / len(part) < 0.6


def _readable(text: str) -> bool:
    good = sum(char.isprintable() or char in "\t\n\r" for char in text)
    return len(text) >= _SHORTEST and good >= _PRINTABLE * len(text)

"""Bytes of unknown encoding become text."""

import codecs
import re

from charset_normalizer import from_bytes

from services.memory.parse.extract import RefusedError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 256 * 1024
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MOST_CONTROLS = 0.005
"""Share of control characters from which it is no text."""
_MOST_SPECIAL = 1 / 2
"""Share of letters beyond ASCII's above which a text is in no Latin script."""
_WESTERN = frozenset("äöüßéèêëàâçîïôùûáíóúñåøæœãõìòÄÖÜÉÈÊËÀÂÇÎÏÔÙÛÁÍÓÚÑÅØÆŒÃÕÌÒ€£§©®™°·•…–—‘’‚“”„«»‹›¡¿´½×±µª\xa0\xad")
"""Of cp1252, what languages from Portuguese to Swedish use."""
_EASTERN = re.compile(
    r"[^\W\d_a-zA-Z]{3}"  # a run of them: another script
    r"|[a-zß-ÿ][À-Þ]|£(?=[^\W\d])|[^\W\d][¿¡£µª]"
    r"|(?<!oc)ê\b|æ\b|\bè\B|[ìòù]\B|õ(?!e)|œ(?!u|il)"  # ę, ć, č, ě, ň, ů, ő, ś of cp1250
)
"""Places where they do not have them, and where languages of Central Europe have others with the same byte."""


def decoded(data: bytes, *, declared: str = "") -> str | None:
    """The text; None where it is none.

    Args:
        data: Of the whole document.
        declared: Encoding that a header names; believed where it fits.

    Raises:
        RefusedError: If it is text with characters that are none.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _strict(data[len(bom) :], encoding)
    text = _tried(data, "utf-8")
    if text is None and declared:
        text = _tried(data, declared)
    if text is None:
        if _tried(data, "utf-8", errors="surrogatepass") is not None:
            raise RefusedError("it has halves of surrogate pairs, which are no characters: save it as UTF-8")
        text = _guessed(data)
    if text is None or _is_binary(text):
        return None
    if "\0" in text:
        raise RefusedError("it has NUL characters: it is damaged or no text; save it again as text")
    return text


def _strict(data: bytes, encoding: str) -> str:
    text = _tried(data, encoding)
    if text is None:
        raise RefusedError(f"it says that it is {encoding} and is not: it is damaged; save it again as UTF-8")
    if "\0" in text:
        raise RefusedError("it has NUL characters: it is damaged or no text; save it again as text")
    return text


def _tried(data: bytes, encoding: str, *, errors: str = "strict") -> str | None:
    try:
        return data.decode(encoding, errors)
    except (UnicodeDecodeError, LookupError, ValueError):
        return None


def _guessed(data: bytes) -> str | None:
    """By the look of its beginning; the rest must fit the same encoding."""
    western = _tried(data, "cp1252")
    if western is not None and _is_western(western[:_SAMPLE]):
        return western
    for match in from_bytes(data[:_SAMPLE]):
        text = _tried(data, match.encoding)
        if text is not None:
            return text
    return None


def _is_western(text: str) -> bool:
    """Whether the letters of a text are where languages of Western Europe have them.

    Statistics of letters tell nothing of a few words, and the code pages of Europe decode each other's bytes.
    """
    letters = sum(map(str.isalpha, text))
    special = [letter for letter in text if letter >= "\x80"]
    share = sum(map(str.isalpha, special)) / max(letters, 1)
    return share <= _MOST_SPECIAL and _WESTERN.issuperset(special) and not _EASTERN.search(text)


def _is_binary(text: str) -> bool:
    head = text[:_SAMPLE]
    return len(_CONTROLS.findall(head)) > max(_MOST_CONTROLS * len(head), 1 if "\0" not in head[:8] else 0)

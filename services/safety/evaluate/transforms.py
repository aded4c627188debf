"""Disguises for texts, each with its own name; harmless texts go through the same ones as controls."""

import base64
from collections.abc import Callable, Mapping

_SWAPS = str.maketrans("aceiopsxyACEHIKMOPTX", "асеіорѕхуАСЕНІКМОРТХ")
_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_FILLER = "The minutes of the meeting were read and approved without changes. "
_FILLED = 4096


def zero_width(text: str) -> str:
    """A zero-width space after every second letter."""
    return "".join(char + ("\u200b" if index % 2 else "") for index, char in enumerate(text))


def spaced(text: str) -> str:
    """Letters apart, three spaces between words."""
    return "   ".join(" ".join(word) for word in text.split())


def leet(text: str) -> str:
    """Digits for letters."""
    return text.translate(_LEET)


def look_alikes(text: str) -> str:
    """Cyrillic letters that look the same."""
    return text.translate(_SWAPS)


def full_width(text: str) -> str:
    """The wide forms of ASCII."""
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


def tags(text: str) -> str:
    """Written in invisible tag characters behind a harmless sentence."""
    hidden = "".join(chr(0xE0000 + ord(char)) for char in text if " " <= char <= "~")
    return f"See you on Monday.{hidden}"


def encoded(text: str) -> str:
    """Base64 inside a sentence."""
    return f"Here is the note you asked for: {base64.b64encode(text.encode()).decode()} - best, Kim"


def shouted(text: str) -> str:
    """In capitals."""
    return text.upper()


def after_filler(text: str) -> str:
    """Behind 4 kB of minutes."""
    return _FILLER * (_FILLED // len(_FILLER)) + text


TRANSFORMS: Mapping[str, Callable[[str], str]] = {
    "none": str,
    "zero width": zero_width,
    "letters spaced": spaced,
    "leet": leet,
    "look-alikes": look_alikes,
    "full width": full_width,
    "tag characters": tags,
    "base64": encoded,
    "capitals": shouted,
    "4 kB of filler before": after_filler,
}
"""The disguises of the grid, by name."""

"""What the models read of a text: its normalised form in windows, and everything that was hidden or encoded in it."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.safety.blobs import Blob
from services.safety.mapped import Mapped
from services.safety.normalise import Hidden, Normalised, normalise
from services.safety.windows import cut


@dataclass(frozen=True, kw_only=True)
class Part:
    """A text that is judged alone."""

    text: str
    """Normalised; never blank."""
    place: Mapped | None
    """Leads to the raw text; None for decoded text, which lies at `start` to `end` as a whole."""
    start: int
    """First raw character."""
    end: int
    """One past the last."""

    def raw_span(self, start: int, end: int) -> tuple[int, int]:
        """The raw range behind a range of this part."""
        return self.place.raw_span(start, end) if self.place else (self.start, self.end)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A piece of a part that the encoder reads whole."""

    text: str
    """Never blank."""
    start: int
    """First raw character."""
    end: int
    """One past the last."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A text, ready for the models."""

    normalised: Normalised
    """The text without disguises."""
    parts: tuple[Part, ...]
    """What is judged: the text itself first, then what was decoded. Empty when nothing visible is left."""

    @property
    def coverage(self) -> float:
        """Share of the raw text that is read; below 1 when blobs lie behind the limits."""
        whole = len(self.normalised.mapped.starts) + self.normalised.unread
        return 1.0 if not self.normalised.unread else 1.0 - self.normalised.unread / max(whole, 1)

    def windows(self) -> list[Window]:
        """All parts in windows."""
        return [window for part in self.parts for window in _windows(part)]


def read(text: str) -> Reading:
    """Prepare a text. Never raises."""
    normalised = normalise(text)
    parts = []
    if normalised.text.strip():
        parts.append(Part(text=normalised.text, place=normalised.mapped, start=0, end=len(text)))
    decoded: list[Blob | Hidden] = [*normalised.blobs, *normalised.hidden]
    for piece in decoded:
        inner = normalise(piece.text).text
        # Text that only wraps another encoding says nothing itself: what is inside follows as a part of its own.
        if inner.strip():
            parts.append(Part(text=inner, place=None, start=piece.start, end=piece.end))
    return Reading(normalised=normalised, parts=tuple(parts))


def _windows(part: Part) -> Iterator[Window]:
    for window in cut(part.text):
        text = part.text[window.start : window.end].strip()
        if text:
            start, end = part.raw_span(window.start, window.end)
            yield Window(text=text, start=start, end=end)

"""What passes between the documents and their indexes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""One embedding, of the bank's dimension and length 1 in the Euclidean norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedChunk:
    """A chunk as indexes see it. A chunk never changes; what changes gets a new number."""

    number: int
    """Its row, greater than those of all chunks before it; what an index answers."""
    text: str
    """What is searched as `content`: context and text."""
    embedding: Vector | None
    """None in banks without."""
    facts: Mapping[str, Any]
    """Metadata as filters see it."""
    fields: Mapping[str, str]
    """Texts of the further fields that are searched by words."""
    expires_at: int | None
    """Microseconds since 1970, when it is no longer found; None means never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What happened in a bank up to a revision, in any order: a number is never used twice."""

    revision: int
    """The bank's revision after them."""
    added: Sequence[IndexedChunk] = ()
    """New chunks."""
    removed: Sequence[int] = ()
    """Numbers of chunks that are gone, also such as an index never saw."""


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk that an index found."""

    number: int
    """The chunk."""
    score: float
    """Greater is better: cosine of the angle, or BM25."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """Words in this order, next to each other."""

    text: str
    """The words."""
    slop: int = 0
    """Other words allowed between them in all."""
    field: str = ""
    """Only in this field; empty = all searched fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeywordQuery:
    """A search by words. Nothing in it is query syntax."""

    text: str = ""
    """Words, any of which may occur."""
    fields: Mapping[str, float] = field(default_factory=dict)
    """Fields searched with their boosts; empty = the bank's."""
    phrases: Sequence[Phrase] = ()
    """All must occur."""
    prefixes: Sequence[str] = ()
    """Beginnings of words, one of which must occur."""
    required: Sequence[str] = ()
    """Words that must all occur."""
    excluded: Sequence[str] = ()
    """Words of which none may occur."""

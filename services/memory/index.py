"""What an index of a bank is. Indexes are caches of the tables: dropped and made again without loss.

Two kinds of upkeep. A `LocalIndex` keeps its own data, in memory, in files or on a server, and is brought up to date
before each query with what changed since its `position`. An `indexes.transactional.TransactionalIndex` lives in the
database beside the chunks and is written in the transaction that writes them.

All implementations pass `tests/memory/indexes/`, against an oracle in plain Python:
- a query answers `min(limit, matching chunks)` chunks, each once, best first, equal scores by number;
- filters and expiry are applied before ranking, by the rules of `filters`;
- removed chunks are never answered.
"""

import abc
from typing import ClassVar, Protocol

from services.memory.chunks import Changes, Found, KeywordQuery, Vector
from services.memory.filters import Filter


class Index(Protocol):
    """An index of one bank."""

    name: ClassVar[str]
    """As it is chosen by configuration, for example `scan`."""

    async def open(self) -> None:
        """Load what it kept."""

    async def close(self) -> None:
        """Keep what it can load again, and free memory."""

    async def drop(self) -> None:
        """Erase it for good, also what it keeps outside of memory."""


class LocalIndex(abc.ABC):
    """One that keeps its own data."""

    name: ClassVar[str]
    shared: ClassVar[bool] = False
    """Replicas write the same one."""

    @abc.abstractmethod
    async def open(self) -> None:
        """See `Index.open`."""

    @abc.abstractmethod
    async def close(self) -> None:
        """See `Index.close`."""

    @abc.abstractmethod
    async def drop(self) -> None:
        """See `Index.drop`."""

    @abc.abstractmethod
    async def position(self) -> int:
        """The bank's revision up to which all changes are in it; 0 when it is empty or was damaged."""

    @abc.abstractmethod
    async def apply(self, changes: Changes) -> None:
        """Take changes in, all or none, and be at their revision. Repeats are harmless."""


class VectorIndex(Index, Protocol):
    """Finds chunks by their embeddings."""

    async def query(self, vector: Vector, *, limit: int, where: Filter | None, now: int) -> list[Found]:
        """The nearest chunks by cosine.

        Args:
            vector: Of the bank's dimension, normalised.
            limit: Chunks at most.
            where: Only chunks that match.
            now: Microseconds since 1970; chunks that expired by then are not found.
        """


class KeywordIndex(Index, Protocol):
    """Finds chunks by their words, as `analysis` cuts them.

    A chunk matches when all phrases and required words and one of the prefixes occur and no excluded word does; where
    none of these is given, when a word of the text occurs. Prefixes are compared with words as they are written, all
    else by stems. Of a prefix of several words the last one is the beginning; the others occur in the same field.

    The score is the sum over terms t and fields f, with k1 = 1.2 and b = 0.75, of

        boost(f) ln(1 + (N - n + 0.5) / (n + 0.5)) tf (k1 + 1) / (tf + k1 (1 - b + b words(f) / average(f)))

    N are the chunks of the bank, n those with t in f, tf its occurrences in f of the chunk, words(f) and average(f) the
    words of f in the chunk and in the mean of the N, stop words counted. Terms are the words of text, required and
    phrases, each once, without stop words unless there are no others, and the prefixes; a prefix occurs once in a field
    where a word begins with it. A phrase's words count in its field only, all else in the searched fields. Of more than
    64 terms the rarest that occur count. Filters and expiry do not change N, n or the mean; removed chunks are in none.
    """

    async def query(
        self, query: KeywordQuery, *, limit: int, where: Filter | None, now: int
    ) -> tuple[list[Found], int]:
        """The best chunks, and how many match in all, counted up to 10,000; see `VectorIndex.query`."""

    async def terms(self, query: KeywordQuery, number: int) -> dict[str, float]:
        """What each word of the query adds to the score of one chunk, by the word as the caller wrote it.

        Together they are its score, were it found; empty where it is not in the index.
        """

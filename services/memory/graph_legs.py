"""Banks without documents as chunks: values by key, surroundings of entities."""

from collections.abc import Mapping
from typing import Any

from llamastack import v1
from services.memory.bank import Bank
from services.memory.chunks import Found


class GraphLegs:
    """To be built on the graph's and the key-value banks' own parts."""

    async def as_chunks(
        self, bank: Bank, request: v1.QueryDocumentsRequest, *, question: str, limit: int
    ) -> list[tuple[v1.MemoryBankChunk, float]]:
        """What a key-value or graph bank answers to a query."""
        raise NotImplementedError

    async def leg(
        self, bank: Bank, leg: v1.GraphLeg, *, first: int, limit: int
    ) -> tuple[list[Found], Mapping[int, Mapping[Any, Any]]]:
        """What a leg over a graph finds, numbered downwards from `first`, and the rows of these numbers."""
        raise NotImplementedError

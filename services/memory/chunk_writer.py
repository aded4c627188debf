"""Writing chunks: rows, the indexes that live beside them, and what tells the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.bank import Bank
from services.memory.catalog import Catalog
from services.memory.chunk_rows import indexed
from services.memory.chunks import Changes
from services.memory.tables import chunks, removals

DELETE_BATCH = 500
INSERT_BATCH = 500


class ChunkWriter:
    """Writes chunks inside transactions of others.

    Args:
        catalog: The indexes.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def replace(
        self,
        connection: AsyncConnection,
        bank: Bank,
        old: Sequence[Mapping[Any, Any]],
        new: Sequence[dict[str, Any]],
        *,
        revision: int,
    ) -> None:
        """Put new chunks in the places of old ones; every chunk that is written gets a number of its own."""
        await self.remove(connection, bank, [row["number"] for row in old], revision=revision)
        for start in range(0, len(new), INSERT_BATCH):
            rows = [{**row, "revision": revision} for row in new[start : start + INSERT_BATCH]]
            insert = sa.insert(chunks).returning(chunks.c.number, sort_by_parameter_order=True)
            numbers = (await connection.execute(insert, rows)).scalars().all()
            added = [indexed(bank, {**row, "number": number}) for row, number in zip(rows, numbers, strict=True)]
            await self._catalog.write(connection, bank, Changes(revision=revision, added=added))

    async def remove(self, connection: AsyncConnection, bank: Bank, numbers: Sequence[int], *, revision: int) -> None:
        """Delete chunks, and note it for caches that still hold them."""
        if not numbers:
            return
        await self._catalog.write(connection, bank, Changes(revision=revision, removed=numbers))
        for start in range(0, len(numbers), DELETE_BATCH):
            some = numbers[start : start + DELETE_BATCH]
            await connection.execute(sa.delete(chunks).where(chunks.c.number.in_(some)))
            rows = [{"bank": bank.number, "revision": revision, "chunk": number} for number in some]
            await connection.execute(sa.insert(removals), rows)

"""Banks with chunks written straight into the tables, and what they hold in plain Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import sqlalchemy as sa

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import bank_of
from services.memory.catalog import Catalog
from services.memory.chunks import Changes
from services.memory.database import Database, next_revision
from services.memory.indexes.rows import indexed, of_bank
from services.memory.tables import banks, chunks, documents, removals

STAMP = "model:{}"


@dataclass
class World:
    """One bank, the catalog that is told of its changes, and all that it holds by chunk number."""

    database: Database
    catalog: Catalog
    bank: Bank
    held: dict[int, dict[str, Any]] = field(default_factory=dict)

    async def add(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """One transaction with new chunks: `text`, `vector`, `facts`, `metadata`, `expires_at`."""
        async with self.database.write() as connection:
            revision = await next_revision(connection, self.bank.number)
            document = await connection.execute(sa.insert(documents).values(**self._document(revision)))
            assert document.inserted_primary_key
            values = [
                self._chunk(row, revision, document.inserted_primary_key[0], place) for place, row in enumerate(rows)
            ]
            result = await connection.execute(
                sa.insert(chunks).returning(chunks.c.number, sort_by_parameter_order=True), values
            )
            numbers = list(result.scalars())
            query = of_bank(self.bank).where(chunks.c.revision == revision)
            added = [indexed(self.bank, row) for row in (await connection.execute(query)).mappings()]
            await self.catalog.write(connection, self.bank, Changes(revision=revision, added=added))
        self.held.update(dict(zip(numbers, map(dict, rows), strict=True)))
        return numbers

    async def remove(self, numbers: Sequence[int]) -> None:
        """One transaction that removes chunks."""
        async with self.database.write() as connection:
            revision = await next_revision(connection, self.bank.number)
            await connection.execute(sa.delete(chunks).where(chunks.c.number.in_(numbers)))
            rows = [{"bank": self.bank.number, "revision": revision, "chunk": number} for number in numbers]
            await connection.execute(sa.insert(removals), rows)
            await self.catalog.write(connection, self.bank, Changes(revision=revision, removed=list(numbers)))
        for number in numbers:
            del self.held[number]

    async def erase(self) -> None:
        """Delete the bank as `BankStore.delete` does."""
        async with self.database.write() as connection:
            for table in (chunks, documents, removals):
                await connection.execute(sa.delete(table).where(table.c.bank == self.bank.number))
            await connection.execute(sa.delete(banks).where(banks.c.number == self.bank.number))
        await self.catalog.drop(self.bank)

    def seen_by(self, catalog: Catalog) -> "World":
        """The same bank through another catalog."""
        return replace(self, catalog=catalog)

    def _document(self, revision: int) -> dict[str, Any]:
        return {
            "bank": self.bank.number, "document_id": f"d{revision}", "content": "", "pages": [], "metadata": {},
            "facts": {}, "content_hash": "", "recipe_hash": "", "revision": revision, "token_count": 0,
            "chunk_count": 0, "created_at": 1, "updated_at": 1,
        }  # fmt: skip

    def _chunk(self, row: Mapping[str, Any], revision: int, document: int, place: int) -> dict[str, Any]:
        vector = row.get("vector")
        return {
            "bank": self.bank.number, "document": document, "chunk_id": f"c{revision}-{place}", "place": place,
            "text": row.get("text", ""), "token_count": 1, "content_hash": "", "metadata": row.get("metadata", {}),
            "facts": row.get("facts", {}), "embedding": None if vector is None else vector.astype("<f4").tobytes(),
            "embedding_stamp": self.bank.embedding_stamp, "revision": revision, "created_at": 1,
            "expires_at": row.get("expires_at"),
        }  # fmt: skip


async def new_world(
    database: Database,
    catalog: Catalog,
    *,
    name: str,
    dimension: int = 0,
    params: v1.BankParams | None = None,
    provider: str = "auto",
) -> World:
    """A new bank: of vectors where a dimension is given, else of words."""
    if params is None:
        params = (
            v1.BankParams(vector=v1.VectorBankParams()) if dimension else v1.BankParams(keyword=v1.KeywordBankParams())
        )
    values = {
        "tenant": "", "identifier": name, "kind": params.WhichOneof("params"), "params": params.SerializeToString(),
        "provider_id": provider, "provider_resource_id": name, "created_at": 1,
        "embedding_dimension": dimension, "embedding_stamp": STAMP.format(dimension) if dimension else "",
    }  # fmt: skip
    async with database.write() as connection:
        row = (await connection.execute(sa.insert(banks).values(**values).returning(banks))).mappings().one()
    return World(database, catalog, bank_of(row))


def unit(rng: np.random.Generator, dimension: int) -> Any:
    """A random direction."""
    vector = rng.standard_normal(dimension)
    return (vector / np.linalg.norm(vector)).astype(np.float32)

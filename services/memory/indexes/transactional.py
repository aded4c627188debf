"""What indexes in the database's own tables share: made from the chunks once, then written with them."""

import abc
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.chunks import Changes, IndexedChunk
from services.memory.indexes.context import IndexContext
from services.memory.indexes.rows import indexed, of_bank
from services.memory.indexes.upkeep import BATCH, revision_of
from services.memory.tables import bank_indexes, banks, chunks


class TransactionalIndex(abc.ABC):
    """An index in tables of its own."""

    name: ClassVar[str]
    wants_embeddings: ClassVar[bool] = False

    def __init__(self, context: IndexContext) -> None:
        self._context = context
        self._database = context.database
        self._bank = context.bank

    @property
    @abc.abstractmethod
    def mark(self) -> str:
        """What its content depends on beside the chunks."""

    @abc.abstractmethod
    async def create(self, connection: AsyncConnection) -> None:
        """Make the tables, empty."""

    @abc.abstractmethod
    async def finish(self, connection: AsyncConnection) -> None:
        """Make what is made faster when the chunks are in."""

    @abc.abstractmethod
    async def erase(self, connection: AsyncConnection) -> None:
        """Drop the tables, where they are."""

    @abc.abstractmethod
    async def put(self, connection: AsyncConnection, added: Sequence[IndexedChunk]) -> None:
        """Insert chunks that are not in."""

    @abc.abstractmethod
    async def take(self, connection: AsyncConnection, numbers: Sequence[int]) -> None:
        """Delete chunks, also such as are not in."""

    async def open(self) -> None:
        """Make it from the chunks where it is not there yet."""
        async with self._database.read() as connection:
            if await self.exists(connection):
                return
        async with self._database.write() as connection:
            # Waits for the bank's writers, and they for us.
            held = sa.select(banks.c.number).where(banks.c.number == self._bank.number).with_for_update()
            await connection.execute(held)
            await revision_of(connection, self._bank)
            await self._ensure(connection)

    async def close(self) -> None:  # noqa: B027 (nothing is held)
        """Nothing is held."""

    async def drop(self) -> None:
        """Drop the tables."""
        async with self._database.write() as connection:
            await self._erase(connection)

    async def write(self, connection: AsyncConnection, changes: Changes) -> None:
        """Take changes in, inside the transaction that makes them."""
        await self._ensure(connection)
        removed = set(changes.removed)
        added = [one for one in changes.added if one.number not in removed]
        await self.take(connection, [*changes.removed, *(one.number for one in added)])
        await self.put(connection, added)

    async def exists(self, connection: AsyncConnection) -> bool:
        """Whether it is there, made as it would be made now."""
        mark: Any = (await connection.execute(sa.select(bank_indexes.c.mark).where(self._mine()))).scalar_one_or_none()
        return bool(mark == self.mark)

    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(bank_indexes.c.bank == self._bank.number, bank_indexes.c.name == self.name)

    async def _erase(self, connection: AsyncConnection) -> None:
        await self.erase(connection)
        await connection.execute(sa.delete(bank_indexes).where(self._mine()))

    async def _ensure(self, connection: AsyncConnection) -> None:
        if await self.exists(connection):
            return
        await self._erase(connection)
        await self.create(connection)
        row = {"bank": self._bank.number, "name": self.name, "mark": self.mark, "totals": {}}
        await connection.execute(sa.insert(bank_indexes).values(**row))
        async for batch in self._chunks(connection):
            await self.put(connection, batch)
        await self.finish(connection)

    async def _chunks(self, connection: AsyncConnection) -> AsyncIterator[Sequence[IndexedChunk]]:
        """All chunks of the bank, by number."""
        after = 0
        while True:
            query = of_bank(self._bank, embeddings=self.wants_embeddings).where(chunks.c.number > after)
            rows = (await connection.execute(query.order_by(chunks.c.number).limit(BATCH))).mappings().all()
            if not rows:
                return
            yield [indexed(self._bank, row) for row in rows]
            after = rows[-1]["number"]

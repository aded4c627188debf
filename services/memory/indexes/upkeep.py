"""Bringing a local index up to date from the tables.

Removals of long ago are trimmed. What is left of them is a marker, a removal of chunk 0 at the last trimmed revision:
an index that stands before a marker may hold chunks that are gone, so it is made again.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.bank import Bank
from services.memory.chunks import Changes
from services.memory.database import Database
from services.memory.index import LocalIndex
from services.memory.indexes.rows import indexed, of_bank
from services.memory.tables import banks, chunks, removals
from stack_client.errors import NotFoundError

BATCH = 2000
"""Chunks in memory at once, 6 MB with 768 dimensions."""
REMOVED_BATCH = 20_000
KEPT_REVISIONS = 10_000
"""Revisions of a bank whose removals are kept."""
TRIM_EVERY = 1000
MARKER = 0
"""Chunks are counted from 1."""


async def revision_of(connection: AsyncConnection, bank: Bank) -> int:
    """The bank's revision.

    Raises:
        NotFoundError: If it was deleted meanwhile.
    """
    query = sa.select(banks.c.revision).where(banks.c.number == bank.number)
    revision = (await connection.execute(query)).scalar_one_or_none()
    if revision is None:
        raise NotFoundError(f"no memory bank {bank.identifier!r}; it was deleted meanwhile")
    return int(revision)


async def catch_up(database: Database, bank: Bank, index: LocalIndex, *, embeddings: bool) -> int:
    """Take into a local index what was committed since its position; answers how many chunks were added.

    Args:
        database: Where the chunks are.
        bank: Whose index it is.
        index: Open.
        embeddings: It wants them.

    Raises:
        NotFoundError: If the bank was deleted meanwhile.
        IndexBrokenError: If the index cannot take them.
    """
    async with database.read() as connection:
        if database.dialect == "postgresql" and index.shared:
            # Two replicas at once could leave a removed chunk in an index that both write.
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(bank.number)))
        revision, position = await revision_of(connection, bank), await index.position()
        if position == revision:
            return 0
        removed = await _removed(connection, bank, after=position) if position else []
        if position > revision or MARKER in removed:
            await index.drop()
            await index.open()
            position, removed = 0, []
        for start in range(0, len(removed), REMOVED_BATCH):
            await index.apply(Changes(revision=position, removed=removed[start : start + REMOVED_BATCH]))
        return await _add(connection, bank, index, after=position, revision=revision, embeddings=embeddings)


async def trim(connection: AsyncConnection, bank: Bank, *, revision: int) -> None:
    """Every now and then forget removals of long ago, inside the transaction that makes this revision."""
    before = revision - KEPT_REVISIONS
    if before <= 0 or revision % TRIM_EVERY:
        return
    await trim_before(connection, bank, revision=before)


async def trim_before(connection: AsyncConnection, bank: Bank, *, revision: int) -> None:
    """Forget the removals up to a revision."""
    c = removals.c
    await connection.execute(sa.delete(removals).where(c.bank == bank.number, c.revision <= revision))
    await connection.execute(sa.insert(removals).values(bank=bank.number, revision=revision, chunk=MARKER))


async def _removed(connection: AsyncConnection, bank: Bank, *, after: int) -> list[int]:
    query = sa.select(removals.c.chunk).where(removals.c.bank == bank.number, removals.c.revision > after)
    return list((await connection.execute(query)).scalars())


async def _add(
    connection: AsyncConnection, bank: Bank, index: LocalIndex, *, after: int, revision: int, embeddings: bool
) -> int:
    query = of_bank(bank, embeddings=embeddings).add_columns(chunks.c.revision)
    query = query.where(chunks.c.revision > after).order_by(chunks.c.revision)
    count, waiting = 0, list[Any]()
    stream = await connection.stream(query)
    async for rows in stream.mappings().partitions(BATCH):
        if waiting:
            # Of the last revision of a batch more may follow, so it is not complete yet.
            await index.apply(Changes(revision=max(waiting[-1]["revision"] - 1, after), added=_all(bank, waiting)))
        waiting = list(rows)
        count += len(waiting)
    await index.apply(Changes(revision=revision, added=_all(bank, waiting)))
    return count


def _all(bank: Bank, rows: list[Any]) -> list[Any]:
    return [indexed(bank, row) for row in rows]

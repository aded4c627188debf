"""Computing all embeddings of a bank anew, beside those that count."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import bank_of
from services.memory.chunk_rows import searched
from services.memory.chunk_writer import ChunkWriter
from services.memory.database import Database, next_revision
from services.memory.embedder import Embedder, EmbeddingModel, to_blob
from services.memory.tables import banks, chunks, stagings

READ_BATCH = 256
WRITE_BATCH = 500

Report: TypeAlias = Callable[[int, int], Awaitable[None]]
"""Told how many chunks are done, and of how many."""

_COPIED = [column.name for column in chunks.columns if column.name not in {"number", "revision"}]


class Reembedding:
    """One bank's change to other embeddings.

    Args:
        database: Where the bank is.
        embedder: Makes vectors.
        writer: Writes chunks.
        bank: A vector bank.
        model: The new model; the bank's own computes its embeddings again.
    """

    def __init__(
        self, database: Database, embedder: Embedder, writer: ChunkWriter, *, bank: Bank, model: EmbeddingModel
    ) -> None:
        self._database = database
        self._embedder = embedder
        self._writer = writer
        self._bank = bank
        self._model = model
        self._again = bank.embedding_stamp.split(" ")[0] == model.stamp
        self._stamp = f"{model.stamp} {bank.revision}" if self._again else model.stamp

    async def run(self, report: Report) -> None:
        """Compute all embeddings, then let them count; queries use the old ones until then.

        What was computed is kept as it comes, so that a call after a crash goes on where the last one ended.

        Raises:
            StackError: If the model fails, or the bank is deleted meanwhile.
        """
        while True:
            await self._stage(report)
            async with self._database.write() as connection:
                revision = await next_revision(connection, self._bank.number)
                lacking = sa.select(sa.func.count()).select_from(chunks).where(self._unstaged())
                if not (await connection.execute(lacking)).scalar_one():  # nothing was written meanwhile
                    await self._switch(connection, revision=revision)
                    return

    async def _stage(self, report: Report) -> None:
        """Compute what is missing, in batches."""
        c = chunks.c
        every = sa.select(sa.func.count()).select_from(chunks).where(c.bank == self._bank.number)
        staged = sa.select(sa.func.count()).select_from(stagings).where(self._staged())
        missing = sa.select(c.number, c.text, c.context).where(self._unstaged()).order_by(c.number).limit(READ_BATCH)
        while True:
            async with self._database.read() as connection:
                total = (await connection.execute(every)).scalar_one()
                done = (await connection.execute(staged)).scalar_one()
                rows = (await connection.execute(missing)).mappings().all()
            await report(min(done, total), total)
            if not rows:
                return
            await self._stage_rows(rows)

    async def _stage_rows(self, rows: Sequence[Mapping[Any, Any]]) -> None:
        texts = [searched(row) for row in rows]
        vectors = await self._embedder.embed(self._model, texts, anew=self._again)
        staging = [
            {"chunk": row["number"], "stamp": self._stamp, "bank": self._bank.number, "vector": to_blob(vector)}
            for row, vector in zip(rows, vectors, strict=True)
        ]
        numbers = [row["number"] for row in rows]
        async with self._database.write() as connection:
            await connection.execute(sa.delete(stagings).where(self._staged(), stagings.c.chunk.in_(numbers)))
            await connection.execute(sa.insert(stagings), staging)

    async def _switch(self, connection: AsyncConnection, *, revision: int) -> None:
        """Let the new embeddings count: every chunk is written anew, for indexes know a chunk by its number."""
        params = v1.BankParams()
        params.CopyFrom(self._bank.params)
        params.vector.embedding_model = self._model.model_id
        params.vector.embedding_dimension = self._model.dimension
        change = sa.update(banks).where(banks.c.number == self._bank.number)
        change = change.values(
            embedding_model=self._model.model_id,
            embedding_dimension=self._model.dimension,
            embedding_stamp=self._stamp,
            params=params.SerializeToString(deterministic=True),
        )
        after = bank_of((await connection.execute(change.returning(banks))).mappings().one())
        c = chunks.c
        query = sa.select(chunks, stagings.c.vector).join(stagings, stagings.c.chunk == c.number)
        query = query.where(c.bank == self._bank.number, stagings.c.stamp == self._stamp, c.revision < revision)
        while True:
            some = query.order_by(c.number).limit(WRITE_BATCH)
            rows = (await connection.execute(some)).mappings().all()
            if not rows:
                break
            await self._writer.remove(connection, self._bank, [row["number"] for row in rows], revision=revision)
            new = [
                {
                    **{name: row[name] for name in _COPIED},
                    "embedding": row["vector"],
                    "embedding_stamp": self._stamp,
                }
                for row in rows
            ]
            await self._writer.replace(connection, after, [], new, revision=revision)
        await connection.execute(sa.delete(stagings).where(stagings.c.bank == self._bank.number))

    def _staged(self) -> sa.ColumnElement[bool]:
        return sa.and_(stagings.c.bank == self._bank.number, stagings.c.stamp == self._stamp)

    def _unstaged(self) -> sa.ColumnElement[bool]:
        """Chunks of the bank that have no new embedding yet."""
        there = sa.exists().where(stagings.c.chunk == chunks.c.number, stagings.c.stamp == self._stamp)
        return sa.and_(chunks.c.bank == self._bank.number, ~there)

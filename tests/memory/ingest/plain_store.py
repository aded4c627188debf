"""The store of documents as ingestion needs it, without embeddings: for tests of ingestion alone."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import sqlalchemy as sa

from services.memory.bank import Bank
from services.memory.database import Database, next_revision
from services.memory.embedder import EmbeddingModel
from services.memory.moments import now
from services.memory.tables import banks, chunks, documents
from services.memory.text import DraftDocument


@dataclass(frozen=True, kw_only=True)
class Stored:
    status: str
    chunks: int


class PlainStore:
    """Writes documents and chunks in one transaction each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def recipe(self, bank: Bank, document_id: str) -> str:
        query = sa.select(documents.c.recipe_hash).where(*_one(bank, document_id))
        async with self._database.read() as connection:
            return (await connection.execute(query)).scalar_one_or_none() or ""

    async def put(self, bank: Bank, draft: DraftDocument) -> Stored:
        moment = now()
        async with self._database.write() as connection:
            revision = await next_revision(connection, bank.number)
            query = sa.select(documents).where(*_one(bank, draft.document_id))
            before = (await connection.execute(query)).mappings().first()
            if before is not None and before["recipe_hash"] == draft.recipe_hash:
                return Stored(status="unchanged", chunks=0)
            if before is not None:
                await connection.execute(sa.delete(chunks).where(chunks.c.document == before["number"]))
                await connection.execute(sa.delete(documents).where(documents.c.number == before["number"]))
            row = {
                "bank": bank.number, "document_id": draft.document_id, "source": draft.source,
                "file_id": draft.file_id, "mime_type": draft.parsed.mime_type, "content": draft.parsed.text,
                "pages": list(draft.parsed.pages), "metadata": draft.metadata, "facts": {},
                "content_hash": _hash(draft.parsed.text), "recipe_hash": draft.recipe_hash, "revision": revision,
                "token_count": 0, "chunk_count": len(draft.chunks), "created_at": moment, "updated_at": moment,
                "expires_at": draft.expires_at,
            }  # fmt: skip
            number = (
                await connection.execute(sa.insert(documents).values(**row).returning(documents.c.number))
            ).scalar_one()
            rows = [
                {
                    "bank": bank.number, "document": number, "chunk_id": f"{draft.document_id}/{place}", "place": place,
                    "text": chunk.piece.text, "context": chunk.piece.context, "start": chunk.piece.start,
                    "stop": chunk.piece.stop, "page": chunk.piece.page, "token_count": chunk.piece.tokens,
                    "content_hash": _hash(chunk.piece.searched), "metadata": chunk.metadata, "facts": {},
                    "revision": revision, "created_at": moment,
                }
                for place, chunk in enumerate(draft.chunks)
            ]  # fmt: skip
            if rows:
                await connection.execute(sa.insert(chunks), rows)
        return Stored(status="inserted" if before is None else "replaced", chunks=len(rows))

    async def reembed(
        self, bank: Bank, model: EmbeddingModel, *, report: Callable[[int, int], Awaitable[None]]
    ) -> None:
        query = sa.select(sa.func.count()).where(chunks.c.bank == bank.number)
        async with self._database.read() as connection:
            total = (await connection.execute(query)).scalar_one()
        await report(total, total)
        async with self._database.write() as connection:
            await next_revision(connection, bank.number)
            change = sa.update(banks).where(banks.c.number == bank.number)
            await connection.execute(change.values(embedding_stamp=f"{model.stamp}#2"))


def _one(bank: Bank, document_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (documents.c.bank == bank.number, documents.c.document_id == document_id)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

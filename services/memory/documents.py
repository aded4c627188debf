"""The documents of banks and the chunks that they were cut into, stored, changed and deleted in transactions."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.bank import Bank
from services.memory.banks import bank_of
from services.memory.catalog import Catalog
from services.memory.chunk_rows import LooseChunk, Planned, chunk_columns, draft_of, plan, searched
from services.memory.chunk_writer import ChunkWriter
from services.memory.database import Database, next_revision
from services.memory.embedder import Embedder, EmbeddingModel
from services.memory.filters import Filter, facts_of
from services.memory.indexes.filter_sql import sql_filter
from services.memory.ingest_metrics import IngestMetrics
from services.memory.reembedding import Reembedding, Report
from services.memory.tables import banks, chunks, documents
from services.memory.text import DraftDocument
from services.runtime.moments import now
from stack_client.errors import ConflictError, InvalidArgumentError, NotFoundError

DELETE_BATCH = 500
SWEEP_SECONDS = 60.0
MODEL_TRIES = 3
"""Of a write, while its bank is given other embeddings again and again."""
DocumentRow = Mapping[Any, Any]
"""A row of `tables.documents`."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What became of a document."""

    document_id: str
    """Its identifier."""
    status: Literal["inserted", "replaced", "unchanged"]
    """Whether it was new, other, or there already."""
    chunks: int
    """Chunks written; those that were there already are not."""


class ModelChangedError(ConflictError):
    """The bank was given other embeddings between computing a document's and storing it."""


class DocumentStore:
    """The documents of all banks.

    Args:
        database: Where they are.
        catalog: The indexes of their chunks.
        embedder: Makes vectors of what has none.
        metrics: Told the seconds of embedding; None measures nothing.
    """

    def __init__(
        self, database: Database, catalog: Catalog, embedder: Embedder, *, metrics: IngestMetrics | None = None
    ) -> None:
        self._metrics = metrics
        self._database = database
        self._embedder = embedder
        self._writer = ChunkWriter(catalog)

    async def put(self, bank: Bank, draft: DraftDocument) -> Stored:
        """Store a document, or make the stored one equal to it; see `put_all`."""
        return (await self.put_all(bank, [draft]))[0]

    async def put_all(
        self, bank: Bank, drafts: Sequence[DraftDocument], *, etags: Mapping[str, str] | None = None
    ) -> list[Stored]:
        """Store documents, or make the stored ones equal to them, all or none.

        What is stored already is neither embedded nor written again.

        Args:
            bank: A bank of documents.
            drafts: With different ids.
            etags: By document: what is changed; all of these must be there. An empty one is not compared.

        Raises:
            ConflictError: If a document has another etag than the one given.
            NotFoundError: If a document with an etag, or the bank, is not there any more.
            InvalidArgumentError: If metadata breaks the bank's declared fields.
            UnavailableError: If the embedding model cannot be reached.
        """
        for _ in range(MODEL_TRIES - 1):
            try:
                return await self._put_all(bank, drafts, etags)
            except ModelChangedError:
                bank = await self._again(bank)
        return await self._put_all(bank, drafts, etags)

    async def _put_all(
        self, bank: Bank, drafts: Sequence[DraftDocument], etags: Mapping[str, str] | None
    ) -> list[Stored]:
        planned = [plan(bank, draft) for draft in drafts]
        recipes = await self.recipes(bank, [draft.document_id for draft in drafts])
        fresh = [one for one in planned if not one.equals(recipes.get(one.draft.document_id))]
        await self._embed(bank, fresh)
        if not fresh and not etags:
            return [Stored(document_id=draft.document_id, status="unchanged", chunks=0) for draft in drafts]
        async with self._database.write() as connection:
            revision = await next_revision(connection, bank.number)
            await self._check_model(connection, bank)
            await _check_etags(connection, bank, etags or {})
            return [await self._write(connection, bank, one, revision=revision) for one in planned]

    async def put_chunks(self, bank: Bank, loose: Sequence[LooseChunk], *, expires_at: int | None) -> list[str]:
        """Store chunks beside those that are there, or in place of those with the same id, all or none.

        Args:
            bank: A bank of documents.
            loose: With the documents that they belong to; a document that is not there is made of them.
            expires_at: Microseconds since 1970; None means never.

        Returns:
            Their ids, in the same order.

        Raises:
            InvalidArgumentError: If metadata breaks the bank's declared fields, or an id is given twice.
            UnavailableError: If the embedding model cannot be reached.
        """
        for _ in range(MODEL_TRIES - 1):
            try:
                return await self._put_chunks(bank, loose, expires_at)
            except ModelChangedError:
                bank = await self._again(bank)
        return await self._put_chunks(bank, loose, expires_at)

    async def _put_chunks(self, bank: Bank, loose: Sequence[LooseChunk], expires_at: int | None) -> list[str]:
        by_document: dict[str, list[LooseChunk]] = {}
        for one in loose:
            by_document.setdefault(one.document_id, []).append(one)
        planned = [
            (plan(bank, draft_of(document_id, ones, expires_at=expires_at)), ones)
            for document_id, ones in by_document.items()
        ]
        names = {id(one): row["chunk_id"] for plan_, ones in planned for one, row in zip(ones, plan_.rows, strict=True)}
        if len(set(names.values())) < len(names):
            raise InvalidArgumentError("chunks: an identifier is given twice", field="chunks")
        await self._embed(bank, [one for one, _ in planned])
        async with self._database.write() as connection:
            revision = await next_revision(connection, bank.number)
            await self._check_model(connection, bank)
            for plan_, _ in planned:
                await self._add(connection, bank, plan_, revision=revision)
        return [names[id(one)] for one in loose]

    async def _add(self, connection: AsyncConnection, bank: Bank, planned: Planned, *, revision: int) -> None:
        """Add chunks to a document; those with the ids of stored ones take their places."""
        document = await _find(connection, bank, planned.draft.document_id)
        if document is None:
            columns = planned.document(bank, revision=revision)
            insert = sa.insert(documents).values(**columns, created_at=columns["updated_at"]).returning(documents)
            document = (await connection.execute(insert)).mappings().one()
        c, ids = chunks.c, [row["chunk_id"] for row in planned.rows]
        same = sa.select(chunks).where(c.bank == bank.number, c.chunk_id.in_(ids))
        before = {row["chunk_id"]: row for row in (await connection.execute(same)).mappings()}
        last = sa.select(sa.func.coalesce(sa.func.max(c.place), -1)).where(c.document == document["number"])
        place = (await connection.execute(last)).scalar_one()
        for row in planned.rows:
            row["document"], old = document["number"], before.get(row["chunk_id"])
            if old is None or old["document"] != document["number"]:
                place += 1
                row["place"] = place
            else:
                row["place"] = old["place"]
        new = [row for row in planned.rows if _differs(before.get(row["chunk_id"]), row)]
        old_rows = [before[row["chunk_id"]] for row in new if row["chunk_id"] in before]
        await self._writer.replace(connection, bank, old_rows, new, revision=revision)
        touched = {document["number"], *(row["document"] for row in old_rows)}
        for number in touched:
            await _recount(connection, number, revision=revision)

    async def recipe(self, bank: Bank, document_id: str) -> str:
        """What a stored document was made of, to compare with a draft's; "" when it is not there."""
        found = (await self.recipes(bank, [document_id])).get(document_id)
        return found.recipe_hash if found is not None else ""

    async def recipes(self, bank: Bank, document_ids: Sequence[str]) -> dict[str, Any]:
        """Rows with `recipe_hash` and `expires_at` of those documents that are there, by id."""
        c = documents.c
        query = sa.select(c.document_id, c.recipe_hash, c.expires_at).where(c.bank == bank.number)
        found: dict[str, Any] = {}
        async with self._database.read() as connection:
            for start in range(0, len(document_ids), DELETE_BATCH):
                some = query.where(c.document_id.in_(document_ids[start : start + DELETE_BATCH]))
                found.update({row.document_id: row for row in await connection.execute(some)})
        return found

    async def get(self, bank: Bank, document_ids: Sequence[str]) -> dict[str, DocumentRow]:
        """Those documents that are there and have not expired, by id."""
        c = documents.c
        query = sa.select(documents).where(c.bank == bank.number, c.document_id.in_(document_ids), _alive())
        async with self._database.read() as connection:
            return {row["document_id"]: row for row in (await connection.execute(query)).mappings()}

    async def page(self, bank: Bank, *, where: Filter | None, after: int, limit: int) -> list[DocumentRow]:
        """Documents in the order in which they were first stored, after the one of a number."""
        c = documents.c
        query = sa.select(documents).where(c.bank == bank.number, c.number > after, _alive())
        if where is not None:
            query = query.where(sql_filter(where, c.facts, self._database.dialect))
        async with self._database.read() as connection:
            return list((await connection.execute(query.order_by(c.number).limit(limit))).mappings().all())

    async def chunks_of(self, bank: Bank, document_id: str, *, after: int = -1, limit: int = 1000) -> list[DocumentRow]:
        """Chunks of a document in their order, after the one at a place."""
        c = chunks.c
        of = sa.select(documents.c.number).where(
            documents.c.bank == bank.number, documents.c.document_id == document_id, _alive()
        )
        query = sa.select(chunks).where(c.document == of.scalar_subquery(), c.place > after)
        async with self._database.read() as connection:
            return list((await connection.execute(query.order_by(c.place).limit(limit))).mappings().all())

    async def delete(
        self,
        bank: Bank,
        *,
        document_ids: Sequence[str] = (),
        where: Filter | None = None,
        expired_by: int | None = None,
    ) -> list[str]:
        """Delete documents with their chunks from tables and indexes, all or none.

        Args:
            bank: A bank of documents.
            document_ids: Those to delete; empty = any that match.
            where: Only documents that match.
            expired_by: Only documents whose life has ended by then.
        """
        c = documents.c
        query = sa.select(c.number, c.document_id).where(c.bank == bank.number).order_by(c.number)
        if document_ids:
            query = query.where(c.document_id.in_(document_ids))
        if where is not None:
            query = query.where(sql_filter(where, c.facts, self._database.dialect))
        if expired_by is not None:
            query = query.where(c.expires_at <= expired_by)
        async with self._database.write() as connection:
            revision = await next_revision(connection, bank.number)
            found = (await connection.execute(query)).all()
            for start in range(0, len(found), DELETE_BATCH):
                numbers = [row.number for row in found[start : start + DELETE_BATCH]]
                of = sa.select(chunks.c.number).where(chunks.c.document.in_(numbers))
                gone = list((await connection.execute(of)).scalars())
                await self._writer.remove(connection, bank, gone, revision=revision)
                await connection.execute(sa.delete(documents).where(c.number.in_(numbers)))
        return [row.document_id for row in found]

    async def set_metadata(self, bank: Bank, document_id: str, metadata: Mapping[str, Any]) -> None:
        """Give a document other metadata, also its chunks; what a chunk has of its own stays.

        Raises:
            NotFoundError: If it is not there.
            InvalidArgumentError: If the metadata breaks the bank's declared fields.
        """
        facts = facts_of(metadata, fields=bank.fields, field="metadata")
        async with self._database.write() as connection:
            revision = await next_revision(connection, bank.number)
            document = await _find(connection, bank, document_id)
            if document is None:
                raise NotFoundError(f"no document {document_id!r} in bank {bank.identifier!r}")
            query = sa.select(chunks).where(chunks.c.document == document["number"]).order_by(chunks.c.place)
            before = (await connection.execute(query)).mappings().all()
            own = [
                {key: value for key, value in row["metadata"].items() if document["metadata"].get(key) != value}
                for row in before
            ]
            rows = [
                chunk_columns(row, metadata={**metadata, **mine}, bank=bank, document=document)
                for row, mine in zip(before, own, strict=True)
            ]
            await self._writer.replace(connection, bank, before, rows, revision=revision)
            moment = {"metadata": dict(metadata), "facts": facts, "revision": revision, "updated_at": now()}
            # Its recipe no longer describes it: the same draft again would bring the old metadata back.
            change = sa.update(documents).where(documents.c.number == document["number"])
            await connection.execute(change.values(**moment, recipe_hash=f"metadata {revision}"))

    async def reembed(self, bank: Bank, model: EmbeddingModel, *, report: Report) -> None:
        """Compute all embeddings of a bank anew; see `Reembedding.run`."""
        await Reembedding(self._database, self._embedder, self._writer, bank=bank, model=model).run(report)

    async def sweep(self) -> float:
        """Delete what has expired; answers the seconds until the next round."""
        c, moment = documents.c, now()
        async with self._database.read() as connection:
            query = sa.select(banks).where(
                banks.c.number.in_(sa.select(c.bank).where(c.expires_at <= moment).distinct())
            )
            found = [bank_of(row) for row in (await connection.execute(query)).mappings()]
        for bank in found:
            await self.delete(bank, expired_by=moment)
        return SWEEP_SECONDS

    async def _embed(self, bank: Bank, planned: Sequence[Planned]) -> None:
        """Give every planned chunk its vector: the caller's, one that is stored, or a new one."""
        if not bank.embedding_model:
            return
        lacking = [row for one in planned for row in one.rows if row["embedding"] is None]
        known = await self._stored_vectors(bank, [one.draft.document_id for one in planned])
        for row in lacking:
            row["embedding"] = known.get(row["content_hash"])
        lacking = [row for row in lacking if row["embedding"] is None]
        if lacking:
            model = await self._embedder.model(bank.embedding_model)
            with self._metrics.timed("embed") if self._metrics else nullcontext():
                vectors = await self._embedder.embed(model, [searched(row) for row in lacking])
            for row, vector in zip(lacking, vectors, strict=True):
                row["embedding"] = vector.tobytes()

    async def _stored_vectors(self, bank: Bank, document_ids: Sequence[str]) -> dict[str, bytes]:
        c, found = chunks.c, {}
        query = sa.select(c.content_hash, c.embedding).join(documents, documents.c.number == c.document)
        query = query.where(documents.c.bank == bank.number, c.embedding_stamp == bank.embedding_stamp)
        async with self._database.read() as connection:
            for start in range(0, len(document_ids), DELETE_BATCH):
                some = query.where(documents.c.document_id.in_(document_ids[start : start + DELETE_BATCH]))
                found.update({row[0]: row[1] for row in await connection.execute(some)})
        return found

    async def _again(self, bank: Bank) -> Bank:
        """The bank as it is now."""
        async with self._database.read() as connection:
            query = sa.select(banks).where(banks.c.number == bank.number)
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFoundError(f"no memory bank {bank.identifier!r}; it was deleted meanwhile")
        return bank_of(row)

    async def _check_model(self, connection: AsyncConnection, bank: Bank) -> None:
        stamp = sa.select(banks.c.embedding_stamp).where(banks.c.number == bank.number)
        if (await connection.execute(stamp)).scalar_one() != bank.embedding_stamp:
            message = f"bank {bank.identifier!r} was given another embedding model meanwhile; send the call again"
            raise ModelChangedError(message)

    async def _write(self, connection: AsyncConnection, bank: Bank, planned: Planned, *, revision: int) -> Stored:
        draft = planned.draft
        document = await _find(connection, bank, draft.document_id)
        if planned.equals(document):
            return Stored(document_id=draft.document_id, status="unchanged", chunks=0)
        columns = planned.document(bank, revision=revision)
        if document is None:
            insert = sa.insert(documents).values(**columns, created_at=columns["updated_at"]).returning(documents)
            document = (await connection.execute(insert)).mappings().one()
            status: Literal["inserted", "replaced"] = "inserted"
            before: Sequence[DocumentRow] = ()
        else:
            status = "replaced"
            query = sa.select(chunks).where(chunks.c.document == document["number"])
            before = (await connection.execute(query)).mappings().all()
            update = sa.update(documents).where(documents.c.number == document["number"]).values(**columns)
            document = (await connection.execute(update.returning(documents))).mappings().one()
        for row in planned.rows:
            row["document"] = document["number"]
        kept = {_identity(row): row for row in before}
        new = [row for row in planned.rows if kept.pop(_identity(row), None) is None]
        await self._writer.replace(connection, bank, list(kept.values()), new, revision=revision)
        return Stored(document_id=draft.document_id, status=status, chunks=len(new))


def _differs(old: DocumentRow | None, new: Mapping[str, Any]) -> bool:
    return old is None or _identity(old) != _identity(new) or old["document"] != new["document"]


async def _recount(connection: AsyncConnection, number: int, *, revision: int) -> None:
    """Bring a document's counts up to date; one that lost its last chunk and never had a text is gone."""
    c = chunks.c
    counts = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(c.token_count), 0)).where(c.document == number)
    chunk_count, tokens = (await connection.execute(counts)).one()
    where = documents.c.number == number
    if not chunk_count:
        await connection.execute(sa.delete(documents).where(where, documents.c.content == ""))
    change = {"chunk_count": chunk_count, "token_count": tokens, "revision": revision, "updated_at": now()}
    # Chunks of their own make it other than any draft: the same document again would bring its own ones back.
    await connection.execute(sa.update(documents).where(where).values(**change, recipe_hash=f"chunks {revision}"))


def etag(row: DocumentRow) -> str:
    """What changes with every change of a document."""
    return hashlib.sha256(f"{row['number']} {row['revision']}".encode()).hexdigest()[:16]


def _alive() -> sa.ColumnElement[bool]:
    return documents.c.expires_at.is_(None) | (documents.c.expires_at > now())


def _identity(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Equal for chunks that need not be written again."""
    names = ("chunk_id", "place", "content_hash", "start", "stop", "page", "expires_at", "embedding_stamp")
    return (*(row[name] for name in names), json.dumps([row["metadata"], row["facts"]], sort_keys=True))


async def _find(connection: AsyncConnection, bank: Bank, document_id: str) -> DocumentRow | None:
    c = documents.c
    query = sa.select(documents).where(c.bank == bank.number, c.document_id == document_id)
    return (await connection.execute(query)).mappings().first()


async def _check_etags(connection: AsyncConnection, bank: Bank, etags: Mapping[str, str]) -> None:
    for document_id, wanted in etags.items():
        document = await _find(connection, bank, document_id)
        if document is None or (document["expires_at"] is not None and document["expires_at"] <= now()):
            raise NotFoundError(f"no document {document_id!r} in bank {bank.identifier!r}; nothing was changed")
        if wanted and wanted != etag(document):
            message = f"document {document_id!r} was changed meanwhile: its etag is {etag(document)!r}; read it again"
            raise ConflictError(message, metadata={"etag": etag(document)})

"""Files of vector stores: attached, changed, detached. Ingestion jobs load them; see `store_progress`."""

import asyncio
import contextlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from google.protobuf.struct_pb2 import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory.bank import Bank
from services.memory.cut.context import check_prompt
from services.memory.cut.cutter import cutting_of
from services.memory.database import Database
from services.memory.documents import DocumentStore
from services.memory.filters import facts_of
from services.memory.jobs import Item, JobStore
from services.memory.metadata import metadata_of
from services.memory.tables import files, store_files, store_jobs
from services.memory.vector_stores import hold, numbered, own_fields, touch
from services.runtime.moments import now, stamp
from stack_client.content import struct
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError

MAX_ATTRIBUTES = 16
MAX_KEY = 64
MAX_VALUE = 512
BATCH = 500
ANY_WINDOW = 1 << 30
IN_PROGRESS = v1.VECTOR_STORE_FILE_STATUS_IN_PROGRESS
COMPLETED = v1.VECTOR_STORE_FILE_STATUS_COMPLETED
CANCELLED = v1.VECTOR_STORE_FILE_STATUS_CANCELLED
FAILED = v1.VECTOR_STORE_FILE_STATUS_FAILED

FileRow = Mapping[Any, Any]
"""A row of `tables.store_files`."""


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A file to be attached."""

    file_id: str
    """The uploaded file."""
    attributes: Mapping[str, Any]
    """Checked."""
    strategy: v1.ChunkingStrategy
    """Checked; unset means auto."""


class StoreFiles:
    """The files of all stores.

    Args:
        database: Where they are.
        jobs: Load them.
        documents: Where their chunks go.
    """

    def __init__(self, database: Database, jobs: JobStore, documents: DocumentStore) -> None:
        self._database = database
        self._jobs = jobs
        self._documents = documents
        self._settling = asyncio.Lock()

    async def check_uploaded(self, file_ids: Sequence[str], *, tenant: str, field: str) -> None:
        """Refuse files that the tenant does not have.

        Raises:
            NotFoundError: If one is not there.
        """
        c, known = files.c, set[str]()
        alive = c.expires_at.is_(None) | (c.expires_at > now())
        async with self._database.read() as connection:
            for start in range(0, len(file_ids), BATCH):
                some = c.file_id.in_(file_ids[start : start + BATCH])
                known.update(
                    (await connection.execute(sa.select(c.file_id).where(c.tenant == tenant, some, alive))).scalars()
                )
        for file_id in file_ids:
            if file_id not in known:
                raise NotFoundError(
                    f"no file {file_id!r}; it was never uploaded, was deleted or has expired", field=field
                )

    async def attach(
        self, connection: AsyncConnection, bank: Bank, wanted: Sequence[Attachment], *, batch: int | None = None
    ) -> dict[str, FileRow]:
        """Attach files and begin to load them, inside a transaction; answers the rows of all, by file.

        Those that are attached already stay as they are. Tell `JobStore.signals` of 0 after the transaction.

        Raises:
            NotFoundError: If the store was deleted meanwhile.
            UnavailableError: If one is still being detached.
        """
        bank = await hold(connection, bank)
        rows = await self._rows(connection, bank, [one.file_id for one in wanted])
        for row in rows.values():
            if row["detached"]:
                message = f"file {row['file_id']!r} is just being detached; attach it again in a moment"
                raise UnavailableError(message, retry_after=1.0)
        by_strategy: dict[bytes, list[Attachment]] = {}
        for one in wanted:
            if one.file_id not in rows:
                key = one.strategy.SerializeToString(deterministic=True)
                by_strategy.setdefault(key, []).append(one)
        for strategy, some in by_strategy.items():
            await self._load(connection, bank, strategy, some, batch=batch)
        await touch(connection, bank, own_fields(bank))
        return await self._rows(connection, bank, [one.file_id for one in wanted])

    async def get(self, bank: Bank, file_id: str) -> FileRow:
        """One file of a store.

        Raises:
            NotFoundError: If it is not attached.
        """
        async with self._database.read() as connection:
            return _found(await self._rows(connection, bank, [file_id]), bank, file_id)

    async def page(
        self, bank: Bank, *, status: int, after: int | None, before: int | None, descending: bool, limit: int,
        only: "sa.Select[Any] | None" = None,
    ) -> Sequence[FileRow]:  # fmt: skip
        """Files in the order of their attachment; see `numbered`. `only` selects the identifiers looked at."""
        c = store_files.c
        query = sa.select(store_files).where(c.bank == bank.number, sa.not_(c.detached))
        if status:
            query = query.where(c.status == status)
        if only is not None:
            query = query.where(c.file_id.in_(only))
        return await numbered(
            self._database, query, c.number, after=after, before=before, descending=descending, limit=limit
        )

    async def set_attributes(self, bank: Bank, file_id: str, attributes: Mapping[str, Any]) -> FileRow:
        """Give a file other attributes, also its chunks; while it is being loaded, they follow it.

        Raises:
            NotFoundError: If it is not attached.
        """
        c = store_files.c
        mine = (c.bank == bank.number) & (c.file_id == file_id)
        async with self._database.write() as connection:
            held = await hold(connection, bank)
            _found(await self._rows(connection, bank, [file_id]), bank, file_id)
            change = sa.update(store_files).where(mine).values(attributes=dict(attributes)).returning(store_files)
            row: FileRow = (await connection.execute(change)).mappings().one()
            await touch(connection, held, own_fields(held))
        if row["status"] == COMPLETED:
            await self.settle(bank, file_id)
        return row

    async def settle(self, bank: Bank, file_id: str) -> None:
        """Bring a loaded file's chunks to its attributes, where they are not yet; may be repeated."""
        c = store_files.c
        mine = (c.bank == bank.number) & (c.file_id == file_id)
        async with self._settling:  # two that write in turn would leave either's
            while True:
                async with self._database.read() as connection:
                    row = (await self._rows(connection, bank, [file_id])).get(file_id)
                if row is None or row["attributes"] == row["given"]:
                    return
                with contextlib.suppress(NotFoundError):  # without chunks there is nothing to change
                    await self._documents.set_metadata(bank, file_id, row["attributes"])
                async with self._database.write() as connection:
                    await connection.execute(sa.update(store_files).where(mine).values(given=row["attributes"]))

    async def detach(self, bank: Bank, file_id: str) -> None:
        """Take a file and its chunks out of a store.

        Raises:
            NotFoundError: If it is not attached.
        """
        c = store_files.c
        mine = (c.bank == bank.number) & (c.file_id == file_id)
        async with self._database.write() as connection:
            held = await hold(connection, bank)
            row = _found(await self._rows(connection, bank, [file_id]), bank, file_id)
            await connection.execute(sa.update(store_files).where(mine).values(detached=True))
            await touch(connection, held, own_fields(held))
            of = sa.select(store_jobs.c.job_id, store_jobs.c.batch).where(store_jobs.c.job == row["job"])
            job = (await connection.execute(of)).first()
        if row["status"] == IN_PROGRESS:
            if job is not None and job.batch is None:
                await self.stop(bank, [job.job_id])
            return  # the job's end takes it away: it may be writing chunks right now
        await self.erase(bank, file_id)

    async def erase(self, bank: Bank, file_id: str) -> None:
        """Delete the chunks of a detached file, then its row; may be repeated."""
        await self._documents.delete(bank, document_ids=[file_id])
        c = store_files.c
        async with self._database.write() as connection:
            await connection.execute(
                sa.delete(store_files).where(c.bank == bank.number, c.file_id == file_id, c.detached)
            )

    async def forget(self, bank: Bank) -> None:
        """Take away all files of a store whose chunks are gone.

        Raises:
            NotFoundError: If it was deleted meanwhile.
        """
        async with self._database.write() as connection:
            await hold(connection, bank)
            await connection.execute(sa.delete(store_files).where(store_files.c.bank == bank.number))

    async def stop(self, bank: Bank, job_ids: Sequence[str]) -> None:
        """Ask jobs to end; those that have ended stay as they are."""
        for job_id in job_ids:
            try:
                await self._jobs.cancel(job_id, tenant=bank.tenant)
            except (FailedPreconditionError, NotFoundError):
                continue

    async def running(self, bank: Bank) -> list[str]:
        """Jobs that load files of a store."""
        c = store_jobs.c
        async with self._database.read() as connection:
            query = sa.select(c.job_id).where(c.bank == bank.number, sa.not_(c.ended))
            return list((await connection.execute(query)).scalars())

    async def _load(
        self,
        connection: AsyncConnection,
        bank: Bank,
        strategy: bytes,
        wanted: Sequence[Attachment],
        *,
        batch: int | None,
    ) -> None:
        request = v1.CreateIngestionJobRequest(bank_id=bank.identifier)
        if strategy:
            request.chunking_strategy.ParseFromString(strategy)
        items = [
            Item(
                place=place,
                document_id=one.file_id,
                file_id=one.file_id,
                document=v1.RAGDocument(document_id=one.file_id, metadata=struct(one.attributes)),
            )
            for place, one in enumerate(wanted)
        ]
        job = await self._jobs.create(connection, bank, request, items, digest=secrets.token_hex(16), expires_at=None)
        row = {"job": job["number"], "job_id": job["job_id"], "bank": bank.number, "batch": batch}
        await connection.execute(sa.insert(store_jobs).values(**row))
        rows = [
            {
                "bank": bank.number,
                "file_id": one.file_id,
                "job": job["number"],
                "status": IN_PROGRESS,
                "attributes": dict(one.attributes),
                "given": dict(one.attributes),
                "strategy": strategy,
                "created_at": now(),
            }
            for one in wanted
        ]
        await connection.execute(sa.insert(store_files), rows)

    async def _rows(self, connection: AsyncConnection, bank: Bank, file_ids: Sequence[str]) -> dict[str, FileRow]:
        c = store_files.c
        found: dict[str, FileRow] = {}
        for start in range(0, len(file_ids), BATCH):
            some = c.file_id.in_(file_ids[start : start + BATCH])
            query = sa.select(store_files).where(c.bank == bank.number, some)
            found.update({row["file_id"]: row for row in (await connection.execute(query)).mappings()})
        return found


def attachment_of(
    bank: Bank,
    file_id: str,
    attributes: Struct,
    strategy: v1.ChunkingStrategy,
    *,
    field: str = "",
) -> Attachment:
    """A file to be attached, checked.

    Args:
        bank: The store.
        file_id: Of the request.
        attributes: Of the request.
        strategy: Of the request; without a member it is auto.
        field: Path of the message that holds them, with its dot; empty at the top.

    Raises:
        InvalidArgumentError: If something is missing or out of range.
    """
    if not file_id:
        raise InvalidArgumentError(f"{field}file_id is empty", reason="MISSING_FIELD", field=f"{field}file_id")
    cutting = cutting_of(strategy, bank, window=ANY_WINDOW, field=f"{field}chunking_strategy")
    if cutting.context_prompt:
        check_prompt(cutting.context_prompt)
    facts = check_attributes(attributes, bank, field=f"{field}attributes")
    return Attachment(file_id=file_id, attributes=facts, strategy=strategy)


def status_of(wanted: int) -> int:
    """A status that files are listed by; 0 is all.

    Raises:
        InvalidArgumentError: If there is no such status.
    """
    if wanted not in v1.VectorStoreFileStatus.values():
        message = f"filter: {wanted} is no status; give in_progress, completed, cancelled or failed"
        raise InvalidArgumentError(message, field="filter")
    return wanted


def check_attributes(message: Struct, bank: Bank, *, field: str) -> dict[str, Any]:
    """Attributes of a file as plain values.

    Raises:
        InvalidArgumentError: If there are too many, one is too long or of another kind, or breaks the bank's fields.
    """
    if len(message.fields) > MAX_ATTRIBUTES:
        count = len(message.fields)
        raise InvalidArgumentError(f"{field} has {count} keys; at most {MAX_ATTRIBUTES} are allowed", field=field)
    for key, value in message.fields.items():
        kind = value.WhichOneof("kind")
        if not 1 <= len(key) <= MAX_KEY:
            raise InvalidArgumentError(f"{field}: key {key[:80]!r} must have 1 to {MAX_KEY} characters", field=field)
        fits = {
            "string_value": len(value.string_value) <= MAX_VALUE,
            "number_value": math.isfinite(value.number_value),
            "bool_value": True,
        }
        if kind is None or not fits.get(kind, False):
            words = f"a string of at most {MAX_VALUE} characters, a finite number, true or false"
            raise InvalidArgumentError(f"{field}.{key}: give {words}", field=field)
    attributes = metadata_of(message, field=field)
    facts_of(attributes, fields=bank.fields, field=field)
    return attributes


def file_message(bank: Bank, row: FileRow) -> v1.VectorStoreFile:
    """A file of a store as callers see it."""
    strategy = v1.ChunkingStrategy.FromString(row["strategy"])
    if strategy.WhichOneof("strategy") is None:
        strategy.auto.SetInParent()
    error = None
    if row["error_code"]:
        error = v1.VectorStoreFileError(code=row["error_code"], message=row["error_message"])
    return v1.VectorStoreFile(
        id=row["file_id"],
        attributes=struct(row["attributes"]),
        chunking_strategy=strategy,
        created_at=stamp(row["created_at"]),
        last_error=error,
        status=row["status"],
        usage_bytes=row["usage_bytes"],
        vector_store_id=bank.identifier,
    )


def _found(rows: Mapping[str, FileRow], bank: Bank, file_id: str) -> FileRow:
    row = rows.get(file_id)
    if row is None or row["detached"]:
        message = f"vector store {bank.identifier!r} has no file {file_id!r}; list those that it has"
        raise NotFoundError(message, field="file_id")
    return row

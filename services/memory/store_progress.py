"""What ingestion jobs report, taken over into files of stores and their batches.

A job's events are the truth of what became of its documents. They are taken over whenever somebody looks, and now and
then, each once: a transaction that moves `store_jobs.seen` on changes what they tell of. Batches count their own
events, of their files and of all that was already there.
"""

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import bank_of
from services.memory.database import Database
from services.memory.jobs import JobStore
from services.memory.store_files import (
    CANCELLED,
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    Attachment,
    FileRow,
    StoreFiles,
    file_message,
)
from services.memory.tables import (
    banks,
    batch_events,
    batch_files,
    chunks,
    documents,
    file_batches,
    jobs,
    store_files,
    store_jobs,
)
from services.memory.vector_stores import counts_message, hold
from services.runtime.moments import now, stamp
from stack_client.errors import FailedPreconditionError, NotFoundError

MAX_ERROR = 1000
_ENDED = {"completed": COMPLETED, "failed": FAILED, "cancelled": CANCELLED}
BatchRow = Mapping[Any, Any]
"""A row of `tables.file_batches`."""


class Handled(NamedTuple):
    """What became of a file."""

    status: int
    code: str = ""
    message: str = ""


class StoreProgress:
    """Files on their way into stores, and the batches they came in.

    Args:
        database: Where they are.
        jobs: What loads them.
        files: Files of stores.
    """

    def __init__(self, database: Database, jobs: JobStore, files: StoreFiles) -> None:
        self._database = database
        self._jobs = jobs
        self._files = files

    async def advance(self, *numbers: int) -> None:
        """Take over what jobs have reported of some stores, by their banks' numbers; none means all stores."""
        c = store_jobs.c
        query = sa.select(store_jobs, banks).join(banks, banks.c.number == c.bank).where(sa.not_(c.ended))
        query = query.with_only_columns(c.job, c.seen, c.batch, *banks.c)
        if numbers:
            query = query.where(c.bank.in_(numbers))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        for row in rows:
            await self._advance(bank_of(row), row["job"], row["seen"])

    async def settle(self) -> None:
        """Finish what an earlier process began: detached files, changed attributes."""
        c = store_files.c
        running = sa.select(store_jobs.c.job).where(sa.not_(store_jobs.c.ended))
        unfinished = (c.detached & c.job.not_in(running)) | ((c.status == COMPLETED) & (c.attributes != c.given))
        query = sa.select(store_files.c.file_id, store_files.c.detached, *banks.c)
        async with self._database.read() as connection:
            found = query.join(banks, banks.c.number == c.bank).where(unfinished)
            rows = (await connection.execute(found)).mappings().all()
        for row in rows:
            if row["detached"]:
                await self._files.erase(bank_of(row), row["file_id"])
            else:
                await self._files.settle(bank_of(row), row["file_id"])

    async def create_batch(self, connection: AsyncConnection, bank: Bank, wanted: Sequence[Attachment]) -> BatchRow:
        """Attach files as a batch, inside a transaction; see `StoreFiles.attach`."""
        bank = await hold(connection, bank)
        row = {"bank": bank.number, "batch_id": f"vsfb_{secrets.token_hex(12)}", "status": IN_PROGRESS}
        insert = sa.insert(file_batches).values(**row, created_at=now()).returning(file_batches)
        batch: BatchRow = (await connection.execute(insert)).mappings().one()
        rows = await self._files.attach(connection, bank, wanted, batch=batch["number"])
        given = [
            {"batch": batch["number"], "file_id": file_id, "status": row["status"]} for file_id, row in rows.items()
        ]
        await connection.execute(sa.insert(batch_files), given)
        await self._tell_batch(connection, bank, batch["number"], [])
        return await _batch(connection, bank, batch["batch_id"])

    async def batch(self, bank: Bank, batch_id: str) -> BatchRow:
        """One batch.

        Raises:
            NotFoundError: If the store has none of that identifier.
        """
        async with self._database.read() as connection:
            return await _batch(connection, bank, batch_id)

    async def batch_page(self, bank: Bank, *, before: int | None, limit: int) -> Sequence[BatchRow]:
        """Batches of a store, newest first, before one of them."""
        c = file_batches.c
        query = sa.select(file_batches).where(c.bank == bank.number).order_by(c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(c.number < before)
        async with self._database.read() as connection:
            return (await connection.execute(query)).mappings().all()

    async def batch_messages(
        self, bank: Bank, rows: Sequence[BatchRow], *, connection: AsyncConnection | None = None
    ) -> list[v1.VectorStoreFileBatch]:
        """Batches as callers see them; inside the transaction of a connection, or one of its own."""
        async with self._database.read() if connection is None else contextlib.nullcontext(connection) as reading:
            return [await _batch_message(reading, bank, row) for row in rows]

    async def cancel_batch(self, bank: Bank, batch_id: str) -> BatchRow:
        """Ask a batch to stop.

        Raises:
            NotFoundError: If the store has none of that identifier.
            FailedPreconditionError: If it has completed or failed.
        """
        async with self._database.write() as connection:
            await hold(connection, bank)
            row = await _batch(connection, bank, batch_id)
            if row["status"] in {COMPLETED, FAILED}:
                ended = "completed" if row["status"] == COMPLETED else "failed"
                raise FailedPreconditionError(f"batch {batch_id!r} has {ended}: nothing is left to stop")
            mine = file_batches.c.number == row["number"]
            await connection.execute(sa.update(file_batches).where(mine).values(cancelling=True))
            of = sa.select(store_jobs.c.job_id).where(store_jobs.c.batch == row["number"], sa.not_(store_jobs.c.ended))
            job_ids = (await connection.execute(of)).scalars().all()
            await self._drop_foreign(connection, bank, row["number"])
        await self._files.stop(bank, job_ids)
        await self.advance(bank.number)
        return await self.batch(bank, batch_id)

    async def events(self, batch: int, *, after: int, limit: int = 100) -> list[v1.WatchVectorStoreFileBatchResponse]:
        """Events of a batch in order."""
        c = batch_events.c
        query = sa.select(c.event).where(c.batch == batch, c.sequence > after).order_by(c.sequence).limit(limit)
        async with self._database.read() as connection:
            found = (await connection.execute(query)).scalars().all()
        return [v1.WatchVectorStoreFileBatchResponse.FromString(event) for event in found]

    async def _advance(self, bank: Bank, job: int, seen: int) -> None:
        while events := await self._jobs.events(job, after=seen):
            handled: dict[str, Handled] = {}
            rest: Handled | None = None
            for event in events:
                kind = event.WhichOneof("event")
                if kind == "document":
                    handled[event.document.document_id] = _handled(event.document)
                elif kind in _ENDED:
                    rest = _rest(kind, getattr(event, kind))
            await self._take_over(bank, job, span=(seen, events[-1].sequence), handled=handled, rest=rest)
            seen = events[-1].sequence
            if rest is not None:
                return

    async def _take_over(
        self, bank: Bank, job: int, *, span: tuple[int, int], handled: Mapping[str, Handled], rest: Handled | None
    ) -> None:
        """Change what some events tell of, unless somebody else did.

        Args:
            bank: The store.
            job: Whose events.
            span: The last one before them, and the last one of them.
            handled: What became of files.
            rest: What becomes of the job's other files; None while it goes on.
        """
        c, (seen, upto) = store_files.c, span
        async with self._database.write() as connection:
            try:
                await hold(connection, bank)
            except NotFoundError:
                return
            mine = (store_jobs.c.job == job) & (store_jobs.c.seen == seen)
            move = sa.update(store_jobs).where(mine).values(seen=upto, ended=rest is not None)
            if not (await connection.execute(move)).rowcount:
                return
            query = sa.select(store_files).where(c.job == job, c.status == IN_PROGRESS).order_by(c.number)
            if rest is None:
                query = query.where(c.file_id.in_(handled))
            changed = [
                await self._set(connection, row, handled.get(row["file_id"], rest))
                for row in (await connection.execute(query)).mappings().all()
            ]
            await self._tell_batches(connection, bank, changed)
        for row in changed:
            if row["detached"]:
                await self._files.erase(bank, row["file_id"])
            elif row["attributes"] != row["given"]:
                await self._files.settle(bank, row["file_id"])

    async def _set(self, connection: AsyncConnection, row: FileRow, handled: Handled | None) -> FileRow:
        assert handled is not None
        size = await _usage(connection, self._database.dialect, row) if handled.status == COMPLETED else 0
        columns = {
            "status": handled.status,
            "error_code": handled.code,
            "error_message": handled.message[:MAX_ERROR],
            "usage_bytes": size,
        }
        change = sa.update(store_files).where(store_files.c.number == row["number"]).values(**columns)
        changed: FileRow = (await connection.execute(change.returning(store_files))).mappings().one()
        return changed

    async def _tell_batches(self, connection: AsyncConnection, bank: Bank, changed: Sequence[FileRow]) -> None:
        """Change the files of batches, and add their events."""
        c, by_batch = batch_files.c, dict[int, list[FileRow]]()
        for row in changed:
            mine = sa.select(file_batches.c.number).where(file_batches.c.bank == bank.number)
            where = (c.file_id == row["file_id"]) & (c.status == IN_PROGRESS) & c.batch.in_(mine)
            status = CANCELLED if row["detached"] else row["status"]
            change = sa.update(batch_files).where(where).values(status=status).returning(c.batch)
            for batch in (await connection.execute(change)).scalars():
                by_batch.setdefault(batch, []).append(row)
        for batch in sorted(by_batch):
            await self._tell_batch(connection, bank, batch, by_batch[batch])

    async def _drop_foreign(self, connection: AsyncConnection, bank: Bank, batch: int) -> None:
        """Let a batch that stops no longer wait for files that others load."""
        b, f = batch_files.c, store_files.c
        own = sa.select(store_jobs.c.job).where(store_jobs.c.batch == batch)
        loading = sa.select(f.file_id).where(f.bank == bank.number, f.job.in_(own))
        where = (b.batch == batch) & (b.status == IN_PROGRESS) & b.file_id.not_in(loading)
        gone = await connection.execute(sa.update(batch_files).where(where).values(status=CANCELLED))
        if gone.rowcount:
            await self._tell_batch(connection, bank, batch, [])

    async def _tell_batch(
        self, connection: AsyncConnection, bank: Bank, number: int, changed: Sequence[FileRow]
    ) -> None:
        """Add events: the files that were handled, then the batch, which may have ended."""
        for row in changed:
            await _add_event(connection, number, file=file_message(bank, row))
        query = sa.select(file_batches).where(file_batches.c.number == number)
        row = (await connection.execute(query)).mappings().one()
        counts = await _counts(connection, number)
        # The number of the event is known beforehand: it is in the message, too.
        await _add_event(connection, number, progress=_message(bank, row, counts, sequence=row["last_sequence"] + 1))
        if counts.get(IN_PROGRESS) or row["status"] != IN_PROGRESS:
            return
        name = "cancelled" if row["cancelling"] else "completed"
        if not row["cancelling"] and await _job_failed(connection, number):
            name = "failed"
        columns = {"status": _ENDED[name], "ended_at": now()}
        change = sa.update(file_batches).where(file_batches.c.number == number).values(**columns)
        row = (await connection.execute(change.returning(file_batches))).mappings().one()
        message = _message(bank, row, counts, sequence=row["last_sequence"] + 1)
        await _add_event(connection, number, **{name: message})


async def _add_event(connection: AsyncConnection, batch: int, **event: Any) -> None:  # noqa: ANN401 (a message)
    c = file_batches.c
    move = sa.update(file_batches).where(c.number == batch).values(last_sequence=c.last_sequence + 1)
    sequence = (await connection.execute(move.returning(c.last_sequence))).scalar_one()
    body = v1.WatchVectorStoreFileBatchResponse(sequence=sequence, **event).SerializeToString()
    await connection.execute(sa.insert(batch_events).values(batch=batch, sequence=sequence, event=body))


async def _counts(connection: AsyncConnection, batch: int) -> dict[int, int]:
    c = batch_files.c
    query = sa.select(c.status, sa.func.count()).where(c.batch == batch).group_by(c.status)
    return {row[0]: row[1] for row in await connection.execute(query)}


async def _batch(connection: AsyncConnection, bank: Bank, batch_id: str) -> BatchRow:
    c = file_batches.c
    query = sa.select(file_batches).where(c.bank == bank.number, c.batch_id == batch_id)
    row = (await connection.execute(query)).mappings().first()
    if row is None:
        message = f"vector store {bank.identifier!r} has no file batch {batch_id!r}; list those that it has"
        raise NotFoundError(message, field="batch_id")
    return row


async def _batch_message(connection: AsyncConnection, bank: Bank, row: BatchRow) -> v1.VectorStoreFileBatch:
    return _message(bank, row, await _counts(connection, row["number"]), sequence=row["last_sequence"])


def _message(bank: Bank, row: BatchRow, counts: Mapping[int, int], *, sequence: int) -> v1.VectorStoreFileBatch:
    return v1.VectorStoreFileBatch(
        id=row["batch_id"],
        created_at=stamp(row["created_at"]),
        vector_store_id=bank.identifier,
        status=row["status"],
        file_counts=counts_message(counts),
        last_sequence=sequence,
    )


async def _job_failed(connection: AsyncConnection, batch: int) -> bool:
    """Whether a job of a batch could not go on."""
    query = sa.select(jobs.c.number).join(store_jobs, store_jobs.c.job == jobs.c.number)
    query = query.where(store_jobs.c.batch == batch, jobs.c.status == v1.JOB_STATUS_FAILED).limit(1)
    return (await connection.execute(query)).first() is not None


_STOPPED = "server_error"


def _handled(event: v1.DocumentIngested) -> Handled:
    if not event.HasField("error"):
        return Handled(COMPLETED)
    return Handled(FAILED, _code(event.error), event.error.message)


def _rest(kind: str, job: v1.Job) -> Handled:
    """What becomes of files that a job did not handle before it ended."""
    match kind:
        case "cancelled":
            return Handled(CANCELLED)
        case "failed":
            return Handled(FAILED, _STOPPED, job.error.message or "the job that loads it failed")
        case _:
            return Handled(FAILED, _STOPPED, "the job that loads it ended without it; attach the file again")


def _code(error: v1.Error) -> str:
    match error.reason:
        case v1.ERROR_REASON_UNSUPPORTED:
            return "unsupported_file"
        case v1.ERROR_REASON_OVERLOADED | v1.ERROR_REASON_QUOTA_EXCEEDED:
            return "rate_limit_exceeded"
        case v1.ERROR_REASON_INTERNAL | v1.ERROR_REASON_UNAVAILABLE | v1.ERROR_REASON_DEADLINE_EXCEEDED:
            return "server_error"
        case _:
            return "invalid_file"


async def _usage(connection: AsyncConnection, dialect: str, row: FileRow) -> int:
    """Bytes of a loaded file's chunks: text and embedding."""
    text = sa.func.octet_length(chunks.c.text)
    if dialect == "sqlite":  # its own came with 3.43
        text = sa.func.length(sa.cast(chunks.c.text, sa.BLOB))
    size = sa.func.sum(text + sa.func.coalesce(sa.func.length(chunks.c.embedding), 0))
    d = documents.c
    of = (d.bank == row["bank"]) & (d.document_id == row["file_id"])
    query = sa.select(size).select_from(chunks.join(documents, d.number == chunks.c.document)).where(of)
    return int((await connection.execute(query)).scalar_one() or 0)

"""Ingestion jobs as rows: accepted, leased, recorded. Every change commits together with the event that tells of it."""

import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory.bank import Bank
from services.memory.database import Database
from services.memory.tables import banks, job_events, job_items, jobs
from services.runtime.background import Signals
from services.runtime.moments import SECOND, now, stamp
from stack_client.content import struct
from stack_client.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, StackError, to_error_message

ENDED = (v1.JOB_STATUS_COMPLETED, v1.JOB_STATUS_FAILED, v1.JOB_STATUS_CANCELLED)
KEEP_EVENTS = 7 * 24 * 3600 * SECOND
"""How long the events of an ended job are kept, but for the last."""
BATCH = 500
_ENDINGS: Mapping[int, str] = {
    v1.JOB_STATUS_COMPLETED: "completed",
    v1.JOB_STATUS_FAILED: "failed",
    v1.JOB_STATUS_CANCELLED: "cancelled",
}
JobRow = Mapping[Any, Any]
"""A row of `tables.jobs`."""


class LeaseLostError(Exception):
    """Another worker took the job, or it has ended."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A document of a job."""

    place: int
    """In the job, from 0."""
    document_id: str
    """Unique in the job."""
    file_id: str
    """The uploaded file; empty = none."""
    source: str = ""
    """Where the file came from, in citations; empty = its name."""
    document: v1.RAGDocument
    """What was sent; without content for files."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to work on a job."""

    job: JobRow
    """As it was when it was taken."""
    fence: int
    """Number of the lease: what a former holder writes is refused."""

    @property
    def number(self) -> int:
        """The job's row."""
        return int(self.job["number"])

    @property
    def request(self) -> v1.CreateIngestionJobRequest:
        """What was asked for, without documents."""
        return v1.CreateIngestionJobRequest.FromString(self.job["request"])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a document."""

    status: str
    """`inserted`, `replaced`, `unchanged` or `failed`."""
    chunks: int = 0
    """Written."""
    bytes: int = 0
    """Read."""
    error: StackError | None = None
    """Why it failed."""


class JobStore:
    """The jobs of all tenants.

    Args:
        database: Where they are.
        lease_seconds: How long a worker holds a job without a sign of life.
    """

    def __init__(self, database: Database, *, lease_seconds: float) -> None:
        self._database = database
        self._lease = int(lease_seconds * SECOND)
        self.signals = Signals()
        """Told of every change of a job; 0 is told of new ones."""

    async def create(
        self,
        connection: AsyncConnection,
        bank: Bank,
        request: v1.CreateIngestionJobRequest,
        items: Sequence[Item],
        *,
        digest: str,
        expires_at: int | None,
    ) -> JobRow:
        """Accept a job, inside a transaction, or answer the one that is there with the same content.

        Raises:
            NotFoundError: If the bank was deleted meanwhile.
            AlreadyExistsError: If the identifier belongs to a job with other content.
        """
        job_id = request.job_id or f"job-{secrets.token_hex(12)}"
        where = (jobs.c.tenant == bank.tenant) & (jobs.c.job_id == job_id)
        before = (await connection.execute(sa.select(jobs).where(where))).mappings().first()
        if before is not None:
            if before["digest"] != digest:
                message = f"there is a job {job_id!r} with other content; choose another job_id"
                raise AlreadyExistsError(message, field="job_id")
            return before
        # The bank's row is held, so that it is not deleted before this job is seen.
        held = sa.select(banks.c.number).where(banks.c.number == bank.number).with_for_update(read=True)
        if (await connection.execute(held)).first() is None:
            raise NotFoundError(f"no memory bank {bank.identifier!r}; it was deleted meanwhile", field="bank_id")
        kept = v1.CreateIngestionJobRequest()
        kept.CopyFrom(request)
        for source in ("documents", "files", "urls"):
            kept.ClearField(source)
        row = {
            "tenant": bank.tenant,
            "job_id": job_id,
            "bank": bank.number,
            "bank_id": bank.identifier,
            "status": v1.JOB_STATUS_SCHEDULED,
            "request": kept.SerializeToString(),
            "digest": digest,
            "total": len(items),
            "counts": {},
            "expires_at": expires_at,
            "created_at": now(),
        }
        job = (await connection.execute(sa.insert(jobs).values(**row).returning(jobs))).mappings().one()
        for start in range(0, len(items), BATCH):
            some = [_item_row(job["number"], item) for item in items[start : start + BATCH]]
            await connection.execute(sa.insert(job_items), some)
        return await self._change(connection, job["number"], event="state")

    async def get(self, job_id: str, *, tenant: str) -> JobRow:
        """One job.

        Raises:
            NotFoundError: If the tenant has none of that id.
        """
        query = sa.select(jobs).where(jobs.c.tenant == tenant, jobs.c.job_id == job_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFoundError(f"no ingestion job {job_id!r}; list those that there are", field="job_id")
        return row

    async def page(
        self, *, tenant: str, bank: int | None, statuses: Sequence[int], before: int | None, limit: int
    ) -> Sequence[JobRow]:
        """Jobs, newest first, before one of them."""
        c = jobs.c
        query = sa.select(jobs).where(c.tenant == tenant).order_by(c.number.desc()).limit(limit)
        if bank is not None:
            query = query.where(c.bank == bank)
        if statuses:
            query = query.where(c.status.in_(statuses))
        if before is not None:
            query = query.where(c.number < before)
        async with self._database.read() as connection:
            return (await connection.execute(query)).mappings().all()

    async def events(self, number: int, *, after: int, limit: int = BATCH) -> list[v1.WatchIngestionJobResponse]:
        """Events of a job in order."""
        c = job_events.c
        query = sa.select(c.event).where(c.job == number, c.sequence > after).order_by(c.sequence).limit(limit)
        async with self._database.read() as connection:
            found = (await connection.execute(query)).scalars().all()
        return [v1.WatchIngestionJobResponse.FromString(event) for event in found]

    async def cancel(self, job_id: str, *, tenant: str) -> JobRow:
        """Ask a job to stop; one that nobody has begun ends at once.

        Raises:
            NotFoundError: If the tenant has none of that id.
            FailedPreconditionError: If it has completed or failed.
        """
        number = (await self.get(job_id, tenant=tenant))["number"]
        async with self._database.write() as connection:
            query = sa.select(jobs).where(jobs.c.number == number).with_for_update()
            job: JobRow = (await connection.execute(query)).mappings().one()
            match job["status"]:
                case v1.JOB_STATUS_COMPLETED | v1.JOB_STATUS_FAILED:
                    ended = _ENDINGS[job["status"]]
                    raise FailedPreconditionError(f"ingestion job {job_id!r} has {ended}: nothing is left to stop")
                case v1.JOB_STATUS_SCHEDULED:
                    job = await self._end(connection, number, v1.JOB_STATUS_CANCELLED, error=None)
                case v1.JOB_STATUS_IN_PROGRESS:
                    change = {"status": v1.JOB_STATUS_CANCELLING}
                    job = await self._change(connection, number, event="state", columns=change)
        self._tell(number)
        return job

    async def claim(self, worker: str) -> Lease | None:
        """Take the oldest job that nobody works on; None when there is none."""
        c, moment = jobs.c, now()
        free = sa.select(jobs).where(c.status.not_in(ENDED), c.leased_until <= moment).order_by(c.number).limit(1)
        async with self._database.read() as connection:
            if (await connection.execute(free.with_only_columns(c.number))).first() is None:
                return None  # without the writers' lock: most looks find nothing
        async with self._database.write() as connection:
            found = (await connection.execute(free.with_for_update(skip_locked=True))).mappings().first()
            if found is None:
                return None
            job: JobRow = found
            change: dict[str, Any] = {"worker": worker, "leased_until": moment + self._lease, "fence": c.fence + 1}
            if job["status"] == v1.JOB_STATUS_SCHEDULED:
                change |= {"status": v1.JOB_STATUS_IN_PROGRESS, "started_at": moment}
                job = await self._change(connection, job["number"], event="state", columns=change)
            else:
                query = sa.update(jobs).where(c.number == job["number"]).values(**change).returning(jobs)
                job = (await connection.execute(query)).mappings().one()
        self._tell(job["number"])
        return Lease(job=job, fence=job["fence"])

    async def extend(self, lease: Lease) -> int:
        """Hold a job for longer; answers its status.

        Raises:
            LeaseLostError: If another worker has it.
        """
        query = sa.update(jobs).where(*_held(lease)).values(leased_until=now() + self._lease)
        async with self._database.write() as connection:
            status = (await connection.execute(query.returning(jobs.c.status))).scalar_one_or_none()
        if status is None:
            raise LeaseLostError
        return int(status)

    async def release(self, lease: Lease) -> None:
        """Let another worker take a job at once."""
        async with self._database.write() as connection:
            await connection.execute(sa.update(jobs).where(*_held(lease)).values(leased_until=0))

    async def release_dead(self, host: str) -> None:
        """Free the jobs of processes of this machine that are gone."""
        c = jobs.c
        query = sa.select(c.number, c.fence, c.worker).where(c.status.not_in(ENDED), c.leased_until > now())
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        for row in rows:
            if _is_dead(row.worker, host=host):
                mine = (c.number == row.number) & (c.fence == row.fence)
                async with self._database.write() as connection:
                    await connection.execute(sa.update(jobs).where(mine).values(leased_until=0))

    async def pending(self, lease: Lease, *, after: int) -> list[Item]:
        """The next documents to be handled, in their order."""
        c = job_items.c
        query = sa.select(job_items).where(c.job == lease.number, c.place > after, sa.not_(c.done))
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(c.place).limit(BATCH))).mappings().all()
        return [
            Item(
                place=row["place"],
                document_id=row["document_id"],
                file_id=row["file_id"],
                source=row["source"],
                document=v1.RAGDocument.FromString(row["document"]),
            )
            for row in rows
        ]

    async def handled(self, lease: Lease, item: Item, outcome: Outcome) -> None:
        """Record what became of a document.

        Raises:
            LeaseLostError: If another worker has the job.
        """
        event = v1.DocumentIngested(
            document_id=item.document_id,
            chunks=outcome.chunks,
            unchanged=outcome.status == "unchanged",
            error=to_error_message(outcome.error) if outcome.error else None,
        )
        mine = (job_items.c.job == lease.number) & (job_items.c.place == item.place)
        async with self._database.write() as connection:
            job = await self._change(
                connection, lease.number, lease=lease, document=event, columns={"done": jobs.c.done + 1, "message": ""}
            )
            counts = dict(job["counts"])
            for name, more in ((outcome.status, 1), ("chunks", outcome.chunks), ("bytes", outcome.bytes)):
                counts[name] = counts.get(name, 0) + more
            await connection.execute(sa.update(jobs).where(jobs.c.number == lease.number).values(counts=counts))
            await connection.execute(sa.update(job_items).where(mine).values(done=True, document=None))
        self._tell(lease.number)

    async def note(self, lease: Lease, message: str, **columns: int) -> None:
        """Say what is being done now.

        Raises:
            LeaseLostError: If another worker has the job.
        """
        async with self._database.write() as connection:
            await self._change(
                connection, lease.number, lease=lease, event="state", columns={"message": message, **columns}
            )
        self._tell(lease.number)

    async def finish(self, lease: Lease, status: int, *, error: StackError | None = None) -> None:
        """End a job.

        Raises:
            LeaseLostError: If another worker has it.
        """
        async with self._database.write() as connection:
            await self._end(connection, lease.number, status, error=error, lease=lease)
        self._tell(lease.number)

    async def sweep(self) -> None:
        """Forget the events of jobs that ended long ago, but for the last ones."""
        old = sa.select(jobs.c.number).where(jobs.c.completed_at < now() - KEEP_EVENTS)
        last = sa.select(jobs.c.last_sequence).where(jobs.c.number == job_events.c.job).scalar_subquery()
        async with self._database.write() as connection:
            await connection.execute(
                sa.delete(job_events).where(job_events.c.job.in_(old), job_events.c.sequence < last)
            )

    async def _change(
        self,
        connection: AsyncConnection,
        number: int,
        *,
        event: str = "",
        lease: Lease | None = None,
        document: v1.DocumentIngested | None = None,
        columns: Mapping[str, Any] | None = None,
    ) -> JobRow:
        """Change a job and add the event that tells of it: its state under the name `event`, or a document's.

        Raises:
            LeaseLostError: If the lease is no longer held.
        """
        where = _held(lease) if lease is not None else (jobs.c.number == number,)
        query = sa.update(jobs).where(*where).values(last_sequence=jobs.c.last_sequence + 1, **(columns or {}))
        job: JobRow | None = (await connection.execute(query.returning(jobs))).mappings().one_or_none()
        if job is None:
            raise LeaseLostError
        told: dict[str, Any] = {event: job_message(job)} if document is None else {"document": document}
        response = v1.WatchIngestionJobResponse(sequence=job["last_sequence"], **told)
        row = {"job": number, "sequence": job["last_sequence"], "event": response.SerializeToString()}
        await connection.execute(sa.insert(job_events).values(**row, created_at=now()))
        return job

    async def _end(
        self,
        connection: AsyncConnection,
        number: int,
        status: int,
        *,
        error: StackError | None,
        lease: Lease | None = None,
    ) -> JobRow:
        columns = {
            "status": status,
            "completed_at": now(),
            "leased_until": 0,
            "message": "",
            "error": to_error_message(error).SerializeToString() if error else None,
        }
        job = await self._change(connection, number, event=_ENDINGS[status], lease=lease, columns=columns)
        await connection.execute(sa.update(job_items).where(job_items.c.job == number).values(document=None))
        return job

    def _tell(self, number: int) -> None:
        self.signals.tell(number)
        self.signals.tell(0)


async def refuse_while_running(connection: AsyncConnection, bank: Bank) -> None:
    """Keep a bank that a job works on; for `BankStore.on_delete`.

    Raises:
        FailedPreconditionError: If one does.
    """
    query = sa.select(jobs.c.job_id).where(jobs.c.bank == bank.number, jobs.c.status.not_in(ENDED)).limit(1)
    job_id = (await connection.execute(query)).scalar_one_or_none()
    if job_id is not None:
        message = f"ingestion job {job_id!r} works on memory bank {bank.identifier!r}; wait for it or cancel it first"
        raise FailedPreconditionError(message)


def job_message(job: JobRow) -> v1.Job:
    """A job as callers see it."""
    reembeds = v1.CreateIngestionJobRequest.FromString(job["request"]).HasField("reembed")
    progress = v1.JobProgress(
        done=job["done"], total=job["total"], unit="chunks" if reembeds else "documents", message=job["message"]
    )
    return v1.Job(
        job_id=job["job_id"],
        kind="reembedding" if reembeds else "ingestion",
        status=job["status"],
        progress=progress,
        error=None if job["error"] is None else v1.Error.FromString(job["error"]),
        created_at=stamp(job["created_at"]),
        started_at=stamp(job["started_at"]),
        completed_at=stamp(job["completed_at"]),
        metadata=struct({"bank_id": job["bank_id"], **job["counts"]}),
        last_sequence=job["last_sequence"],
    )


def this_worker() -> str:
    """Name of a new worker of this process, from which others on this machine see whether it lives."""
    process = psutil.Process()
    return f"{socket.gethostname()}/{process.pid}/{process.create_time()}/{secrets.token_hex(4)}"


def _is_dead(worker: str, *, host: str) -> bool:
    where, _, rest = worker.partition("/")
    if where != host:
        return False
    pid, created = rest.split("/")[:2]
    try:
        return str(psutil.Process(int(pid)).create_time()) != created
    except psutil.NoSuchProcess:
        return True


def _held(lease: Lease) -> tuple[sa.ColumnElement[bool], ...]:
    return (jobs.c.number == lease.number, jobs.c.fence == lease.fence, jobs.c.status.not_in(ENDED))


def _item_row(number: int, item: Item) -> dict[str, Any]:
    return {
        "job": number,
        "place": item.place,
        "document_id": item.document_id,
        "file_id": item.file_id,
        "source": item.source,
        "document": item.document.SerializeToString(),
    }

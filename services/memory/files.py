"""Files of users: kept in the database in parts of 1 MiB, visible once they are whole."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory.database import Database
from services.memory.jobs import ENDED
from services.memory.parse.kinds import guess_mime_type
from services.memory.tables import file_parts, files, job_items, jobs
from services.runtime.moments import SECOND, now, stamp
from stack_client.errors import DataLossError, FailedPreconditionError, NotFoundError, ResourceExhaustedError

PART = 1 << 20
ABANDONED = 3600 * SECOND
"""Age from which parts without a file are those of a broken upload."""
HEAD = 64 * 1024
FileRow = Mapping[Any, Any]
"""A row of `tables.files`."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a caller says about a new file."""

    tenant: str
    filename: str
    purpose: int
    mime_type: str
    expires_seconds: int | None


class Upload:
    """A file on its way in. Use `async with`: what was not kept by `commit` is erased.

    Args:
        database: Where it goes.
        max_bytes: Of a file.
    """

    def __init__(self, database: Database, *, max_bytes: int) -> None:
        self._database = database
        self._max = max_bytes
        self._upload = secrets.token_hex(16)
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self._head = b""
        self._place = 0
        self._kept = False
        self.bytes = 0

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Erase what was sent, unless it became a file."""
        if not self._kept and self._place:
            async with self._database.write() as connection:
                await connection.execute(sa.delete(file_parts).where(file_parts.c.upload == self._upload))

    @property
    def sha256(self) -> str:
        """Of what came so far, hexadecimal."""
        return self._hash.hexdigest()

    async def write(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            ResourceExhaustedError: If the file is too large.
        """
        self.bytes += len(data)
        if self.bytes > self._max:
            raise too_large(self.bytes, self._max)
        self._head += data[: HEAD - len(self._head)]
        await asyncio.to_thread(self._hash.update, data)
        self._buffer += data
        while len(self._buffer) >= PART:
            await self._flush()

    async def finish(self) -> None:
        """Write what is left."""
        if self._buffer:
            await self._flush()

    async def commit(self, connection: AsyncConnection, facts: FileFacts) -> v1.File:
        """Make it a file, inside a transaction."""
        # Who is cancelled at the end of the transaction does not know whether there is a file now. Should there be
        # none, the sweep finds the parts.
        self._kept = True
        moment = now()
        mime_type = facts.mime_type or guess_mime_type(self._head, facts.filename)
        expires = None if facts.expires_seconds is None else moment + facts.expires_seconds * SECOND
        row = {
            "tenant": facts.tenant,
            "file_id": f"file-{secrets.token_hex(12)}",
            "upload": self._upload,
            "filename": facts.filename,
            "purpose": facts.purpose,
            "status": v1.FILE_STATUS_UPLOADED,
            "mime_type": mime_type,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "created_at": moment,
            "expires_at": expires,
        }
        result = await connection.execute(sa.insert(files).values(**row).returning(files))
        return file_message(result.mappings().one())

    async def _flush(self) -> None:
        part, self._buffer = bytes(self._buffer[:PART]), self._buffer[PART:]
        row = {"upload": self._upload, "place": self._place, "data": part, "created_at": now()}
        self._place += 1
        async with self._database.write() as connection:
            await connection.execute(sa.insert(file_parts).values(**row))


class FileStore:
    """The files of all tenants.

    Args:
        database: Where they are.
        max_bytes: Of a file.
    """

    def __init__(self, database: Database, *, max_bytes: int) -> None:
        self._database = database
        self.max_bytes = max_bytes

    def upload(self) -> Upload:
        """A new file, to be sent in pieces."""
        return Upload(self._database, max_bytes=self.max_bytes)

    async def get(self, file_id: str, *, tenant: str, field: str = "file_id") -> FileRow:
        """What is known of a file.

        Raises:
            NotFoundError: If the tenant has none of that id, or it has expired.
        """
        c = files.c
        alive = c.expires_at.is_(None) | (c.expires_at > now())
        query = sa.select(files).where(c.tenant == tenant, c.file_id == file_id, alive)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFoundError(f"no file {file_id!r}; it was never uploaded, was deleted or has expired", field=field)
        return row

    async def page(
        self, *, tenant: str, purpose: int, after: int | None, before: int | None, descending: bool, limit: int
    ) -> Sequence[FileRow]:
        """Files in the order of their upload.

        Args:
            tenant: Whose.
            purpose: Only of this one; 0 means all.
            after: Number of the file before the page; None means from the beginning.
            before: Number of the file behind the page: the last files before it.
            descending: Newest first.
            limit: Files at most.
        """
        c = files.c
        query = sa.select(files).where(c.tenant == tenant, c.expires_at.is_(None) | (c.expires_at > now()))
        if purpose:
            query = query.where(c.purpose == purpose)
        if after is not None:
            query = query.where(c.number < after if descending else c.number > after)
        if before is not None:
            query = query.where(c.number > before if descending else c.number < before)
        # The page that ends before a file is read from its end.
        backwards = before is not None
        newest_first = descending is not backwards
        query = query.order_by(c.number.desc() if newest_first else c.number.asc()).limit(limit)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return rows[::-1] if backwards else rows

    async def parts(self, file: FileRow) -> AsyncIterator[bytes]:
        """The content in its parts, checked: the hash is known to fit only after the last one.

        Raises:
            NotFoundError: If it was deleted meanwhile.
            DataLossError: If the content does not match its hash.
        """
        digest, place, size = hashlib.sha256(), 0, 0
        c = file_parts.c
        while size < file["bytes"]:
            query = sa.select(c.data).where(c.upload == file["upload"], c.place == place)
            async with self._database.read() as connection:
                data = (await connection.execute(query)).scalar_one_or_none()
            if data is None:
                await self.get(file["file_id"], tenant=file["tenant"])
                raise _damaged(file)
            await asyncio.to_thread(digest.update, data)
            place, size = place + 1, size + len(data)
            yield data
        if digest.hexdigest() != file["sha256"]:
            raise _damaged(file)

    async def read(self, file: FileRow) -> bytes:
        """The whole content.

        Raises:
            NotFoundError: If it was deleted meanwhile.
            DataLossError: If the content does not match its hash.
        """
        return b"".join([part async for part in self.parts(file)])

    async def delete(self, file_id: str, *, tenant: str) -> None:
        """Delete a file.

        Raises:
            NotFoundError: If the tenant has none of that id.
            FailedPreconditionError: If a running job reads it.
        """
        row = await self.get(file_id, tenant=tenant)
        running = (
            sa.select(jobs.c.job_id)
            .join(job_items, job_items.c.job == jobs.c.number)
            .where(jobs.c.tenant == tenant, job_items.c.file_id == file_id, sa.not_(job_items.c.done))
            .where(jobs.c.status.not_in(ENDED))
            .limit(1)
        )
        async with self._database.write() as connection:
            job_id = (await connection.execute(running)).scalar_one_or_none()
            if job_id is not None:
                message = f"ingestion job {job_id!r} reads file {file_id!r}; wait for it or cancel it first"
                raise FailedPreconditionError(message)
            gone = await connection.execute(sa.delete(files).where(files.c.number == row["number"]))
            if not gone.rowcount:
                raise NotFoundError(f"no file {file_id!r}; it was deleted meanwhile", field="file_id")
            await connection.execute(sa.delete(file_parts).where(file_parts.c.upload == row["upload"]))

    async def sweep(self, *, starting: bool = False) -> int:
        """Erase expired files and the parts of broken uploads; how many files.

        Args:
            starting: The process just began: on SQLite, which has one, no upload can be going on.
        """
        moment = now()
        age = 0 if starting and self._database.dialect == "sqlite" else ABANDONED
        p = file_parts.c
        known = sa.select(files.c.upload)
        broken = sa.select(p.upload).group_by(p.upload).having(sa.func.max(p.created_at) <= moment - age)
        async with self._database.write() as connection:
            gone = await connection.execute(sa.delete(files).where(files.c.expires_at <= moment))
            await connection.execute(sa.delete(file_parts).where(p.upload.in_(broken), p.upload.not_in(known)))
        return gone.rowcount


def file_message(row: FileRow) -> v1.File:
    """A file as callers see it."""
    return v1.File(
        id=row["file_id"],
        bytes=row["bytes"],
        created_at=stamp(row["created_at"]),
        expires_at=stamp(row["expires_at"]),
        filename=row["filename"],
        purpose=row["purpose"],
        status=row["status"],
        status_details=row["status_details"],
        sha256=row["sha256"],
        mime_type=row["mime_type"],
    )


def too_large(size: int, limit: int) -> ResourceExhaustedError:
    """The refusal of a file above the limit."""
    message = f"the file has {size} bytes or more; at most {limit} are allowed (memory.max_file_bytes)"
    return ResourceExhaustedError(message, reason="MESSAGE_TOO_LARGE")


def _damaged(file: FileRow) -> DataLossError:
    return DataLossError(f"the content of file {file['file_id']!r} does not match its hash: upload it again")

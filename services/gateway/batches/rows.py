"""Batches as rows and as messages, and what every change of one does."""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.gateway.batches.tables import batches, events
from services.runtime.moments import stamp

ENDINGS: Mapping[int, str] = {
    v1.BATCH_STATUS_COMPLETED: "completed",
    v1.BATCH_STATUS_FAILED: "failed",
    v1.BATCH_STATUS_CANCELLED: "cancelled",
    v1.BATCH_STATUS_EXPIRED: "expired",
}
"""Name of the last event, by status."""
ENDED = tuple(ENDINGS)
MAX_COUNT = (1 << 32) - 1
"""Of a number in a message."""
_NAMES = uuid.UUID("5f0e5a3c-6a0e-4a0b-9a63-0d1f7d2b7b11")
BatchRow = Mapping[Any, Any]
"""A row of `tables.batches`."""


class LeaseLostError(Exception):
    """Another process took the batch, or it has ended."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to work on a batch."""

    batch: BatchRow
    """As it was when it was taken."""
    fence: int
    """Number of the lease: what a former holder writes is refused."""

    @property
    def number(self) -> int:
        """The batch's row."""
        return int(self.batch["number"])

    @property
    def batch_id(self) -> str:
        """The batch's identifier."""
        return str(self.batch["batch_id"])

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return str(self.batch["tenant"])


def held(lease: Lease) -> tuple[sa.ColumnElement[bool], ...]:
    """That a lease is still in force."""
    return (batches.c.number == lease.number, batches.c.fence == lease.fence, batches.c.status.not_in(ENDED))


def unless_cancelling(otherwise: sa.ColumnElement[int] | int, *, cancelling: int) -> sa.ColumnElement[int]:
    """A status for batches that nobody asked to stop, and another for those that somebody did."""
    return sa.case((batches.c.status == v1.BATCH_STATUS_CANCELLING, cancelling), else_=otherwise)


async def change(
    connection: AsyncConnection, *where: sa.ColumnElement[bool], columns: Mapping[str, Any], told: bool = True
) -> BatchRow:
    """Change a batch and add the event that tells of it.

    Args:
        connection: Of a transaction.
        where: Which one, and that it may be changed.
        columns: New values.
        told: Whether there is an event.

    Raises:
        LeaseLostError: If it may not be changed.
    """
    values = {**columns, **({"last_sequence": batches.c.last_sequence + 1} if told else {})}
    query = sa.update(batches).where(*where).values(**values).returning(batches)
    row: BatchRow | None = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise LeaseLostError
    if told:
        kind: dict[str, Any] = {ENDINGS.get(row["status"], "progress"): message_of(row)}
        event = v1.WatchBatchResponse(sequence=row["last_sequence"], **kind)
        values = {"batch": row["number"], "sequence": row["last_sequence"], "event": event.SerializeToString()}
        await connection.execute(sa.insert(events).values(**values))
    return row


def message_of(row: BatchRow) -> v1.Batch:
    """A batch as callers see it."""
    status = row["status"]
    ended = {f"{name}_at": stamp(row["ended_at"]) for number, name in ENDINGS.items() if number == status}
    usage = None
    if status in ENDED:
        names = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")
        usage = v1.Usage(**{name: min(row[name], MAX_COUNT) for name in names})
    counts = v1.BatchRequestCounts(total=row["total"], completed=row["completed"], failed=row["failed"])
    return v1.Batch(
        id=row["batch_id"],
        endpoint=row["endpoint"],
        input_file_id=row["input_file_id"],
        completion_window=row["completion_window"],
        status=status,
        output_file_id=row["output_file_id"],
        error_file_id=row["error_file_id"],
        errors=None if row["errors"] is None else v1.BatchErrors.FromString(row["errors"]),
        created_at=stamp(row["created_at"]),
        in_progress_at=stamp(row["in_progress_at"]),
        expires_at=stamp(row["expires_at"]),
        finalizing_at=stamp(row["finalizing_at"]),
        cancelling_at=stamp(row["cancelling_at"]),
        request_counts=counts,
        metadata=row["metadata"],
        model=row["model"],
        usage=usage,
        last_sequence=row["last_sequence"],
        **ended,
    )


def request_digest(request: v1.CreateBatchRequest) -> bytes:
    """What makes a repeat of a request the same request: all but its keys."""
    content = v1.CreateBatchRequest()
    content.CopyFrom(request)
    content.ClearField("request_id")
    content.ClearField("idempotency_key")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def request_id_of(batch_id: str, part: str | int) -> str:
    """The request id of a part of a batch: the same however often it is tried, and by whichever process."""
    return str(uuid.uuid5(_NAMES, f"{batch_id}/{part}"))

"""Batches as callers see them: made, found, listed, cancelled, watched."""

import secrets
from collections.abc import Sequence
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.gateway.batches.rows import ENDED, ENDINGS, BatchRow, change, message_of, request_digest
from services.gateway.batches.tables import batches, events, requests
from services.runtime.background import Signals
from services.runtime.database import Database
from services.runtime.moments import SECOND, now
from stack_client.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)

WINDOW = 24 * 3600 * SECOND
"""Of `24h`, the only one that there is."""
KEEP_REQUESTS = 24 * 3600 * SECOND
"""How long a repeat of a request is recognised by its request id."""
KEEP_EVENTS = 7 * 24 * 3600 * SECOND
"""How long the events of an ended batch are kept, but for the last."""
EVENTS_AT_ONCE = 500
NEW = 0
"""The number under which `BatchStore.signals` tells of batches that wait for a worker."""


class BatchStore:
    """The batches of all tenants.

    Args:
        database: Where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.signals = Signals()
        """Told of every change of a batch; `NEW` is told when there is work."""
        self.cancels = Signals()
        """Told of batches that are to stop."""

    async def recall(self, request: v1.CreateBatchRequest, *, tenant: str) -> v1.CreateBatchResponse | None:
        """The answer to a request that came before; None when it is new.

        Raises:
            InvalidArgumentError: If its request id came with another body.
            AlreadyExistsError: If its idempotency key came with other parameters.
        """
        async with self._database.read() as connection:
            return await _recall(connection, request, tenant=tenant)

    async def create(self, request: v1.CreateBatchRequest, *, tenant: str) -> v1.CreateBatchResponse:
        """Accept a batch, or answer the one that is there with the same content.

        Raises:
            InvalidArgumentError: If its request id came with another body.
            AlreadyExistsError: If its idempotency key came with other parameters.
        """
        moment = now()
        row = {
            "tenant": tenant,
            "batch_id": f"batch_{secrets.token_hex(16)}",
            "idempotency_key": request.idempotency_key if request.HasField("idempotency_key") else None,
            "digest": request_digest(request).hex(),
            "endpoint": request.endpoint,
            "input_file_id": request.input_file_id,
            "completion_window": request.completion_window,
            "metadata": dict(request.metadata),
            "status": v1.BATCH_STATUS_VALIDATING,
            "created_at": moment,
            "expires_at": moment + WINDOW,
        }
        async with self._database.write() as connection:
            answer = await _recall(connection, request, tenant=tenant)
            if answer is not None:
                return answer
            insert = _insert(connection, batches).values(**row).on_conflict_do_nothing().returning(batches.c.number)
            number = (await connection.execute(insert)).scalar_one_or_none()
            if number is None:  # another gateway was first with the key; its transaction has ended by now
                return await _recall(connection, request, tenant=tenant) or _again()
            made = await change(connection, batches.c.number == number, columns={})
            answer = v1.CreateBatchResponse(batch=message_of(made))
            await _remember(connection, request, answer, tenant=tenant)
        self.signals.tell(NEW)
        return answer

    async def get(self, batch_id: str, *, tenant: str, field: str = "batch_id") -> BatchRow:
        """One batch.

        Raises:
            NotFoundError: If the tenant has none of that id.
        """
        query = sa.select(batches).where(batches.c.tenant == tenant, batches.c.batch_id == batch_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFoundError(f"no batch {batch_id[:80]!r}; list those that there are", field=field)
        return row

    async def page(self, *, tenant: str, before: int | None, limit: int) -> Sequence[BatchRow]:
        """Batches, newest first, before one of them."""
        query = sa.select(batches).where(batches.c.tenant == tenant).order_by(batches.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(batches.c.number < before)
        async with self._database.read() as connection:
            return (await connection.execute(query)).mappings().all()

    async def events(self, number: int, *, after: int) -> list[v1.WatchBatchResponse]:
        """The next events of a batch in order."""
        c = events.c
        query = sa.select(c.event).where(c.batch == number, c.sequence > after).order_by(c.sequence)
        async with self._database.read() as connection:
            found = (await connection.execute(query.limit(EVENTS_AT_ONCE))).scalars().all()
        return [v1.WatchBatchResponse.FromString(event) for event in found]

    async def cancel(self, batch_id: str, *, tenant: str) -> BatchRow:
        """Ask a batch to stop; one that nobody has begun ends at once.

        Raises:
            NotFoundError: If the tenant has none of that id.
            FailedPreconditionError: If it has ended.
        """
        number = (await self.get(batch_id, tenant=tenant))["number"]
        async with self._database.write() as connection:
            query = sa.select(batches).where(batches.c.number == number).with_for_update()
            row: BatchRow = (await connection.execute(query)).mappings().one()
            if row["status"] in ENDED:
                message = f"batch {batch_id!r} is {ENDINGS[row['status']]}: nothing is left to stop"
                raise FailedPreconditionError(message)
            if row["status"] != v1.BATCH_STATUS_CANCELLING:
                columns: dict[str, Any] = {"status": v1.BATCH_STATUS_CANCELLING, "cancelling_at": now()}
                if not row["fence"]:
                    columns |= {"status": v1.BATCH_STATUS_CANCELLED, "ended_at": now()}
                row = await change(connection, batches.c.number == number, columns=columns)
        self.signals.tell(number)
        self.cancels.tell(number)
        return row

    async def sweep(self) -> None:
        """Forget the events of batches that ended long ago, but for the last ones, and requests of yesterday."""
        old = sa.select(batches.c.number).where(batches.c.ended_at < now() - KEEP_EVENTS)
        last = sa.select(batches.c.last_sequence).where(batches.c.number == events.c.batch).scalar_subquery()
        async with self._database.write() as connection:
            await connection.execute(sa.delete(events).where(events.c.batch.in_(old), events.c.sequence < last))
            await connection.execute(sa.delete(requests).where(requests.c.created_at < now() - KEEP_REQUESTS))


async def _recall(
    connection: AsyncConnection, request: v1.CreateBatchRequest, *, tenant: str
) -> v1.CreateBatchResponse | None:
    if request.request_id:
        c = requests.c
        query = sa.select(c.body, c.answer).where(c.tenant == tenant, c.request_id == request.request_id)
        found = (await connection.execute(query)).first()
        if found is not None and found.body != request_digest(request):
            message = f"request_id {request.request_id!r} was used before with another body; choose a new one"
            raise InvalidArgumentError(message, reason="REQUEST_ID_REUSED", field="request_id")
        if found is not None:
            return v1.CreateBatchResponse.FromString(found.answer)
    if request.HasField("idempotency_key"):
        b = batches.c
        mine = sa.select(batches).where(b.tenant == tenant, b.idempotency_key == request.idempotency_key)
        row = (await connection.execute(mine)).mappings().first()
        if row is not None and row["digest"] != request_digest(request).hex():
            message = (
                f"idempotency_key {request.idempotency_key!r} belongs to batch {row['batch_id']!r}, which has other "
                "parameters; choose a new key"
            )
            raise AlreadyExistsError(message, field="idempotency_key")
        if row is not None:
            return v1.CreateBatchResponse(batch=message_of(row))
    return None


async def _remember(
    connection: AsyncConnection, request: v1.CreateBatchRequest, answer: v1.CreateBatchResponse, *, tenant: str
) -> None:
    """Keep an answer for repeats, in the transaction that made it true.

    Raises:
        UnavailableError: If another call with the same id was first; nothing is kept of this one.
    """
    if not request.request_id:
        return
    values: dict[str, Any] = {"tenant": tenant, "request_id": request.request_id, "body": request_digest(request)}
    values |= {"answer": answer.SerializeToString(), "created_at": now()}
    insert = _insert(connection, requests).values(**values).on_conflict_do_nothing()
    if not (await connection.execute(insert)).rowcount:
        _again()


def _again() -> NoReturn:
    raise UnavailableError("another call with the same key is being answered; send it again", retry_after=0.1)


def _insert(connection: AsyncConnection, table: sa.Table) -> "postgresql.Insert | sqlite.Insert":
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)

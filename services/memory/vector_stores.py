"""Vector stores: vector banks in the shapes of OpenAI. What a store has beyond its bank is kept in `Bank.store`.

Every vector bank is a store; one that was not made as one has its bank's name, and never ends. A store whose life has
ended is shown as expired, but nothing is in it and it cannot be searched: as a bank it is gone at that moment
(`BankStore` looks at `expires_at`), its chunks and files are erased soon after.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import bank_of
from services.memory.database import Database
from services.memory.tables import banks, batch_events, batch_files, documents, file_batches, store_files, store_jobs
from services.runtime.moments import SECOND, now
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

DAY = 24 * 3600 * SECOND
MAX_DAYS = 365
TOUCH_EVERY = 60 * SECOND
"""How exact the moment of the last search is."""

Counts = dict[int, int]
"""Files by `VectorStoreFileStatus`."""


class VectorStores:
    """The stores of all tenants.

    Args:
        database: Where their banks are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, store_id: str, *, tenant: str, field: str = "vector_store_id") -> Bank:
        """One store, also one whose life has ended.

        Raises:
            NotFoundError: If the tenant has none of that identifier.
        """
        if not store_id:
            raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
        c = banks.c
        query = sa.select(banks).where(c.tenant == tenant, c.identifier == store_id, c.kind == "vector")
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotFoundError(f"no vector store {store_id!r}; list those that there are", field=field)
        return bank_of(row)

    async def alive(self, store_id: str, *, tenant: str) -> Bank:
        """One store that can be used.

        Raises:
            NotFoundError: If the tenant has none of that identifier.
            FailedPreconditionError: If its life has ended.
        """
        bank = await self.get(store_id, tenant=tenant)
        refuse_expired(bank)
        return bank

    async def page(
        self, *, tenant: str, after: int | None, before: int | None, descending: bool, limit: int
    ) -> list[Bank]:
        """Stores in the order of their creation; see `numbered`."""
        query = sa.select(banks).where(banks.c.tenant == tenant, banks.c.kind == "vector")
        rows = await numbered(
            self._database, query, banks.c.number, after=after, before=before, descending=descending, limit=limit
        )
        return [bank_of(row) for row in rows]

    async def messages(
        self, found: Sequence[Bank], *, connection: AsyncConnection | None = None
    ) -> list[v1.VectorStore]:
        """Stores as callers see them; inside the transaction of a connection, or one of its own."""
        c = store_files.c
        query = (
            sa.select(c.bank, c.status, sa.func.count(), sa.func.sum(c.usage_bytes))
            .where(c.bank.in_([bank.number for bank in found]), sa.not_(c.detached))
            .group_by(c.bank, c.status)
        )
        counts: dict[int, Counts] = {bank.number: {} for bank in found}
        usage = dict.fromkeys(counts, 0)
        async with self._database.read() if connection is None else contextlib.nullcontext(connection) as reading:
            for number, status, count, size in await reading.execute(query):
                counts[number][status] = count
                usage[number] += int(size)
        return [store_message(bank, counts=counts[bank.number], usage=usage[bank.number]) for bank in found]

    async def change(self, bank: Bank, request: v1.UpdateVectorStoreRequest) -> Bank:
        """Change the fields that are set.

        Raises:
            NotFoundError: If it was deleted meanwhile.
        """
        async with self._database.write() as connection:
            bank = await hold(connection, bank)
            store = own_fields(bank)
            if request.HasField("name"):
                store.name = request.name
            for name in ("expires_after", "metadata"):
                if request.HasField(name):
                    getattr(store, name).CopyFrom(getattr(request, name))
            return await touch(connection, bank, store)

    async def searched(self, bank: Bank) -> None:
        """Note that a store was used; now and then is enough."""
        if bank.store is None or now() - bank.store.last_active_at.ToMicroseconds() < TOUCH_EVERY:
            return
        async with self._database.write() as connection:
            bank = await hold(connection, bank)
            await touch(connection, bank, own_fields(bank))

    async def expired(self) -> list[Bank]:
        """Stores whose life has ended and that are not empty yet."""
        c = banks.c
        holds = [sa.exists().where(table.c.bank == c.number) for table in (documents, store_files)]
        query = sa.select(banks).where(c.expires_at <= now(), c.store.is_not(None), sa.or_(*holds))
        async with self._database.read() as connection:
            return [bank_of(row) for row in (await connection.execute(query)).mappings()]


async def numbered(
    database: Database,
    query: "sa.Select[Any]",
    number: sa.ColumnElement[int],
    *,
    after: int | None,
    before: int | None,
    descending: bool,
    limit: int,
) -> Sequence[Mapping[Any, Any]]:
    """A page of rows in the order of their numbers.

    Args:
        database: Where they are.
        query: All of them.
        number: The column.
        after: Of the row before the page; None means from the beginning.
        before: Of the row behind the page: the last ones before it.
        descending: Newest first.
        limit: Rows at most.
    """
    if after is not None:
        query = query.where(number < after if descending else number > after)
    if before is not None:
        query = query.where(number > before if descending else number < before)
    backwards = before is not None  # the page that ends before a row is read from its end
    query = query.order_by(number.desc() if descending is not backwards else number.asc()).limit(limit)
    async with database.read() as connection:
        rows: Sequence[Mapping[Any, Any]] = (await connection.execute(query)).mappings().all()
    return rows[::-1] if backwards else rows


async def hold(connection: AsyncConnection, bank: Bank) -> Bank:
    """The store as it is now; its other writers wait until this transaction ends.

    Raises:
        NotFoundError: If it was deleted meanwhile.
    """
    query = sa.select(banks).where(banks.c.number == bank.number).with_for_update()
    row = (await connection.execute(query)).mappings().first()
    if row is None:
        raise NotFoundError(f"no vector store {bank.identifier!r}; it was deleted meanwhile", field="vector_store_id")
    return bank_of(row)


async def touch(connection: AsyncConnection, bank: Bank, store: v1.VectorStore) -> Bank:
    """Store its fields, used just now; with them moves its end."""
    moment = now()
    columns = store_columns(store, moment=moment)
    query = sa.update(banks).where(banks.c.number == bank.number).values(**columns).returning(banks)
    return bank_of((await connection.execute(query)).mappings().one())


def store_columns(store: v1.VectorStore, *, moment: int) -> dict[str, Any]:
    """What a store used at a moment adds to its bank's row."""
    store.last_active_at.FromMicroseconds(moment)
    expires_at = moment + store.expires_after.days * DAY if store.HasField("expires_after") else None
    return {"store": store.SerializeToString(deterministic=True), "expires_at": expires_at}


def own_fields(bank: Bank) -> v1.VectorStore:
    """What a store has beyond its bank, to be changed."""
    store = v1.VectorStore()
    if bank.store is not None:
        store.CopyFrom(bank.store)
    else:
        store.name = bank.display_name or bank.identifier
    return store


def is_expired(bank: Bank) -> bool:
    """Whether its life has ended."""
    return bank.expires_at is not None and bank.expires_at <= now()


def refuse_expired(bank: Bank) -> None:
    """Refuse a store whose life has ended.

    Raises:
        FailedPreconditionError: If it is one.
    """
    if is_expired(bank):
        message = f"vector store {bank.identifier!r} has expired and nothing is in it any more; create a new one"
        raise FailedPreconditionError(message, field="vector_store_id")


def check_expiration(message: v1.VectorStoreExpiration, *, field: str = "expires_after") -> None:
    """Refuse an end that cannot be.

    Raises:
        InvalidArgumentError: If anchor or days are out of range.
    """
    if message.anchor != "last_active_at":
        anchor = f"{field}.anchor"
        raise InvalidArgumentError(f"{anchor} is {message.anchor[:40]!r}; allowed: last_active_at", field=anchor)
    if not 1 <= message.days <= MAX_DAYS:
        raise InvalidArgumentError(f"{field}.days is {message.days}; allowed: 1 to {MAX_DAYS}", field=f"{field}.days")


def store_message(bank: Bank, *, counts: Counts, usage: int) -> v1.VectorStore:
    """A store as callers see it."""
    store = own_fields(bank)
    store.id = bank.identifier
    store.created_at.FromMicroseconds(bank.created_at)
    if not store.HasField("last_active_at"):
        store.last_active_at.FromMicroseconds(bank.created_at)
    if bank.expires_at is not None:
        store.expires_at.FromMicroseconds(bank.expires_at)
    store.usage_bytes = 0 if is_expired(bank) else usage
    store.file_counts.CopyFrom(counts_message({} if is_expired(bank) else counts))
    store.status = v1.VECTOR_STORE_STATUS_COMPLETED
    if is_expired(bank):
        store.status = v1.VECTOR_STORE_STATUS_EXPIRED
    elif counts.get(v1.VECTOR_STORE_FILE_STATUS_IN_PROGRESS):
        store.status = v1.VECTOR_STORE_STATUS_IN_PROGRESS
    store.embedding_model = bank.embedding_model
    store.embedding_dimension = bank.embedding_dimension
    store.provider_id = bank.provider_id
    return store


def counts_message(counts: Mapping[int, int]) -> v1.VectorStoreFileCounts:
    """Files by status, as callers see it."""
    return v1.VectorStoreFileCounts(
        completed=counts.get(v1.VECTOR_STORE_FILE_STATUS_COMPLETED, 0),
        cancelled=counts.get(v1.VECTOR_STORE_FILE_STATUS_CANCELLED, 0),
        failed=counts.get(v1.VECTOR_STORE_FILE_STATUS_FAILED, 0),
        in_progress=counts.get(v1.VECTOR_STORE_FILE_STATUS_IN_PROGRESS, 0),
        total=sum(counts.values()),
    )


async def delete_store(connection: AsyncConnection, bank: Bank) -> None:
    """Delete everything of a bank that vector stores keep; for `BankStore.on_delete`."""
    mine = sa.select(file_batches.c.number).where(file_batches.c.bank == bank.number)
    for table in (batch_events, batch_files):
        await connection.execute(sa.delete(table).where(table.c.batch.in_(mine)))
    for other in (file_batches, store_jobs, store_files):
        await connection.execute(sa.delete(other).where(other.c.bank == bank.number))

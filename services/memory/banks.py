"""The banks: made, found, deleted."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory.bank import Bank
from services.memory.catalog import Catalog
from services.memory.database import Database
from services.memory.tables import banks, chunks, documents, metadata, removals, requests, stagings
from services.runtime.moments import now
from stack_client.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError

Cleanup = Callable[[AsyncConnection, Bank], Awaitable[None]]
"""Deletes a bank's rows of one part of the service, inside the transaction that deletes the bank."""


class BankStore:
    """The banks of all tenants.

    Args:
        database: Where they are.
        catalog: Their indexes.
    """

    def __init__(self, database: Database, catalog: Catalog) -> None:
        self._database = database
        self._catalog = catalog
        self._cleanups: list[Cleanup] = [_delete_documents]

    def on_delete(self, cleanup: Cleanup) -> None:
        """Have rows of another part deleted together with their bank; it may refuse by raising."""
        self._cleanups.append(cleanup)

    async def get(self, identifier: str, *, tenant: str, field: str = "bank_id") -> Bank:
        """One bank.

        Raises:
            NotFoundError: If the tenant has none of that name, or its life has ended.
        """
        async with self._database.read() as connection:
            bank = await self.find(connection, identifier, tenant=tenant)
        if bank is None:
            raise NotFoundError(
                f"no memory bank {identifier!r}; see those that there are with `stack memory list`", field=field
            )
        return bank

    async def require(self, identifier: str, *kinds: str, tenant: str, field: str = "bank_id") -> Bank:
        """One bank of some kinds.

        Raises:
            NotFoundError: If the tenant has none of that name.
            FailedPreconditionError: If it is of another kind.
        """
        bank = await self.get(identifier, tenant=tenant, field=field)
        if bank.kind not in kinds:
            wanted = " or ".join(kinds)
            raise FailedPreconditionError(f"memory bank {identifier!r} is of kind {bank.kind}; this needs {wanted}")
        return bank

    async def find(self, connection: AsyncConnection, identifier: str, *, tenant: str) -> Bank | None:
        """One bank, or None."""
        c = banks.c
        alive = c.expires_at.is_(None) | (c.expires_at > now())
        where = (c.tenant == tenant) & (c.identifier == identifier) & alive
        row = (await connection.execute(sa.select(banks).where(where))).mappings().first()
        return None if row is None else bank_of(row)

    async def page(self, *, tenant: str, after: str, limit: int, kinds: Sequence[str] = ()) -> list[Bank]:
        """Banks in the order of their identifiers, after one of them."""
        c = banks.c
        alive = c.expires_at.is_(None) | (c.expires_at > now())
        query = (
            sa.select(banks).where(c.tenant == tenant, c.identifier > after, alive).order_by(c.identifier).limit(limit)
        )
        if kinds:
            query = query.where(c.kind.in_(kinds))
        async with self._database.read() as connection:
            return [bank_of(row) for row in (await connection.execute(query)).mappings()]

    async def create(self, connection: AsyncConnection, **columns: Any) -> Bank:  # noqa: ANN401 (values of columns)
        """Make a bank, or answer the one that is there with the same settings.

        Raises:
            AlreadyExistsError: If the name belongs to a bank with other settings.
        """
        before = await self.find(connection, columns["identifier"], tenant=columns["tenant"])
        if before is not None:
            made = bank_of({**_EMPTY, **columns, "params": columns["params"].SerializeToString(deterministic=True)})
            if _settings(before) != _settings(made):
                message = f"there is a memory bank {before.identifier!r} with other settings; choose another name"
                raise AlreadyExistsError(message)
            return before
        row = {**columns, "params": columns["params"].SerializeToString(deterministic=True), "created_at": now()}
        result = await connection.execute(sa.insert(banks).values(**row).returning(banks))
        return bank_of(result.mappings().one())

    async def delete(self, bank: Bank) -> None:
        """Delete a bank with everything in it.

        Raises:
            NotFoundError: If it was deleted meanwhile.
        """
        async with self._database.write() as connection:
            held = sa.update(banks).where(banks.c.number == bank.number).values(revision=banks.c.revision + 1)
            if not (await connection.execute(held)).rowcount:
                raise NotFoundError(f"no memory bank {bank.identifier!r}; it was deleted meanwhile")
            for cleanup in reversed(self._cleanups):
                await cleanup(connection, bank)
            await connection.execute(sa.delete(banks).where(banks.c.number == bank.number))
        await self._catalog.drop(bank)

    async def counts(self, found: Sequence[Bank]) -> Mapping[int, int]:
        """Documents, entries or entities of banks, by bank number."""
        names = {"vector": "document", "keyword": "document", "keyvalue": "entry", "graph": "entity"}
        result = dict.fromkeys((bank.number for bank in found), 0)
        async with self._database.read() as connection:
            for kind, name in names.items():
                numbers = [bank.number for bank in found if bank.kind == kind]
                if numbers and name in metadata.tables:
                    of = metadata.tables[name].c.bank
                    query = sa.select(of, sa.func.count()).where(of.in_(numbers)).group_by(of)
                    result.update({row[0]: row[1] for row in await connection.execute(query)})
        return result


def bank_of(row: Mapping[Any, Any]) -> Bank:
    """A row of the table as a bank."""
    values = {name: row[name] for name in _COLUMNS}
    values["params"] = v1.BankParams.FromString(row["params"])
    values["store"] = None if row["store"] is None else v1.VectorStore.FromString(row["store"])
    return Bank(**values)


_COLUMNS = [column.name for column in banks.columns]
_EMPTY: Mapping[str, Any] = {
    "number": 0, "embedding_model": "", "embedding_dimension": 0, "embedding_stamp": "", "revision": 0,
    "created_at": 0, "store": None, "expires_at": None, "display_name": None,
}  # fmt: skip


def _settings(bank: Bank) -> tuple[Any, ...]:
    model = (bank.embedding_model, bank.embedding_dimension)
    return (bank.kind, bank.params, bank.provider_id, bank.provider_resource_id, bank.display_name, model)


async def _delete_documents(connection: AsyncConnection, bank: Bank) -> None:
    for table in (stagings, chunks, documents, removals, requests):
        await connection.execute(sa.delete(table).where(table.c.bank == bank.number))

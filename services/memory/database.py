"""The memory's SQL database: its tables, and the revisions of banks."""

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.migrations import upgrade
from services.memory.tables import banks
from services.runtime import database
from services.runtime.database import StoreError
from stack_client.errors import NotFoundError

__all__ = ["Database", "StoreError", "next_revision"]


class Database(database.Database):
    """The memory's database. Use `async with`.

    Args:
        url: SQLAlchemy URL; without a driver it gets the one that we bring.
    """

    def __init__(self, url: str | sa.URL) -> None:
        super().__init__(url, owner="memory", upgrade=upgrade)

    async def version(self) -> str:
        """The migration that the tables stand at."""
        async with self.read() as connection:
            found = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
        return found or ""


async def next_revision(connection: AsyncConnection, bank: int) -> int:
    """The bank's new revision; the bank's other writers wait until this transaction ends.

    Raises:
        NotFoundError: If the bank was deleted meanwhile.
    """
    change = sa.update(banks).where(banks.c.number == bank).values(revision=banks.c.revision + 1)
    revision = (await connection.execute(change.returning(banks.c.revision))).scalar_one_or_none()
    if revision is None:
        raise NotFoundError("the bank was deleted meanwhile")
    return int(revision)

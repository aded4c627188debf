"""Transactions off the event loop: one thread writes, a few read."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from stack_client.errors import InternalError

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

READERS = 4


class StoreError(InternalError):
    """The database cannot be used, for example because the disk is full."""


class SchemaError(StoreError):
    """The database was made by a version whose tables are others."""


class Database:
    """An SQL database. Use `async with`.

    A transaction is one plain function that runs in a thread: it costs one change of thread whatever it does, and no
    cancellation can end it half-way. SQLite has one writer anyway.

    Args:
        url: SQLAlchemy URL of a synchronous driver; a SQLite file is created with its folder.
        tables: Created where they are missing.
    """

    def __init__(self, url: str, tables: sa.MetaData) -> None:
        self._engine = sa.create_engine(url)
        self._tables = tables
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="agents-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="agents-reader")

    async def __aenter__(self) -> Self:
        """Open the database and create its tables.

        Raises:
            SchemaError: If it has tables of another version.
            StoreError: If it cannot be opened.
        """
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
            if self._engine.url.database:
                Path(self._engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        await self.write(self._create)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Let what runs end, and close the database."""
        for executor in (self._writer, self._readers):
            await asyncio.to_thread(executor.shutdown)
        self._engine.dispose()

    async def write(self, work: Work[T]) -> T:
        """Do `work` in one transaction, after those that were asked for before.

        Raises:
            StoreError: If the database failed; nothing was changed.
        """
        return await self._run(self._writer, self._engine.begin, work)

    async def read(self, work: Work[T]) -> T:
        """Do `work`, which sees one state of the database.

        Raises:
            StoreError: If the database failed.
        """
        return await self._run(self._readers, self._engine.connect, work)

    def _create(self, connection: sa.Connection) -> None:
        self._tables.create_all(connection)
        inspector = sa.inspect(connection)
        for table in self._tables.sorted_tables:
            lacking = {column.name for column in table.columns} - {c["name"] for c in inspector.get_columns(table.name)}
            if lacking:
                where = self._engine.url.render_as_string(hide_password=True)
                raise SchemaError(
                    f"{where} was made by another version: its table {table.name!r} has no {min(lacking)!r}; move the "
                    "database away, or go on with the version that made it"
                )

    async def _run(self, executor: Executor, connect: Callable[[], Any], work: Work[T]) -> T:
        def run() -> T:
            with connect() as connection:
                return work(connection)

        try:
            return await to_the_end(asyncio.get_running_loop().run_in_executor(executor, run))
        except sa.exc.SQLAlchemyError as error:
            reason = getattr(error, "orig", None) or error
            raise StoreError(f"the agents' database cannot be used: {reason}") from error


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work`; when the caller is cancelled meanwhile, the cancellation is raised once the work has ended."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


def _configure_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 (a DBAPI connection)
    """Write-ahead log: readers and the writer do not wait for each other; a killed process loses no commit."""
    connection.isolation_level = None  # the driver would begin transactions before changes only: see _begin_sqlite
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")

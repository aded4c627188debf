"""Transactions off the event loop: on SQLite one thread writes and a few read; on servers several write."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from services.agents.swift import Swift, SwiftConnections
from stack_client.errors import InternalError

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

READERS = 4
WRITERS = 8
"""Transactions at a time on servers; SQLite has one writer."""
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
CREATING = 0x6C6C616D61
"""Number of the advisory lock under which tables are made."""


class StoreError(InternalError):
    """The database cannot be used, for example because the disk is full."""


class StoreConflictError(StoreError):
    """Another process wrote the same row at the same time."""


class SchemaError(StoreError):
    """The database was made by a version whose tables are others."""


class Database:
    """An SQL database. Use `async with`.

    A transaction is one plain function that runs in a thread: it costs one change of thread whatever it does, and no
    cancellation can end it half-way. SQLite has one writer anyway.

    Args:
        url: SQLAlchemy URL of SQLite or PostgreSQL; without a driver it gets the one that we bring. A SQLite file is
            created with its folder.
        tables: Created where they are missing.
    """

    def __init__(self, url: str | sa.URL, tables: sa.MetaData) -> None:
        parsed = sa.make_url(url)
        parsed = parsed.set(drivername=DRIVERS.get(parsed.drivername, parsed.drivername))
        if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
            raise sa.exc.ArgumentError(f"{parsed.drivername!r} is not supported; use sqlite or postgresql")
        # A server may have closed a connection meanwhile.
        options = {} if parsed.get_backend_name() == "sqlite" else {"pool_pre_ping": True}
        self._engine = sa.create_engine(parsed, pool_size=READERS + WRITERS, **options)
        self._tables = tables
        writers = 1 if self._engine.dialect.name == "sqlite" else WRITERS
        self._writer = ThreadPoolExecutor(writers, thread_name_prefix="agents-writer")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="agents-reader")
        self._swift = SwiftConnections(self._engine)

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
        self._swift.close()
        self._engine.dispose()

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    async def write(self, work: Work[T], *, through_power_loss: bool = False) -> T:
        """Do `work` in one transaction; on SQLite after those that were asked for before.

        Args:
            work: What to do.
            through_power_loss: On SQLite, wait until the disk has it and all that was written before; without, a commit
                survives the process but maybe not the machine. Servers always wait.

        Raises:
            StoreError: If the database failed; nothing was changed.
        """
        return await self._run(self._writer, lambda: self._writing(flush=through_power_loss), work)

    @contextmanager
    def _writing(self, *, flush: bool) -> Iterator[sa.Connection]:
        sqlite = self.dialect == "sqlite"
        with self._engine.connect() as connection:
            connection.execution_options(writes=True)  # changes the connection itself, and returns it
            if flush and sqlite:
                _synchronous(connection, "FULL")
            try:
                with connection.begin():
                    yield connection
            finally:
                if flush and sqlite:
                    _synchronous(connection, "NORMAL")

    async def read(self, work: Work[T]) -> T:
        """Do `work`, which sees one state of the database.

        Raises:
            StoreError: If the database failed.
        """
        return await self._run(self._readers, self._engine.connect, work)

    async def write_swiftly(self, work: Callable[[Swift], T], *, through_power_loss: bool = False) -> T:
        """`write` for the statements that every turn needs.

        Raises:
            StoreError: If the database failed; nothing was changed.
        """
        return await self._run_swiftly(
            self._writer, lambda: self._swift.transact(work, writes=True, flush=through_power_loss)
        )

    async def read_swiftly(self, work: Callable[[Swift], T]) -> T:
        """`read` for the statements that every turn needs.

        Raises:
            StoreError: If the database failed.
        """
        return await self._run_swiftly(self._readers, lambda: self._swift.transact(work, writes=False))

    async def _run_swiftly(self, executor: Executor, work: Callable[[], T]) -> T:
        driver: Any = self._engine.dialect.loaded_dbapi
        try:
            return await to_the_end(asyncio.get_running_loop().run_in_executor(executor, work))
        except (driver.Error, sa.exc.SQLAlchemyError) as error:
            conflict = isinstance(error, driver.IntegrityError)
            kind = StoreConflictError if conflict else StoreError
            raise kind(f"the agents' database cannot be used: {error}") from error

    def _create(self, connection: sa.Connection) -> None:
        """Make what is missing: tables, and columns that older versions did not have."""
        if self.dialect == "postgresql":  # two processes that start together would both make them
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CREATING)))
        self._tables.create_all(connection)
        inspector = sa.inspect(connection)
        for table in self._tables.sorted_tables:
            known = {column["name"] for column in inspector.get_columns(table.name)}
            for column in table.columns:
                if column.name in known:
                    continue
                if not column.info.get("added"):
                    raise self._other_version(table, column)
                text = sa.schema.CreateColumn(column).compile(dialect=self._engine.dialect)
                try:
                    connection.exec_driver_sql(f'ALTER TABLE "{table.name}" ADD COLUMN {text}')
                except sa.exc.SQLAlchemyError as error:
                    raise self._other_version(table, column) from error

    def _other_version(self, table: sa.Table, column: "sa.Column[Any]") -> SchemaError:
        where = self._engine.url.render_as_string(hide_password=True)
        return SchemaError(
            f"{where} was made by another version: its table {table.name!r} has no {column.name!r}; move the "
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
            kind = StoreConflictError if isinstance(error, sa.exc.IntegrityError) else StoreError
            raise kind(f"the agents' database cannot be used: {reason}") from error


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work`; when the caller is cancelled meanwhile, the cancellation is raised once the work has ended."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if not task.cancelled():
                cancelled = error
        except BaseException:
            if not task.done():  # an interrupt of the loop; what the work itself raised comes with its result
                raise
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


def _configure_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 (a DBAPI connection)
    """Write-ahead log: readers and the writer do not wait for each other; a killed process loses no commit."""
    connection.isolation_level = None  # the driver would begin transactions before changes only: see _begin_sqlite
    for pragma in ("busy_timeout=20000", "journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and then writes would fail when another process wrote in between.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _synchronous(connection: sa.Connection, level: str) -> None:
    raw: Any = connection.connection.dbapi_connection
    raw.execute(f"PRAGMA synchronous={level}")

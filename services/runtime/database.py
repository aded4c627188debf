"""The SQL database: one writer at a time on SQLite, migrations at the start."""

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from stack_client.errors import InternalError, ResourceExhaustedError

_log = logging.getLogger(__name__)

READERS = 4
RESERVE_BYTES = 4 << 20
"""Room that is given up when the disk is full."""
BUSY_MILLISECONDS = 30_000
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


class StoreError(InternalError):
    """The database cannot be used."""


class Database:
    """An SQL database. Use `async with`.

    Args:
        url: SQLAlchemy URL; without a driver it gets the one that we bring.
        owner: Whose it is, for messages: `memory`.
        upgrade: Brings the tables up to date inside a transaction.
    """

    def __init__(self, url: str | sa.URL, *, owner: str, upgrade: Callable[[sa.Connection], None]) -> None:
        self._owner = owner
        self._upgrade = upgrade
        parsed = sa.make_url(url)
        if parsed.drivername in DRIVERS:
            parsed = parsed.set(drivername=DRIVERS[parsed.drivername])
        if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
            raise sa.exc.ArgumentError(f"{parsed.drivername!r} is not supported; use sqlite or postgresql")
        self.url = parsed
        self.dialect = parsed.get_backend_name()
        """`sqlite` or `postgresql`."""
        self._writing = asyncio.Lock()
        self._glancing = threading.Lock()
        self._glass: sqlite3.Connection | None = None
        self._engine: AsyncEngine

    async def __aenter__(self) -> Self:
        """Open the database and bring its tables up to date.

        Raises:
            StoreError: If it cannot be opened, or was written by a newer version.
        """
        options: dict[str, Any] = {"pool_size": READERS, "max_overflow": READERS}
        if self.dialect == "sqlite":
            if self.url.database:
                Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        else:
            options["pool_pre_ping"] = True
        self._engine = create_async_engine(self.url, **options)
        if self.dialect == "sqlite":
            sa.event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
            sa.event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
        try:
            async with self.write() as connection:
                await connection.run_sync(self._upgrade)
        except BaseException:
            await self._engine.dispose()
            raise
        await asyncio.to_thread(self._keep_reserve)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the database."""
        await self._engine.dispose()
        with self._glancing:
            if self._glass is not None:
                self._glass.close()
                self._glass = None

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may change something; commits at the end, and changes nothing when it is left by an error.

        Raises:
            ResourceExhaustedError: If the disk is full.
            StoreError: If the database failed.
        """
        async with self._writing if self.dialect == "sqlite" else contextlib.nullcontext():
            with _translated(self.url, self._owner, on_full=self._free_reserve):
                async with self._engine.connect() as connection:
                    await connection.execution_options(writes=True)
                    async with connection.begin():
                        yield connection

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state of the database.

        Raises:
            StoreError: If the database failed.
        """
        with _translated(self.url, self._owner):
            async with self._engine.connect() as connection:
                if self.dialect == "postgresql":
                    await connection.execution_options(isolation_level="REPEATABLE READ")
                async with connection.begin():
                    yield connection

    async def glance(self, statement: sa.Select[Any], *, text: str, values: Sequence[Any]) -> Sequence[Any]:
        """Rows of one small query that many calls wait for.

        On SQLite it costs a tenth of `read`, whose steps change threads one by one and are compiled from expressions: a
        connection of our own does all of it in one step.

        Args:
            statement: The query.
            text: The same in SQLite's words.
            values: Its parameters.

        Raises:
            StoreError: If the database failed.
        """
        if self.dialect != "sqlite" or not self.url.database:
            async with self.read() as connection:
                return list((await connection.execute(statement)).all())
        try:
            return await asyncio.to_thread(self._glance, text, values)
        except sqlite3.Error as error:
            raise _unusable(self.url, self._owner, error) from error

    def _glance(self, sql: str, values: Sequence[Any]) -> list[Any]:
        with self._glancing:
            if self._glass is None:
                self._glass = sqlite3.connect(str(self.url.database), check_same_thread=False, isolation_level=None)
                self._glass.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
            return self._glass.execute(sql, values).fetchall()

    @property
    def _reserve(self) -> Path | None:
        """A file that takes room on the database's disk; None where there is no such disk."""
        return Path(f"{self.url.database}.reserve") if self.dialect == "sqlite" and self.url.database else None

    def _keep_reserve(self) -> None:
        """Hold some room: without any, not even deleting works."""
        if self._reserve is not None and not self._reserve.exists():
            with contextlib.suppress(OSError):
                self._reserve.write_bytes(bytes(RESERVE_BYTES))

    def _free_reserve(self) -> None:
        """Give the room up, and use it to empty the log, which then is short."""
        if self._reserve is None or not self._reserve.exists():
            return
        self._reserve.unlink(missing_ok=True)
        with contextlib.suppress(sqlite3.Error):
            self._glance("PRAGMA wal_checkpoint(TRUNCATE)", ())


@contextlib.contextmanager
def _translated(url: sa.URL, owner: str, *, on_full: Callable[[], None] = lambda: None) -> Any:  # noqa: ANN401 (a generator as a context manager)
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or error
        where = url.render_as_string(hide_password=True)
        if "disk is full" in str(reason) or "No space left" in str(reason):
            on_full()
            _log.error("disk of the database is full", extra={"database": where})
            message = f"the disk of the {owner}'s database is full; nothing was changed: make room, or delete something"
            raise ResourceExhaustedError(message) from error
        raise _unusable(url, owner, reason) from error


def _unusable(url: sa.URL, owner: str, reason: object) -> StoreError:
    """Where the database is and what it said is for the log alone: callers could read data of others in it."""
    where = url.render_as_string(hide_password=True)
    _log.error("database cannot be used", extra={"database": where, "reason": str(reason)})
    return StoreError(f"the {owner}'s database cannot be used now; the service's log says why")


def _configure_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 (a DBAPI connection)
    """Write-ahead log: readers and the writer do not wait for each other; a killed process loses no commit."""
    connection.isolation_level = None  # the driver would begin transactions by itself: see _begin_sqlite
    cursor = connection.cursor()
    pragmas = ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={BUSY_MILLISECONDS}", "foreign_keys=ON")
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    """A writer takes its lock at once: taken later, it could fail after it has read."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

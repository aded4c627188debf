"""Transactions of statements that are compiled once and run on the driver's own connection.

A turn commits about eight times. Through SQLAlchemy's expressions and pool such a commit costs 0.5 ms of CPU on SQLite,
this way 0.1 ms, half of which is the change of threads (`benchmarks/agents`).
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import sqlalchemy as sa

T = TypeVar("T")


class Swift:
    """One transaction.

    Args:
        cursor: The driver's.
        dialect: Of the database.
    """

    def __init__(self, cursor: Any, dialect: sa.Dialect) -> None:  # noqa: ANN401 (a DBAPI cursor)
        self._cursor = cursor
        self._dialect = dialect

    @classmethod
    def over(cls, connection: sa.Connection) -> "Swift":
        """Statements inside a transaction of SQLAlchemy's."""
        return cls(connection.connection.cursor(), connection.dialect)

    def run(self, statement: str, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 (a DBAPI cursor)
        """Run a statement with `:name` for its values; returns the cursor with its rows or its count."""
        text, order = _for_driver(statement, self._dialect)
        self._cursor.execute(text, _arranged(values, order))
        return self._cursor

    def run_many(self, statement: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement for each row."""
        text, order = _for_driver(statement, self._dialect)
        self._cursor.executemany(text, [_arranged(row, order) for row in rows])


class SwiftConnections:
    """The driver's connections: on SQLite one per thread that stays open, on servers one of the pool each time.

    Args:
        engine: Whose pool and settings are used.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        self._of_thread = threading.local()
        self._opened: list[Any] = []

    def transact(self, work: Callable[[Swift], T], *, writes: bool, flush: bool = False) -> T:
        """Do `work` in one transaction; what it raises undoes it.

        Args:
            work: Plain function of the transaction.
            writes: Whether it changes something.
            flush: On SQLite, wait until the disk has it.
        """
        return self._on_sqlite(work, writes=writes, flush=flush) if self._sqlite else self._on_server(work)

    def close(self) -> None:
        """Close what stayed open; all threads have ended."""
        for connection in self._opened:
            connection.close()
        self._opened.clear()

    def _on_sqlite(self, work: Callable[[Swift], T], *, writes: bool, flush: bool) -> T:
        raw: Any = getattr(self._of_thread, "connection", None)
        if raw is None:
            pooled = self._engine.raw_connection()
            self._opened.append(pooled)
            raw = self._of_thread.connection = pooled.driver_connection
        if flush:
            raw.execute("PRAGMA synchronous=FULL")
        try:
            raw.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                result = work(Swift(raw.cursor(), self._engine.dialect))
                raw.execute("COMMIT")
            except BaseException:
                if raw.in_transaction:
                    raw.execute("ROLLBACK")
                raise
        finally:
            if flush:
                raw.execute("PRAGMA synchronous=NORMAL")
        return result

    def _on_server(self, work: Callable[[Swift], T]) -> T:
        pooled = self._engine.raw_connection()
        try:
            with pooled.cursor() as cursor:  # type: ignore[attr-defined] # psycopg's are context managers
                result = work(Swift(cursor, self._engine.dialect))
            pooled.commit()
        except BaseException:
            pooled.rollback()
            raise
        finally:
            pooled.close()
        return result


@lru_cache(maxsize=256)
def _for_driver(statement: str, dialect: sa.Dialect) -> tuple[str, Sequence[str] | None]:
    """A statement as the driver takes it, and the order of its values where they have no names."""
    compiled = sa.text(statement).compile(dialect=dialect)
    return str(compiled), compiled.positiontup


def _arranged(values: Mapping[str, Any], order: Sequence[str] | None) -> Any:  # noqa: ANN401 (as the driver wants it)
    return values if order is None else tuple(values[name] for name in order)

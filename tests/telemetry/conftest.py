"""A folder with a short path, for unix sockets, and a PostgreSQL where it is installed."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.memory.postgres import postgres_databases, postgres_server, postgres_url  # noqa: F401 (fixtures)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tel-") as folder:
        yield Path(folder)

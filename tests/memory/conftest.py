"""One mesh for all tests that need nothing special; each makes banks of its own in it."""

import itertools
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.memory.databases import either, postgres_mesh  # noqa: F401 (fixtures)
from tests.memory.mesh import MemoryMesh, memory_mesh
from tests.memory.postgres import postgres_databases, postgres_server, postgres_url  # noqa: F401 (fixtures)

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
async def mesh() -> AsyncIterator[MemoryMesh]:
    """Memory on SQLite with scripted models."""
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:  # not pytest's: paths of sockets must be short
        async with memory_mesh(Path(folder)) as running:
            yield running


@pytest.fixture
def name() -> Callable[[], str]:
    """Names that no other test has."""
    return lambda: f"bank-{next(_numbers)}"

"""The same tests on SQLite and PostgreSQL."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.memory.mesh import MemoryMesh, memory_mesh


@pytest.fixture(scope="session")
async def postgres_mesh(postgres_databases: Any) -> AsyncIterator[MemoryMesh]:
    """Memory on PostgreSQL with scripted models."""
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        async with memory_mesh(Path(folder), database=postgres_databases()) as running:
            yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest) -> MemoryMesh:
    """Memory on one database and then on the other."""
    mesh: MemoryMesh = request.getfixturevalue("mesh" if request.param == "sqlite" else "postgres_mesh")
    return mesh

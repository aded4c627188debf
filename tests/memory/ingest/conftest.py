"""Meshes whose jobs are worked on only by workers of the tests."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.memory.mesh import MemoryMesh, memory_mesh


@pytest.fixture(scope="session")
async def idle_sqlite() -> AsyncIterator[MemoryMesh]:
    """Memory on SQLite that works on no jobs."""
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:  # not pytest's: paths of sockets must be short
        async with memory_mesh(Path(folder), jobs_at_once=0) as running:
            yield running


@pytest.fixture(scope="session")
async def idle_postgresql(postgres_databases: Any) -> AsyncIterator[MemoryMesh]:
    """Memory on PostgreSQL that works on no jobs."""
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        async with memory_mesh(Path(folder), database=postgres_databases(), jobs_at_once=0) as running:
            yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest) -> MemoryMesh:
    """One and then the other."""
    mesh: MemoryMesh = request.getfixturevalue(f"idle_{request.param}")
    return mesh


@pytest.fixture
async def working(either: MemoryMesh) -> AsyncIterator[MemoryMesh]:
    """Memory on one database and then on the other, with a worker of jobs."""
    async with either.node.ingestion.runner(either.node._documents, jobs_at_once=2):
        yield either

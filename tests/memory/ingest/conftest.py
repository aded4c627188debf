"""Meshes in which jobs are worked on."""

from collections.abc import AsyncIterator

import pytest

from tests.memory.ingest.plain_store import PlainStore
from tests.memory.mesh import MemoryMesh


@pytest.fixture
async def working(either: MemoryMesh) -> AsyncIterator[MemoryMesh]:
    """Memory on one database and then on the other, with a worker of jobs."""
    async with either.node.ingestion.runner(PlainStore(either.node._database)):
        yield either

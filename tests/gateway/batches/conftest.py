"""One memory service for all tests, and one gateway for those that need nothing special."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.batches.world import World, gateway
from tests.memory.mesh import memory_mesh
from tests.memory.postgres import postgres_databases, postgres_server, postgres_url  # noqa: F401 (fixtures)


@pytest.fixture(scope="session")
async def memory() -> AsyncIterator[str]:
    """Its address."""
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:  # not pytest's: paths of sockets must be short
        async with memory_mesh(Path(folder)) as running:
            yield running.client.addresses["memory"]


@pytest.fixture
async def world(tmp_path: Path, memory: str) -> AsyncIterator[World]:
    """A gateway of its own for each test."""
    async with gateway(tmp_path, memory) as running:
        yield running

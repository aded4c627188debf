"""Keys over either database, and a Redis."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.gateway.keys.node import KeysMesh, keys_mesh
from tests.gateway.keys.redis_server import redis_server
from tests.memory.postgres import postgres_databases, postgres_server, postgres_url  # noqa: F401 (fixtures)


@pytest.fixture(params=["sqlite", "postgresql"])
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[KeysMesh]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    async with keys_mesh(url) as running:
        yield running


@pytest.fixture
async def small() -> AsyncIterator[KeysMesh]:
    """Over SQLite, for what does not depend on the database."""
    async with keys_mesh() as running:
        yield running


@pytest.fixture(scope="session")
def redis() -> Iterator[str]:
    """Address of a Redis."""
    with tempfile.TemporaryDirectory(prefix="stack-") as folder, redis_server(Path(folder)) as url:
        yield url

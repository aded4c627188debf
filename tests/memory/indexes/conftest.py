"""Databases and catalogs for the indexes; every test has banks of its own."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.memory.catalog import Catalog
from services.memory.config import MemoryConfig
from services.memory.database import Database
from tests.memory.indexes.world import World, new_world

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
async def sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    async with Database(f"sqlite:///{tmp_path_factory.mktemp('indexes') / 'memory.db'}") as database:
        yield database


@pytest.fixture(scope="session")
async def postgres_database(postgres_databases: Callable[[], str]) -> AsyncIterator[Database]:
    async with Database(postgres_databases()) as database:
        yield database


@pytest.fixture
async def open_catalog(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Catalog]]]:
    """Opens catalogs, which are closed at the end; `folder` names the place of their files."""
    async with AsyncExitStack() as stack:

        async def enter(database: Database, *, folder: str = "indexes", **config: Any) -> Catalog:
            catalog = Catalog(database, MemoryConfig(**config), tmp_path / folder)
            return await stack.enter_async_context(catalog)

        yield enter


@pytest.fixture
def make_world() -> Callable[..., Awaitable[World]]:
    """Makes banks with names of their own."""

    async def make(database: Database, catalog: Catalog, **options: Any) -> World:
        return await new_world(database, catalog, name=f"world-{next(_numbers)}", **options)

    return make

"""Which index a bank gets, and how it moves to a larger one."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from llamastack import v1
from services.memory.catalog import Catalog
from services.memory.chunks import KeywordQuery
from services.memory.config import MemoryConfig
from services.memory.database import Database
from services.memory.index import LocalIndex
from services.memory.indexes import qdrant_edge
from services.memory.indexes.choice import Choice
from services.memory.tables import banks
from services.runtime.config import ConfigError
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from tests.memory.indexes import test_keyword_indexes as keyword
from tests.memory.indexes import test_vector_indexes as vector
from tests.memory.indexes.world import World, unit

OpenCatalog = Callable[..., Awaitable[Catalog]]
MakeWorld = Callable[..., Awaitable[World]]


async def test_automatic_choices_fit_the_database(
    sqlite_database: Database, postgres_database: Database, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    wanted = {sqlite_database: ("scan", "fts5"), postgres_database: ("pgvector", "tsvector")}
    for database, names in wanted.items():
        world = await make_world(database, await open_catalog(database), dimension=4)
        assert (await world.catalog.vector(world.bank)).name == names[0]
        assert (await world.catalog.keyword(world.bank)).name == names[1]


async def test_a_bank_that_names_its_index_has_it(
    sqlite_database: Database, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    catalog = await open_catalog(sqlite_database)
    for name in ("scan", "qdrant-edge"):
        world = await make_world(sqlite_database, catalog, dimension=4, provider=name)
        assert (await catalog.vector(world.bank)).name == name
        assert (await catalog.keyword(world.bank)).name == "fts5"
    words = await make_world(sqlite_database, catalog, provider="tantivy")
    assert (await catalog.keyword(words.bank)).name == "tantivy"
    with pytest.raises(FailedPreconditionError, match="no vector index"):
        await catalog.vector(words.bank)
    gone = await make_world(sqlite_database, catalog, dimension=4, provider="pgvector")
    with pytest.raises(FailedPreconditionError, match="needs a postgresql database"):
        await catalog.vector(gone.bank)


async def test_providers_are_refused_by_name(sqlite_database: Database, open_catalog: OpenCatalog) -> None:
    catalog = await open_catalog(sqlite_database)
    for provider, kind in (("auto", "graph"), ("scan", "vector"), ("fts5", "vector"), ("tantivy", "keyword")):
        catalog.check_provider(provider, kind)
    with pytest.raises(InvalidArgumentError, match="no provider 'faiss'; it can have auto, scan, qdrant-edge"):
        catalog.check_provider("faiss", "vector")
    with pytest.raises(InvalidArgumentError, match="keyword bank has no provider 'scan'"):
        catalog.check_provider("scan", "keyword")
    with pytest.raises(InvalidArgumentError, match="it can have auto"):
        catalog.check_provider("scan", "keyvalue")
    with pytest.raises(FailedPreconditionError, match="qdrant_url"):
        catalog.check_provider("qdrant", "vector")
    with pytest.raises(FailedPreconditionError, match="needs a postgresql"):
        catalog.check_provider("pgvector", "vector")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"vector_index": "faiss"}, "no 'faiss'; there are auto, scan"),
        ({"keyword_index": "tsvector"}, "needs a postgresql database"),
        ({"vector_index": "qdrant"}, "set memory.qdrant_url"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    sqlite_database: Database, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Choice(sqlite_database, MemoryConfig(**config))


async def test_a_bank_that_outgrows_its_index_moves_while_it_answers(
    sqlite_database: Database, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    rng, numbers = random.Random(1), np.random.default_rng(1)
    catalog = await open_catalog(sqlite_database, scan_chunks=50, tantivy_chunks=50)
    world = await make_world(sqlite_database, catalog, dimension=vector.DIMENSION)
    await world.add(vector.rows(rng, 40))
    assert (await catalog.vector(world.bank)).name == "scan"
    assert (await catalog.keyword(world.bank)).name == "fts5"
    await world.add([{**one, "text": keyword.sentence(rng)} for one in vector.rows(rng, 40)])
    async with asyncio.timeout(20):
        while (await catalog.vector(world.bank)).name != "qdrant-edge":
            await vector.check(world, unit(numbers, vector.DIMENSION), limit=100)
        while (await catalog.keyword(world.bank)).name != "tantivy":
            await keyword.check(world, KeywordQuery(text="dog run"), limit=100)
    await world.remove(sorted(world.held)[:30])
    await vector.check(world, unit(numbers, vector.DIMENSION), limit=100)
    await keyword.check(world, KeywordQuery(text="dog run"), limit=100)
    again = world.seen_by(await open_catalog(sqlite_database, folder="other", scan_chunks=10, tantivy_chunks=10))
    assert (await again.catalog.vector(world.bank)).name == "qdrant-edge"
    await vector.check(again, unit(numbers, vector.DIMENSION), limit=100)


async def test_concurrent_callers_open_an_index_once(
    sqlite_database: Database, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    rng = random.Random(2)
    first = await open_catalog(sqlite_database)
    world = await make_world(sqlite_database, first, dimension=vector.DIMENSION)
    await world.add(vector.rows(rng, 200))
    found = await asyncio.gather(*(first.vector(world.bank) for _ in range(20)))
    assert len({id(index) for index in found}) == 1
    assert isinstance(found[0], LocalIndex)
    assert await found[0].position() == 1


async def test_a_graph_is_built_beside_the_index_in_use(
    sqlite_database: Database,
    open_catalog: OpenCatalog,
    make_world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    monkeypatch.setattr(qdrant_edge, "OPTIMISE_FROM", 100)
    rng, numbers = random.Random(3), np.random.default_rng(3)
    catalog = await open_catalog(sqlite_database, vector_index="qdrant-edge")
    world = await make_world(sqlite_database, catalog, dimension=vector.DIMENSION)
    await world.add(vector.rows(rng, 150))
    index: Any = await catalog.vector(world.bank)
    assert index._optimising is not None
    await world.add(vector.rows(rng, 20))
    await world.remove(sorted(world.held)[:40])
    await vector.check(world, unit(numbers, vector.DIMENSION), limit=500)
    async with asyncio.timeout(30):
        while index._optimising is not None:
            await vector.check(world, unit(numbers, vector.DIMENSION), limit=500)
    assert index._state["shard"] == "1"
    await vector.check(world, unit(numbers, vector.DIMENSION), limit=500)
    await catalog.__aexit__(None, None, None)
    again = world.seen_by(await open_catalog(sqlite_database, vector_index="qdrant-edge"))
    await vector.check(again, unit(numbers, vector.DIMENSION), limit=500)


async def test_an_embedding_of_another_model_is_another_space(
    sqlite_database: Database, postgres_database: Database, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:

    numbers = np.random.default_rng(4)
    for database, name in (
        (sqlite_database, "scan"),
        (sqlite_database, "qdrant-edge"),
        (postgres_database, "pgvector"),
    ):
        catalog = await open_catalog(database, folder=name, vector_index=name)
        world = await make_world(database, catalog, dimension=4)
        old = await world.add([_chunk(unit(numbers, 4)) for _ in range(3)])
        await vector.check(world, unit(numbers, 4), limit=10)
        before, world.bank = world.bank, replace(world.bank, embedding_stamp="other:6", embedding_dimension=6)
        async with database.write() as connection:
            change = sa.update(banks).where(banks.c.number == before.number)
            await connection.execute(change.values(embedding_stamp="other:6", embedding_dimension=6))
        await world.remove(old)
        await world.add([_chunk(unit(numbers, 6)) for _ in range(4)])
        assert await vector.check(world, unit(numbers, 6), limit=10) == 4
        with pytest.raises(UnavailableError, match="ask again"):
            await catalog.vector(before)
        assert await vector.check(world, unit(numbers, 6), limit=10) == 4


async def test_a_deleted_bank_is_not_found(
    sqlite_database: Database, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    catalog = await open_catalog(sqlite_database)
    world = await make_world(sqlite_database, catalog, dimension=4, params=v1.BankParams(vector=v1.VectorBankParams()))
    await world.add([{"vector": unit(np.random.default_rng(1), 4)}])
    await catalog.vector(world.bank)
    await world.erase()
    for find in (catalog.vector, catalog.keyword):
        with pytest.raises(NotFoundError, match="deleted"):
            await find(world.bank)


def _chunk(embedding: Any) -> dict[str, Any]:
    return {"vector": embedding, "facts": {}, "expires_at": None}

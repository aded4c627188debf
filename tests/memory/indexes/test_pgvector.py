"""What only pgvector does: a graph for many matches, checked for what it leaves out."""

import random
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
import sqlalchemy as sa

from llamastack import v1
from services.memory.catalog import Catalog
from services.memory.database import Database
from services.memory.filters import And, Compare
from services.memory.indexes import pgvector
from tests.memory.indexes import test_vector_indexes as vector
from tests.memory.indexes.world import World, unit

OpenCatalog = Callable[..., Awaitable[Catalog]]
MakeWorld = Callable[..., Awaitable[World]]
FIELDS = {"tags": "STRING_LIST", "a'b:c%d": "STRING", "n": "NUMBER"}


async def test_many_matches_go_through_the_graph_and_none_is_missed(
    postgres_database: Database, open_catalog: OpenCatalog, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector, "EXACT_MATCHES", 20)
    rng, numbers = random.Random(1), np.random.default_rng(1)
    world = await make_world(postgres_database, await open_catalog(postgres_database), dimension=8)
    for _ in range(3):
        await world.add([{"vector": unit(numbers, 8), "facts": {"n": n}, "expires_at": None} for n in range(400)])
        await world.remove(rng.sample(sorted(world.held), 50))
    for limit in (1, 10, 100, 1000, 2000):
        index = await world.catalog.vector(world.bank)
        wanted = unit(numbers, 8)
        for where in (None, Compare("lt", "n", 30.0), Compare("gte", "n", 100.0)):
            found = await index.query(wanted, limit=limit, where=where, now=0)
            expected = vector.expected(world, wanted, where, 0)[:limit]
            assert len(found) == len(expected)
            recall = len({one.number for one in found} & {one.number for one in expected}) / len(expected)
            assert recall >= 0.9


async def test_declared_fields_are_indexed_whatever_their_names(
    postgres_database: Database, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    declared = [
        v1.MetadataField(name=name, type=v1.MetadataFieldType.Value(f"METADATA_FIELD_TYPE_{kind}"))
        for name, kind in FIELDS.items()
    ]
    params = v1.BankParams(vector=v1.VectorBankParams(metadata_fields=declared))
    world = await make_world(postgres_database, await open_catalog(postgres_database), dimension=4, params=params)
    numbers = np.random.default_rng(2)
    facts = [{"tags": ["a", "b"], "a'b:c%d": "x", "n": 1}, {"tags": ["b"], "n": 2}]
    await world.add([{"vector": unit(numbers, 4), "facts": one, "expires_at": None} for one in facts])
    both = And((Compare("eq", "tags", "a"), Compare("in", "a'b:c%d", ("x", "y"))))
    assert await vector.check(world, unit(numbers, 4), limit=5, where=both) == 1
    async with postgres_database.read() as connection:
        query = "SELECT count(*) FROM pg_indexes WHERE tablename = :name AND indexdef LIKE '%gin%'"
        name = f"index_vector_{world.bank.number}"
        assert (await connection.execute(sa.text(query), {"name": name})).scalar_one() == len(FIELDS)


@pytest.mark.parametrize("dimension", [1600, 2048, 4096])
async def test_long_vectors_have_the_graph_that_they_can_have(
    postgres_database: Database,
    open_catalog: OpenCatalog,
    make_world: MakeWorld,
    monkeypatch: pytest.MonkeyPatch,
    dimension: int,
) -> None:
    monkeypatch.setattr(pgvector, "EXACT_MATCHES", 5)
    numbers = np.random.default_rng(3)
    world = await make_world(postgres_database, await open_catalog(postgres_database), dimension=dimension)
    await world.add([{"vector": unit(numbers, dimension), "facts": {}, "expires_at": None} for _ in range(12)])
    assert await vector.check(world, unit(numbers, dimension), limit=8) == 12

"""Every vector index against brute force in plain Python."""

import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from services.memory.catalog import Catalog
from services.memory.chunks import Changes, Found
from services.memory.database import Database
from services.memory.filters import Compare, Filter, Not, matches
from services.memory.index import LocalIndex
from services.memory.indexes.upkeep import trim_before
from stack_client.errors import NotFoundError
from tests.memory.indexes.random_facts import facts, some_filter
from tests.memory.indexes.world import World, unit

DIMENSION = 24
NOW = 1_000
OpenCatalog = Callable[..., Awaitable[Catalog]]
MakeWorld = Callable[..., Awaitable[World]]


@dataclass
class Setup:
    """One index over one database."""

    database: Database
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.config["vector_index"])


KINDS = ["scan", "scan-postgresql", "qdrant-edge", "qdrant-memory", "qdrant-folder", "pgvector"]


@pytest.fixture(params=KINDS)
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Setup:
    name = str(request.param)
    postgres = name in {"pgvector", "scan-postgresql"}
    database = request.getfixturevalue("postgres_database" if postgres else "sqlite_database")
    config = {"vector_index": name.removesuffix("-postgresql")}
    if name.startswith("qdrant-") and name != "qdrant-edge":
        url = ":memory:" if name == "qdrant-memory" else str(tmp_path / "qdrant")
        config = {"vector_index": "qdrant", "qdrant_url": url}
    return Setup(database, config)


def rows(rng: random.Random, count: int) -> list[dict[str, Any]]:
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    made = []
    for _ in range(count):
        expires_at = rng.choice([None, None, None, NOW - 1, NOW, NOW + 1])
        made.append({"vector": unit(numbers, DIMENSION), "facts": facts(rng), "expires_at": expires_at})
    for one in rng.sample(made, count // 10):  # equal vectors: the order is by number
        one["vector"] = made[0]["vector"]
    return made


def expected(world: World, vector: Any, where: Filter | None, now: int) -> list[Found]:
    found = [
        Found(number, float(np.dot(row["vector"].astype(np.float64), vector.astype(np.float64))))
        for number, row in world.held.items()
        if matches(where, row["facts"]) and (row["expires_at"] is None or row["expires_at"] > now)
    ]
    return sorted(found, key=lambda one: (-round(one.score, 6), one.number))


async def check(world: World, vector: Any, *, limit: int, where: Filter | None = None, now: int = NOW) -> int:
    """A query answers what brute force does; how many that is."""
    index = await world.catalog.vector(world.bank)
    found = await index.query(vector, limit=limit, where=where, now=now)
    wanted = expected(world, vector, where, now)
    assert len(found) == min(limit, len(wanted)), where
    assert len({one.number for one in found}) == len(found)
    for have, want in zip(found, wanted, strict=False):
        assert have.score == pytest.approx(want.score, abs=2e-6)
    # Scores that differ by less than a float's last digits may stand either way round.
    clear = [one.number for one, after in itertools.pairwise(wanted) if one.score - after.score > 1e-5]
    have_numbers = [one.number for one in found]
    for place, one in enumerate(wanted[: len(found)]):
        alone = one.number in clear and (place == 0 or wanted[place - 1].number in clear)
        if alone:
            assert have_numbers[place] == one.number
    return len(wanted)


async def test_queries_answer_what_brute_force_does_under_any_filter(
    setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    rng = random.Random(3)
    numbers = np.random.default_rng(3)
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config), dimension=DIMENSION)
    await check(world, unit(numbers, DIMENSION), limit=5)  # empty
    for count in (1, 3, 150, 300):
        await world.add(rows(rng, count))
        await check(world, unit(numbers, DIMENSION), limit=rng.randint(1, 400))
    for _ in range(60):
        await check(world, unit(numbers, DIMENSION), limit=rng.randint(1, 60), where=some_filter(rng))
    one = next(iter(world.held))
    await check(world, world.held[one]["vector"], limit=3)


async def test_removed_chunks_are_not_found_and_repeats_are_harmless(
    setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    rng = random.Random(4)
    numbers = np.random.default_rng(4)
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config), dimension=DIMENSION)
    for _ in range(6):
        await world.add(rows(rng, 120))
        await world.remove(rng.sample(sorted(world.held), 60))
        await check(world, unit(numbers, DIMENSION), limit=1000)
    index = await world.catalog.vector(world.bank)
    if isinstance(index, LocalIndex):
        position = await index.position()
        await index.apply(Changes(revision=position, removed=[1 << 40]))
        await index.apply(Changes(revision=position))
        assert await index.position() == position
    await world.remove(sorted(world.held)[1:])
    assert await check(world, unit(numbers, DIMENSION), limit=1000, now=0) == 1


async def test_every_selectivity_answers_as_many_as_there_are(
    setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    numbers = np.random.default_rng(6)
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config), dimension=DIMENSION)
    made = [{"vector": unit(numbers, DIMENSION), "facts": {"n": n}, "expires_at": None} for n in range(500)]
    await world.add(made)
    for matching in (1, 2, 7, 60, 90, 250, 499, 500):
        for where in (Compare("lt", "n", float(matching)), Not(Compare("gte", "n", float(matching)))):
            for limit in (1, 10, 1000):
                assert await check(world, unit(numbers, DIMENSION), limit=limit, where=where) == matching


async def test_a_restart_and_a_second_replica_see_the_same(
    setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    rng = random.Random(5)
    numbers = np.random.default_rng(5)
    first = await open_catalog(setup.database, **setup.config)
    world = await make_world(setup.database, first, dimension=DIMENSION)
    await world.add(rows(rng, 80))
    await check(world, unit(numbers, DIMENSION), limit=100)
    if setup.config.get("qdrant_url", ":memory:") == ":memory:":  # one folder of the local engine has one user
        other = world.seen_by(await open_catalog(setup.database, **setup.config))
        await check(other, unit(numbers, DIMENSION), limit=100)
        await world.remove(rng.sample(sorted(world.held), 30))
        await other.add(rows(rng, 20))
        for one in (world, other):
            await check(one, unit(numbers, DIMENSION), limit=200)
    await world.catalog.__aexit__(None, None, None)
    again = world.seen_by(await open_catalog(setup.database, **setup.config))
    await again.add(rows(rng, 10))
    await check(again, unit(numbers, DIMENSION), limit=200)


async def test_files_that_are_gone_or_damaged_are_made_again(
    setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld, tmp_path: Path
) -> None:
    rng = random.Random(8)
    numbers = np.random.default_rng(8)
    for harm in ("gone", "damaged"):
        catalog = await open_catalog(setup.database, folder=harm, **setup.config)
        world = await make_world(setup.database, catalog, dimension=DIMENSION)
        await world.add(rows(rng, 50))
        await check(world, unit(numbers, DIMENSION), limit=100)
        await catalog.__aexit__(None, None, None)
        for path in sorted((tmp_path / harm / "0").rglob("*"), reverse=True):
            if harm == "damaged" and path.is_file():
                path.write_bytes(b"\x00damaged" * 3)
            elif harm == "gone":
                path.rmdir() if path.is_dir() else path.unlink()
        again = world.seen_by(await open_catalog(setup.database, folder=harm, **setup.config))
        await check(again, unit(numbers, DIMENSION), limit=100)


async def test_trimmed_removals_are_not_missed(setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld) -> None:
    rng = random.Random(9)
    numbers = np.random.default_rng(9)
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config), dimension=DIMENSION)
    await world.add(rows(rng, 40))
    await check(world, unit(numbers, DIMENSION), limit=100)
    await world.remove(sorted(world.held)[:20])
    await world.add(rows(rng, 5))
    async with setup.database.write() as connection:
        await trim_before(connection, world.bank, revision=2)
    await check(world, unit(numbers, DIMENSION), limit=100)
    await world.remove(sorted(world.held)[:10])
    await check(world, unit(numbers, DIMENSION), limit=100)


async def test_a_dropped_bank_leaves_nothing(
    setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld, tmp_path: Path
) -> None:
    rng = random.Random(10)
    catalog = await open_catalog(setup.database, folder="dropped", **setup.config)
    world = await make_world(setup.database, catalog, dimension=DIMENSION)
    await world.add(rows(rng, 20))
    await check(world, world.held[min(world.held)]["vector"], limit=5)
    await world.erase()
    assert [path for path in (tmp_path / "dropped" / "0").rglob("*") if path.is_file()] == []
    async with setup.database.read() as connection:
        tables = await connection.run_sync(_tables)
    assert not [name for name in tables if name.split("_")[-1] == str(world.bank.number)]
    with pytest.raises(NotFoundError, match="deleted"):
        await catalog.vector(world.bank)


def _tables(connection: Any) -> list[str]:
    return [name for name in sa.inspect(connection).get_table_names() if name.startswith("index_")]

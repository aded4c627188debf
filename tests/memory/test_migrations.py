"""Migrations make what the tables say, on both databases, and go back."""

import asyncio
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from services.memory.database import Database
from services.memory.migrations import INDEX_PREFIX, config_for
from services.memory.tables import metadata
from stack_client.errors import FailedPreconditionError
from tests.stacks import ROOT

OPEN = """
import asyncio, sys
from services.memory.database import Database

async def main():
    async with Database(sys.argv[1]) as database:
        print(await database.version())

asyncio.run(main())
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'memory.db'}"
    return str(request.getfixturevalue("postgres_url"))


def differences(connection: sa.Connection) -> list[object]:
    options = {"include_name": lambda name, kind, _: not (kind == "table" and name.startswith(INDEX_PREFIX))}
    context = MigrationContext.configure(connection, opts=options)
    return [one for one in compare_metadata(context, metadata)]  # noqa: C416 (its own kind of list)


async def test_a_new_database_is_as_the_tables_say(url: str) -> None:
    async with Database(url) as database:
        assert await database.version() == "0001"
        async with database.read() as connection:
            assert await connection.run_sync(differences) == []


async def test_going_back_leaves_nothing_and_forward_makes_it_again(url: str) -> None:
    async with Database(url) as database:
        async with database.write() as connection:
            await connection.run_sync(lambda sync: command.downgrade(config_for(sync), "base"))
            left = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
            assert set(left) <= {"alembic_version"}
    async with Database(url) as database, database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_database_of_a_newer_version_is_refused_by_name(url: str) -> None:
    async with Database(url) as database, database.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(FailedPreconditionError, match="newer version"):
        await Database(url).__aenter__()


async def test_replicas_that_start_at_once_migrate_once(url: str) -> None:
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", OPEN, url, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        for _ in range(3)
    ]
    said = [(await process.communicate())[0].strip() for process in processes]
    assert said == [b"0001"] * 3


async def test_a_new_database_keeps_room_for_deleting_on_a_full_disk(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path / 'memory.db'}") as database:
        reserve = tmp_path / "memory.db.reserve"
        assert reserve.stat().st_size > 1_000_000
        database._free_reserve()
        assert not reserve.exists()
        async with database.write() as connection:
            await connection.execute(sa.text("DELETE FROM bank"))

"""Migrations make what the tables say, on both databases."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from services.gateway.batches.migrations import VERSION_TABLE
from services.gateway.batches.tables import metadata
from stack_client.errors import FailedPreconditionError
from tests.gateway.batches.world import open_database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'gateway.db'}"
    return str(request.getfixturevalue("postgres_url"))


def differences(connection: sa.Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return [one for one in compare_metadata(context, metadata)]  # noqa: C416 (its own kind of list)


async def test_a_new_database_is_as_the_tables_say(url: str) -> None:
    async with open_database(url) as database, database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_database_of_a_newer_version_is_refused(url: str) -> None:
    async with open_database(url) as database, database.write() as connection:
        await connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(FailedPreconditionError, match="newer version"):
        await open_database(url).__aenter__()

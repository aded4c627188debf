"""The PostgreSQL that other tests use."""

from collections.abc import Callable

import sqlalchemy as sa

from services.memory.database import Database


async def test_each_database_is_fresh_and_can_have_pgvector(postgres_databases: Callable[[], str]) -> None:
    first, second = postgres_databases(), postgres_databases()
    assert first != second
    async with Database(first) as database, database.write() as connection:
        await connection.execute(sa.text("CREATE EXTENSION vector"))
        assert (await connection.execute(sa.text("SELECT '[1,2]'::vector <=> '[1,2]'::vector"))).scalar_one() == 0
        await connection.execute(sa.text("SELECT count(*) FROM bank"))

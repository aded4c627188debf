"""Filters in SQL and over columns answer as `filters.matches` does."""

import random
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from services.memory.database import Database
from services.memory.filters import MAX_COMPARISONS, MAX_LIST, And, Compare, Filter, Not, Or, matches
from services.memory.indexes.filter_columns import FactColumns
from services.memory.indexes.filter_sql import sql_filter
from services.memory.tables import Json
from tests.memory.indexes.random_facts import KEYS, OPERATORS, VALUES, comparison, facts, some_filter, stored

ROWS = 300


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
async def facts_table(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Database, sa.Table, list[dict[str, Any]]]]:
    """A table of random facts on either database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('facts') / 'm.db'}"
    else:
        url = request.getfixturevalue("postgres_databases")()
    rng = random.Random(5)
    rows = [stored({key: value}) for key in KEYS for value in VALUES] + [facts(rng) for _ in range(ROWS)]
    table = sa.Table("t", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True), sa.Column("facts", Json))
    async with Database(url) as database:
        async with database.write() as connection:
            await connection.run_sync(table.metadata.create_all)
            await connection.execute(sa.insert(table), [{"n": n, "facts": row} for n, row in enumerate(rows)])
        yield database, table, rows


def filters() -> list[Filter]:
    rng = random.Random(7)
    every = [comparison(rng, operator, key) for operator in OPERATORS for key in KEYS for _ in range(3)]
    return [*every, *(some_filter(rng) for _ in range(300))]


async def test_sql_filters_mean_what_the_rules_say(
    facts_table: tuple[Database, sa.Table, list[dict[str, Any]]],
) -> None:
    database, table, rows = facts_table
    async with database.read() as connection:
        for wanted in filters():
            condition = sql_filter(wanted, table.c.facts, database.dialect)
            found = set((await connection.execute(sa.select(table.c.n).where(condition))).scalars())
            inverse = sa.select(table.c.n).where(sa.not_(condition))
            assert found == {n for n, row in enumerate(rows) if matches(wanted, row)}, wanted
            assert len(found) + len((await connection.execute(inverse)).all()) == len(rows), wanted


@pytest.mark.parametrize("number", [int(float(1234567890123456789)), int(1e23), int(1e300), -(2**63), 2**53 + 2])
@pytest.mark.parametrize("operator", ["eq", "in", "gte", "lte"])
async def test_large_whole_numbers_equal_themselves(
    facts_table: tuple[Database, sa.Table, list[dict[str, Any]]], number: int, operator: Any
) -> None:
    database, _table, _rows = facts_table
    wanted = Compare(operator, "year", (float(number), 1.5) if operator == "in" else float(number))
    for one in (stored({"year": number}), stored({"year": [number]})):
        expected = matches(wanted, one)
        async with database.read() as connection:
            row = sa.select(sa.literal(one, Json).label("facts")).subquery()
            query = sa.select(sa.literal(1)).select_from(row)
            found = await connection.execute(query.where(sql_filter(wanted, row.c.facts, database.dialect)))
            assert (found.first() is not None) is expected


async def test_a_long_list_of_values_is_no_trouble(
    facts_table: tuple[Database, sa.Table, list[dict[str, Any]]],
) -> None:
    database, table, rows = facts_table

    wanted = Compare("in", "name", (*(f"x{number}" for number in range(10_000)), "Ada", 1.0, True))
    async with database.read() as connection:
        condition = sql_filter(wanted, table.c.facts, database.dialect)
        found = set((await connection.execute(sa.select(table.c.n).where(condition))).scalars())
    assert found == {n for n, row in enumerate(rows) if matches(wanted, row)}


@pytest.mark.parametrize("shape", ["wide", "deep"])
@pytest.mark.parametrize(("operator", "key"), [("gt", "year"), ("eq", "name"), ("in", "c.d[0]")])
async def test_the_largest_filter_that_is_allowed_is_no_trouble(
    facts_table: tuple[Database, sa.Table, list[dict[str, Any]]], shape: str, operator: Any, key: str
) -> None:
    database, table, rows = facts_table
    few = MAX_LIST // MAX_COMPARISONS
    each = [
        Compare(operator, key, tuple(float(n + i) for i in range(few)) if operator == "in" else float(n))
        for n in range(MAX_COMPARISONS)
    ]
    wanted: Filter = Or(tuple(And(tuple(each[n : n + 100])) for n in range(0, MAX_COMPARISONS, 100)))
    if shape == "deep":
        wanted = each[0]
        for n in range(14):
            wanted = Not(And((*each[n * 35 : n * 35 + 35], wanted)))
    async with database.read() as connection:
        condition = sql_filter(wanted, table.c.facts, database.dialect)
        found = set((await connection.execute(sa.select(table.c.n).where(condition))).scalars())
    assert found == {n for n, row in enumerate(rows) if matches(wanted, row)}


def test_columns_of_facts_answer_alike_also_after_rows_went() -> None:
    rng = random.Random(11)
    columns, rows = FactColumns(), []
    for _ in range(6):
        batch = [facts(rng) for _ in range(rng.randint(0, 900))]
        columns.append(batch)
        rows += batch
        keep = np.flatnonzero([rng.random() < 0.8 for _ in rows])
        columns.keep(keep)
        rows = [rows[index] for index in keep]
        for wanted in rng.sample(filters(), 100):
            assert columns.mask(wanted).tolist() == [matches(wanted, row) for row in rows], wanted

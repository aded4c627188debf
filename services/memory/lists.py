"""Long lists of identifiers in SQL, beyond the number of parameters that a statement may have."""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY


def among(dialect: str, column: sa.ColumnElement[Any], values: Sequence[str] | Sequence[int]) -> sa.ColumnElement[bool]:
    """Whether a column has one of some values; an index on the column serves it."""
    if dialect == "postgresql":
        return column == sa.any_(_array(values))
    return column.in_(sa.select(sa.func.json_each(json.dumps(list(values))).table_valued("value").c.value))


def outside(
    dialect: str, column: sa.ColumnElement[Any], values: Sequence[str] | Sequence[int]
) -> sa.ColumnElement[bool]:
    """Whether a column has none of some values; looked up in a table of them."""
    if dialect == "postgresql":
        return column.not_in(sa.select(sa.func.unnest(_array(values))))
    return sa.not_(among(dialect, column, values))


def matching(
    dialect: str, query: "sa.Select[Any]", columns: Sequence[sa.ColumnElement[str]], rows: Sequence[Sequence[str]]
) -> "sa.Select[Any]":
    """What a query finds where some columns together have one of some rows of texts, each looked up by its index.

    Args:
        dialect: Of the database.
        query: Without order and limit.
        columns: Compared.
        rows: With as many texts each, no two alike.
    """
    names = [f"c{index}" for index in range(len(columns))]
    if dialect == "postgresql":
        arrays = [_array([row[index] for row in rows]) for index in range(len(columns))]
        table = sa.func.unnest(*arrays).table_valued(*names).render_derived()
        same = (column == table.c[name] for column, name in zip(columns, names, strict=True))
        # OFFSET keeps the planner from turning it round: in a new table it takes what is looked up for one row.
        inner = query.where(*same).offset(0).lateral()
        return sa.select(inner).select_from(table.join(inner, sa.true()))
    table = sa.func.json_each(json.dumps(list(map(list, rows)))).table_valued("value")
    parts = [sa.func.json_extract(table.c.value, f"$[{index}]") for index in range(len(columns))]
    return query.where(sa.tuple_(*columns).in_(sa.select(*parts)))


def _array(values: Sequence[str] | Sequence[int]) -> sa.ColumnElement[Any]:
    numbers = bool(values) and isinstance(values[0], int)
    return sa.literal(list(values), ARRAY(sa.BigInteger() if numbers else sa.Text()))

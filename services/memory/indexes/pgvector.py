"""Vectors in PostgreSQL: a table for each bank, HNSW where many chunks match, the exact plan where few do.

An HNSW scan under a filter may end before it has found enough, also with iterative scans. So matches are counted first,
and a scan that brought back too few is followed by the exact plan.
"""

import functools
import json
from collections.abc import Sequence
from typing import ClassVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.chunks import Found, IndexedChunk, Vector
from services.memory.filters import Filter
from services.memory.indexes.context import IndexBrokenError
from services.memory.indexes.filter_sql import sql_filter
from services.memory.indexes.transactional import TransactionalIndex
from services.memory.tables import Json

EXACT_MATCHES = 10_000
"""Matching chunks up to which all of them are looked at."""
MOST_INDEXED = 2000
"""Dimensions of an HNSW index over 32-bit numbers; beyond, over 16-bit ones."""
MOST_HALF_INDEXED = 4000
"""Dimensions of an HNSW index over 16-bit numbers; beyond there is none."""
MOST_IN_ROW = 1500
"""Dimensions up to which vectors stay in their row: outside of it each would cost a look-up of its own."""
EF_SEARCH = 100
MOST_EF_SEARCH = 1000
VERSION = 1


class PgvectorIndex(TransactionalIndex):
    """Vectors of a bank in table `index_vector_<number>`."""

    name: ClassVar[str] = "pgvector"
    wants_embeddings: ClassVar[bool] = True

    @property
    def mark(self) -> str:
        """Of the embeddings' space."""
        return f"{VERSION} {self._bank.embedding_stamp}"

    async def query(self, vector: Vector, *, limit: int, where: Filter | None, now: int) -> list[Found]:
        """See `VectorIndex.query`."""
        table = self._table
        alive = sa.or_(table.c.expires_at.is_(None), table.c.expires_at > now)
        matching = sa.and_(alive, sql_filter(where, table.c.facts, "postgresql"))
        bounded = sa.select(sa.literal(1)).select_from(table).where(matching).limit(EXACT_MATCHES + 1).subquery()
        async with self._database.read() as connection:
            matches = (await connection.execute(sa.select(sa.func.count()).select_from(bounded))).scalar_one()
            if matches > EXACT_MATCHES and self._dimension <= MOST_HALF_INDEXED:
                found = await self._by_graph(connection, vector, matching, limit=limit)
                if len(found) >= min(limit, matches):
                    return found
            return await self._exact(connection, vector, matching, limit=limit)

    async def create(self, connection: AsyncConnection) -> None:
        """See `TransactionalIndex.create`."""
        name = self._table.name
        columns = f"number bigint PRIMARY KEY, embedding vector({self._dimension}) NOT NULL, facts jsonb NOT NULL"
        await _define(connection, f"CREATE TABLE {name} ({columns}, expires_at bigint)")
        if self._dimension <= MOST_IN_ROW:
            await _define(connection, f"ALTER TABLE {name} ALTER COLUMN embedding SET STORAGE PLAIN")
        for field in self._bank.fields:
            fact = "'" + field.replace("'", "''") + "'"
            await _define(connection, f"CREATE INDEX ON {name} USING gin ((facts -> {fact}) jsonb_path_ops)")

    async def finish(self, connection: AsyncConnection) -> None:
        """See `TransactionalIndex.finish`."""
        name, half = self._table.name, f"((embedding::halfvec({self._dimension})) halfvec_ip_ops)"
        if self._dimension <= MOST_HALF_INDEXED:
            how = half if self._half else "(embedding vector_ip_ops)"
            await _define(connection, f"CREATE INDEX ON {name} USING hnsw {how}")

    async def erase(self, connection: AsyncConnection) -> None:
        """See `TransactionalIndex.erase`."""
        await connection.execute(sa.text(f"DROP TABLE IF EXISTS {self._table.name}"))

    async def put(self, connection: AsyncConnection, added: Sequence[IndexedChunk]) -> None:
        """See `TransactionalIndex.put`."""
        rows = [
            {
                "number": one.number,
                "embedding": _text(one.embedding),
                "facts": json.dumps(one.facts),
                "expires_at": one.expires_at,
            }
            for one in added
            if one.embedding is not None
        ]
        if rows:
            values = "(:number, CAST(:embedding AS vector), CAST(:facts AS jsonb), :expires_at)"
            insert = f"INSERT INTO {self._table.name} (number, embedding, facts, expires_at) VALUES "  # noqa: S608 (ours)
            await connection.execute(sa.text(insert + values), rows)

    async def take(self, connection: AsyncConnection, numbers: Sequence[int]) -> None:
        """See `TransactionalIndex.take`."""
        if numbers:
            number = self._table.c.number
            wanted = sa.bindparam("numbers", list(numbers), sa.ARRAY(sa.BigInteger))
            await connection.execute(sa.delete(self._table).where(number == sa.any_(wanted)))

    @property
    def _dimension(self) -> int:
        return self._bank.embedding_dimension

    @property
    def _half(self) -> bool:
        return self._dimension > MOST_INDEXED

    @functools.cached_property
    def _table(self) -> sa.TableClause:
        columns = (sa.column("number", sa.BigInteger), sa.column("facts", Json), sa.column("expires_at", sa.BigInteger))
        return sa.table(f"index_vector_{self._bank.number}", *columns)

    async def _exact(
        self, connection: AsyncConnection, vector: Vector, matching: sa.ColumnElement[bool], *, limit: int
    ) -> list[Found]:
        """All that match, in order; the sum takes the planner's mind off the HNSW index."""
        distance = _distance(vector)
        query = sa.select(self._table.c.number, distance.label("distance")).where(matching)
        rows = await connection.execute(query.order_by(distance + 0, self._table.c.number).limit(limit))
        return [Found(row.number, -row.distance) for row in rows]

    async def _by_graph(
        self, connection: AsyncConnection, vector: Vector, matching: sa.ColumnElement[bool], *, limit: int
    ) -> list[Found]:
        """The nearest by the HNSW index, fewer where its scan ended too early."""
        breadth = str(min(max(EF_SEARCH, 2 * limit), MOST_EF_SEARCH))
        for name, value in (("hnsw.iterative_scan", "strict_order"), ("hnsw.ef_search", breadth)):
            have = await connection.execute(sa.select(sa.func.set_config(name, value, sa.true())))
            if have.scalar_one() != value:
                raise IndexBrokenError(f"PostgreSQL did not take {name} = {value}; pgvector 0.8 or newer is needed")
        query = sa.select(self._table.c.number, _distance(vector).label("distance")).where(matching)
        near = _distance(vector, half=self._dimension if self._half else 0)
        rows = await connection.execute(query.order_by(near).limit(limit))
        return sorted((Found(row.number, -row.distance) for row in rows), key=lambda one: (-one.score, one.number))


class _VectorType(sa.types.UserDefinedType[str]):
    """pgvector's types, for casts."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_options: object) -> str:
        return self.name


def _distance(vector: Vector, *, half: int = 0) -> sa.ColumnElement[float]:
    """The negative inner product; of 16-bit numbers where their dimension is given."""
    embedding: sa.ColumnElement[str] = sa.column("embedding", _VectorType("vector"))
    wanted = sa.cast(sa.literal(_text(vector), sa.Text), _VectorType("vector"))
    if half:
        kind = _VectorType(f"halfvec({half})")
        embedding, wanted = sa.cast(embedding, kind), sa.cast(wanted, kind)
    return embedding.op("<#>", return_type=sa.Double())(wanted)


async def _define(connection: AsyncConnection, definition: str) -> None:
    await connection.execute(sa.text(definition.replace(":", "\\:")))


def _text(vector: Vector | None) -> str:
    assert vector is not None
    return "[" + ",".join(map(repr, vector.tolist())) + "]"

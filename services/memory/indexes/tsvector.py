"""Words in PostgreSQL: a table for each bank with one tsvector a field, behind a GIN index.

A tsvector holds stems with their places, forms behind `_`, and for a stem that occurs n > 1 times a lexeme of its own:
so how often a chunk holds a word is read from the index alone, without its text. PostgreSQL keeps at most 255 places of
a lexeme; fields with more are marked, and phrases in them are looked for in their words.
"""

import functools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.analysis import Token
from services.memory.indexes.sql_words import AnalysedChunk, Numbers, Postings, SqlWords
from services.memory.indexes.words import FieldTokens, PhrasePlan, Term, has_phrase

MOST_PLACES = 255
"""Places that PostgreSQL keeps of a lexeme."""
MANY_TIMES = 12
"""Occurrences that have a lexeme each; beyond, the words are counted."""
LONGEST_PHRASE = 32
"""Words of a phrase that PostgreSQL looks for; longer ones are looked at word by word."""
TIMES = "\x1f"
"""Between a stem and how often it occurs."""


class TsvectorIndex(SqlWords):
    """Words of a bank in table `index_words_<number>`."""

    name: ClassVar[str] = "tsvector"

    @property
    def facts_name(self) -> str:
        """See `SqlWords.facts_name`."""
        return self.words

    async def create(self, connection: AsyncConnection) -> None:
        """See `TransactionalIndex.create`."""
        one = "l{0} int NOT NULL, s{0} text NOT NULL, f{0} text NOT NULL, v{0} tsvector NOT NULL, many{0} bool NOT NULL"
        fields = ", ".join(one.format(field) for field in self._fields)
        columns = f"number bigint PRIMARY KEY, facts jsonb NOT NULL, expires_at bigint, {fields}"
        await connection.execute(sa.text(f"CREATE TABLE {self.words} ({columns})"))

    async def finish(self, connection: AsyncConnection) -> None:
        """See `TransactionalIndex.finish`."""
        for field in self._fields:
            # Without fastupdate, whose list of fresh entries every query would read through.
            index = f"CREATE INDEX ON {self.words} USING gin (v{field}) WITH (fastupdate = off)"
            await connection.execute(sa.text(index))

    async def erase(self, connection: AsyncConnection) -> None:
        """See `TransactionalIndex.erase`."""
        await connection.execute(sa.text(f"DROP TABLE IF EXISTS {self.words}"))

    async def insert(self, connection: AsyncConnection, added: Sequence[AnalysedChunk]) -> None:
        """See `SqlWords.insert`."""
        rows = []
        for one in added:
            chunk = one.chunk
            row = {"number": chunk.number, "facts": json.dumps(chunk.facts), "expires_at": chunk.expires_at}
            for field, tokens in enumerate(one.fields):
                vector, many = _vector(tokens)
                row[f"l{field}"], row[f"v{field}"], row[f"many{field}"] = len(tokens), vector, many
                row[f"s{field}"] = " ".join(token.stem for token in tokens)
                row[f"f{field}"] = " ".join(sorted({token.form for token in tokens}))
            rows.append(row)
        values = {"number": ":number", "facts": "CAST(:facts AS jsonb)", "expires_at": ":expires_at"}
        for field in self._fields:
            values |= {f"{name}{field}": f":{name}{field}" for name in ("l", "s", "f", "many")}
            values[f"v{field}"] = f"CAST(:v{field} AS tsvector)"
        insert = f"INSERT INTO {self.words} ({', '.join(values)}) VALUES ({', '.join(values.values())})"  # noqa: S608 (ours)
        await connection.execute(sa.text(insert), rows)

    async def delete(self, connection: AsyncConnection, numbers: Sequence[int]) -> None:
        """See `SqlWords.delete`."""
        await connection.execute(sa.delete(self.facts).where(self._among(numbers)))

    async def postings(self, connection: AsyncConnection, term: Term, field: int) -> Postings:
        """See `SqlWords.postings`."""
        if term.prefix:
            numbers = await self._holding(connection, _quoted("_" + term.text) + ":*", field)
            return Postings(numbers, np.ones(len(numbers), np.int64))
        numbers = await self._holding(connection, _quoted(term.text), field)
        times = np.ones(len(numbers), np.int64)
        more = len(await self._holding(connection, _quoted(term.text + TIMES) + ":*", field)) if len(numbers) else 0
        count = 2
        while more and count <= MANY_TIMES:
            some = await self._holding(connection, _quoted(f"{term.text}{TIMES}{count}"), field)
            times[np.searchsorted(numbers, some)] = count
            more -= len(some)
            count += 1
        if more:
            table = self._table
            many = _quoted(f"{term.text}{TIMES}many")
            query = sa.select(table.c.number, table.c[f"s{field}"]).where(self._matches(many, field))
            for number, text in await connection.execute(query):
                times[np.searchsorted(numbers, number)] = text.split().count(term.text)
        return Postings(numbers, times)

    async def phrase(self, connection: AsyncConnection, stems: Sequence[str], slop: int, field: int) -> Numbers:
        """See `SqlWords.phrase`."""
        table = self._table
        every = self._matches(" & ".join(map(_quoted, list(dict.fromkeys(stems))[:LONGEST_PHRASE])), field)
        looked_at, known = every, np.zeros(0, np.int64)
        if not slop and len(stems) <= LONGEST_PHRASE:
            many = table.c[f"many{field}"]
            in_order = sa.and_(self._matches(" <-> ".join(map(_quoted, stems)), field), sa.not_(many))
            known = (await self.arrays(connection, sa.select(table.c.number).where(in_order)))[0]
            looked_at = sa.and_(every, many)
        rows = await connection.execute(sa.select(table.c.number, table.c[f"s{field}"]).where(looked_at))
        exactly = PhrasePlan(stems, slop, [field])
        found = [number for number, text in rows if has_phrase(text.split(), exactly)]
        return np.sort(np.concatenate([known, np.array(found, np.int64)]))

    async def holding(self, connection: AsyncConnection, stems: Sequence[str], field: int) -> Mapping[str, int]:
        """See `SqlWords.holding`."""
        listed = sa.func.unnest(sa.literal(list(stems), sa.ARRAY(sa.Text))).table_valued("stem").render_derived()
        quoted = sa.func.concat("'", listed.c.stem, "'")  # stems have no quotes
        matches = sa.column(f"v{field}").bool_op("@@")(sa.cast(quoted, _Tsquery()))
        count = sa.select(sa.func.count()).select_from(self._table).where(matches).correlate(listed)
        rows = await connection.execute(sa.select(listed.c.stem, count.scalar_subquery()))
        return {row[0]: row[1] for row in rows}

    async def tokens(self, connection: AsyncConnection, number: int) -> FieldTokens | None:
        """See `SqlWords.tokens`."""
        c = self._table.c
        columns = [c[f"{name}{field}"] for field in self._fields for name in ("s", "f")]
        row = (await connection.execute(sa.select(*columns).where(c.number == number))).first()
        if row is None:
            return None
        forms = (set(text.split()) for text in row[1::2])
        return [(stems.split(), some) for stems, some in zip(row[::2], forms, strict=True)]

    @functools.cached_property
    def _table(self) -> sa.TableClause:
        names = [f"{name}{field}" for field in self._fields for name in ("s", "f", "many")]
        return sa.table(self.words, sa.column("number", sa.BigInteger), *map(sa.column, names))

    def _matches(self, wanted: str, field: int) -> sa.ColumnElement[bool]:
        """Whether a row matches a tsquery."""
        return sa.column(f"v{field}").bool_op("@@")(sa.cast(sa.literal(wanted, sa.Text), _Tsquery()))

    async def _holding(self, connection: AsyncConnection, wanted: str, field: int) -> Numbers:
        query = sa.select(self._table.c.number).where(self._matches(wanted, field))
        return np.sort((await self.arrays(connection, query))[0])


class _Tsquery(sa.types.UserDefinedType[str]):
    """PostgreSQL's type, for casts."""

    cache_ok = True

    def get_col_spec(self, **_options: object) -> str:
        return "tsquery"


def _vector(tokens: Sequence[Token]) -> tuple[str, bool]:
    """A field as PostgreSQL reads a tsvector, and whether some word has more places than it keeps."""
    places = defaultdict[str, list[int]](list)
    for place, token in enumerate(tokens, 1):
        places[token.stem].append(place)
    parts = [f"{_quoted(stem)}:{','.join(map(str, some[:MOST_PLACES]))}" for stem, some in places.items()]
    for stem, some in places.items():
        if len(some) > 1:
            parts.append(_quoted(f"{stem}{TIMES}{len(some) if len(some) <= MANY_TIMES else 'many'}"))
    parts += [_quoted("_" + form) for form in {token.form for token in tokens}]
    return " ".join(parts), any(len(some) > MOST_PLACES for some in places.values())


def _quoted(lexeme: str) -> str:
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'"

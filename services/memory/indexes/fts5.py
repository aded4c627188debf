"""Words in SQLite's FTS5: a table for each bank with two columns a field, its stems in order and its forms.

Texts are analysed before, so FTS5 splits at spaces only and folds nothing; forms begin with `_`, which no stem has.
Who holds a term and how often is read from the table's vocabulary, which is faster than ranking by FTS5 itself.
"""

import asyncio
import functools
import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.indexes.sql_words import AnalysedChunk, Numbers, Postings, SqlWords, counted
from services.memory.indexes.words import FieldTokens, PhrasePlan, Term, has_phrase

LONGEST_PHRASE = 32
"""Words of a phrase that FTS5 looks for; longer ones are looked at word by word."""
LAST = "\U0010ffff"


class Fts5Index(SqlWords):
    """Words of a bank in table `index_words_<number>`."""

    name: ClassVar[str] = "fts5"

    @property
    def facts_name(self) -> str:
        """See `SqlWords.facts_name`."""
        return f"{self.words}_facts"

    async def create(self, connection: AsyncConnection) -> None:
        """See `TransactionalIndex.create`."""
        columns = ", ".join(f"s{field}, f{field}" for field in self._fields)
        tokens = "tokenize = \"ascii tokenchars '_'\""
        await connection.execute(sa.text(f"CREATE VIRTUAL TABLE {self.words} USING fts5({columns}, {tokens})"))
        vocabulary = f"CREATE VIRTUAL TABLE {self.words}_terms USING fts5vocab({self.words}, instance)"
        await connection.execute(sa.text(vocabulary))
        lengths = ", ".join(f"l{field} INTEGER NOT NULL" for field in self._fields)
        columns = f"number INTEGER PRIMARY KEY, facts TEXT NOT NULL, expires_at INTEGER, {lengths}"
        await connection.execute(sa.text(f"CREATE TABLE {self.facts_name} ({columns})"))

    async def finish(self, connection: AsyncConnection) -> None:
        """Nothing is left to be made."""

    async def erase(self, connection: AsyncConnection) -> None:
        """See `TransactionalIndex.erase`."""
        for name in (f"{self.words}_terms", self.words, self.facts_name):
            await connection.execute(sa.text(f"DROP TABLE IF EXISTS {name}"))

    async def insert(self, connection: AsyncConnection, added: Sequence[AnalysedChunk]) -> None:
        """See `SqlWords.insert`."""
        rows = []
        for one in added:
            chunk = one.chunk
            row = {"number": chunk.number, "facts": json.dumps(chunk.facts), "expires_at": chunk.expires_at}
            for field, tokens in enumerate(one.fields):
                row[f"l{field}"] = len(tokens)
                row[f"s{field}"] = " ".join(token.stem for token in tokens)
                row[f"f{field}"] = " ".join(sorted({"_" + token.form for token in tokens}))
            rows.append(row)
        words = [name for field in self._fields for name in (f"s{field}", f"f{field}")]
        await connection.execute(
            sa.text(_insert(self.words, {"rowid": "number", **{name: name for name in words}})), rows
        )
        facts = ["number", "facts", "expires_at", *(f"l{field}" for field in self._fields)]
        await connection.execute(sa.text(_insert(self.facts_name, {name: name for name in facts})), rows)

    async def delete(self, connection: AsyncConnection, numbers: Sequence[int]) -> None:
        """See `SqlWords.delete`."""
        rows = [{"number": number} for number in numbers]
        await connection.execute(sa.text(f"DELETE FROM {self.words} WHERE rowid = :number"), rows)  # noqa: S608 (ours)
        await connection.execute(sa.text(f"DELETE FROM {self.facts_name} WHERE number = :number"), rows)  # noqa: S608 (ours)

    async def postings(self, connection: AsyncConnection, term: Term, field: int) -> Postings:
        """See `SqlWords.postings`."""
        c = self._terms.c
        if term.prefix:
            first = "_" + term.text
            inside = sa.and_(c.col == f"f{field}", c.term >= first, c.term < first + LAST)
            occurrences = (await self.arrays(connection, sa.select(c.doc).where(inside)))[0]
            numbers = (await asyncio.to_thread(counted, occurrences)).numbers
            return Postings(numbers, np.ones(len(numbers), np.int64))
        query = sa.select(c.doc).where(c.term == term.text, c.col == f"s{field}")
        return await asyncio.to_thread(counted, (await self.arrays(connection, query))[0])

    async def phrase(self, connection: AsyncConnection, stems: Sequence[str], slop: int, field: int) -> Numbers:
        """See `SqlWords.phrase`."""
        words = sa.table(self.words, sa.column("rowid"), sa.column(f"s{field}"))
        matched: sa.ColumnElement[str] = sa.literal_column(self.words)
        if not slop and len(stems) <= LONGEST_PHRASE:
            wanted = f's{field} : "{" ".join(stems)}"'
            query = sa.select(words.c.rowid).where(matched.bool_op("MATCH")(wanted))
            return np.sort((await self.arrays(connection, query))[0])
        wanted = " AND ".join(f's{field} : "{stem}"' for stem in list(dict.fromkeys(stems))[:LONGEST_PHRASE])
        rows = await connection.execute(sa.select(words).where(matched.bool_op("MATCH")(wanted)))
        exactly = PhrasePlan(stems, slop, [field])
        return np.array(sorted(number for number, text in rows if has_phrase(text.split(), exactly)), np.int64)

    async def holding(self, connection: AsyncConnection, stems: Sequence[str], field: int) -> Mapping[str, int]:
        """See `SqlWords.holding`."""
        c = self._terms.c
        listed = sa.func.json_each(json.dumps(stems)).table_valued("value").alias()
        count = sa.select(sa.func.count(c.doc.distinct())).where(c.term == listed.c.value, c.col == f"s{field}")
        rows = await connection.execute(sa.select(listed.c.value, count.scalar_subquery()))
        return {row[0]: row[1] for row in rows}

    async def tokens(self, connection: AsyncConnection, number: int) -> FieldTokens | None:
        """See `SqlWords.tokens`."""
        names = ", ".join(f"s{field}, f{field}" for field in self._fields)
        query = f"SELECT {names} FROM {self.words} WHERE rowid = :number"  # noqa: S608 (ours)
        row = (await connection.execute(sa.text(query), {"number": number})).first()
        if row is None:
            return None
        forms = ({form[1:] for form in text.split()} for text in row[1::2])
        return [(stems.split(), some) for stems, some in zip(row[::2], forms, strict=True)]

    @functools.cached_property
    def _terms(self) -> sa.TableClause:
        return sa.table(f"{self.words}_terms", sa.column("term"), sa.column("doc"), sa.column("col"))


def _insert(table: str, columns: Mapping[str, str]) -> str:
    values = ", ".join(f":{name}" for name in columns.values())
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608 (our own names)

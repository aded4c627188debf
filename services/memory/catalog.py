"""Which index a bank has, and keeping it up to date."""

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.bank import Bank
from services.memory.chunks import Changes
from services.memory.config import MemoryConfig
from services.memory.database import Database
from services.memory.index import Index, KeywordIndex, LocalIndex, VectorIndex
from services.memory.indexes.choice import AUTO, Choice, Side, sides
from services.memory.indexes.context import IndexBrokenError, IndexContext
from services.memory.indexes.transactional import TransactionalIndex
from services.memory.indexes.upkeep import catch_up, revision_of, trim
from services.memory.tables import banks, chunks
from stack_client.errors import FailedPreconditionError, NotFoundError, StackError, UnavailableError

REVISION = "SELECT revision FROM bank WHERE number = ?"

logger = logging.getLogger(__name__)
Key: TypeAlias = tuple[int, Side]


@dataclass
class _Entry:
    """The index of one side of one bank."""

    bank: Bank
    name: str
    index: Index
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is opened and brought up to date."""
    opened: bool = False
    count: int = 0
    """Chunks of the bank, about."""
    growing: bool = False
    """A larger one is being built."""


class Catalog:
    """The open indexes of all banks. Use `async with`.

    Args:
        database: Where the chunks are.
        config: Which indexes are wanted.
        folder: Where local indexes keep their data; a cache.

    Raises:
        ConfigError: If an index is configured that there is not, or cannot be.
    """

    def __init__(self, database: Database, config: MemoryConfig, folder: Path) -> None:
        self._database = database
        self._config = config
        self._folder = folder
        self._choice = Choice(database, config)
        self._entries: dict[Key, _Entry] = {}
        self._resources = contextlib.AsyncExitStack()
        self._tasks = asyncio.TaskGroup()
        self._growing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Take a folder of its own and look at what the database has."""
        async with contextlib.AsyncExitStack() as opening:
            self._folder = opening.enter_context(await asyncio.to_thread(_own_folder, self._folder))
            await self._choice.look()
            await self._sweep()
            await opening.enter_async_context(self._tasks)
            self._resources = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all indexes."""
        for task in self._growing:
            task.cancel()
        await asyncio.gather(*self._growing, return_exceptions=True)
        for entry in self._entries.values():
            async with entry.lock:
                if entry.opened:
                    await entry.index.close()
        self._entries.clear()
        await self._resources.aclose()

    def check_provider(self, provider: str, kind: str) -> None:
        """Refuse a provider that a kind of bank cannot have.

        Raises:
            InvalidArgumentError: If it is not known for the kind.
            FailedPreconditionError: If it is known and cannot be used here.
        """
        self._choice.check(provider, kind)

    async def vector(self, bank: Bank) -> VectorIndex:
        """The bank's vector index with everything in it that was committed before the call.

        Raises:
            FailedPreconditionError: If it has none, or the one it asked for cannot be used here.
            NotFoundError: If the bank was deleted meanwhile.
        """
        index: Any = await self._current(bank, "vector")
        return index  # type: ignore[no-any-return] # by its side

    async def keyword(self, bank: Bank) -> KeywordIndex:
        """The bank's index of words with everything in it that was committed before the call; see `vector`."""
        index: Any = await self._current(bank, "keyword")
        return index  # type: ignore[no-any-return] # by its side

    async def write(self, connection: AsyncConnection, bank: Bank, changes: Changes) -> None:
        """Take changes into the bank's transactional indexes, inside the transaction that makes them."""
        for side in sides(bank):
            for name in self._choice.transactional(side):
                index = self._make(bank, side, name)
                if name == self._choice.written(bank, side) or await index.exists(connection):
                    await index.write(connection, changes)
            entry = self._entries.get((bank.number, side))
            if entry is not None and isinstance(entry.index, TransactionalIndex):
                entry.count += len(changes.added)
        await trim(connection, bank, revision=changes.revision)

    async def drop(self, bank: Bank) -> None:
        """Erase the bank's indexes; its rows are gone already."""
        for side in sides(bank):
            entry = self._entries.pop((bank.number, side), None)
            names = {*self._choice.transactional(side), *self._choice.elsewhere(bank, side)}
            if entry is not None:
                async with entry.lock:
                    await entry.index.drop()
                names.discard(entry.name)
            for name in names:
                await self._make(bank, side, name).drop()
        await asyncio.to_thread(shutil.rmtree, self._folder / _name(bank), ignore_errors=True)

    async def _current(self, bank: Bank, side: Side) -> Index:
        if side not in sides(bank):
            message = f"memory bank {bank.identifier!r} of kind {bank.kind} has no {side} index"
            raise FailedPreconditionError(message)
        try:
            return await self._newest(bank, side)
        except NotFoundError:
            gone = self._entries.pop((bank.number, side), None)
            if gone is not None:
                async with gone.lock:
                    await gone.index.drop()
            raise

    async def _newest(self, bank: Bank, side: Side) -> Index:
        entry = await self._entry(bank, side)
        if entry.opened and isinstance(entry.index, LocalIndex):
            query = sa.select(banks.c.revision).where(banks.c.number == bank.number)
            rows = await self._database.glance(query, text=REVISION, values=[bank.number])
            if rows and await entry.index.position() >= rows[0][0]:
                return entry.index
        async with entry.lock:
            await self._ready(entry, side)
        return entry.index

    async def _entry(self, bank: Bank, side: Side) -> _Entry:
        entry = self._known(bank, side)
        if entry is not None:
            return entry
        count = await self._check(bank, side)
        name = self._choice.name(bank, side, count=count)
        if entry := self._known(bank, side):  # somebody else was faster
            return entry
        before = self._entries.get((bank.number, side))
        logger.info("index chosen bank=%s side=%s index=%s chunks=%s", bank.number, side, name, count)
        entry = _Entry(bank=bank, name=name, index=self._make(bank, side, name), count=count)
        self._entries[bank.number, side] = entry
        if before is not None and isinstance(before.index, LocalIndex):  # of embeddings that there are no more
            async with before.lock:
                await before.index.drop()
        return entry

    def _known(self, bank: Bank, side: Side) -> _Entry | None:
        entry = self._entries.get((bank.number, side))
        same = entry is not None and (side == "keyword" or entry.bank.embedding_stamp == bank.embedding_stamp)
        return entry if same else None

    async def _check(self, bank: Bank, side: Side) -> int:
        """How many chunks a bank has, where that matters, before its index is opened.

        Raises:
            NotFoundError: If it was deleted meanwhile.
            UnavailableError: If it has another embedding model now.
        """
        async with self._database.read() as connection:
            await revision_of(connection, bank)
            query = sa.select(banks.c.embedding_stamp).where(banks.c.number == bank.number)
            if side == "vector" and (await connection.execute(query)).scalar_one() != bank.embedding_stamp:
                raise UnavailableError(f"memory bank {bank.identifier!r} has another embedding model now; ask again")
        return await self._count(bank) if self._choice.asked(bank, side) == AUTO else 0

    async def _ready(self, entry: _Entry, side: Side) -> None:
        """Open it and bring it up to date; made again once where it is broken."""
        try:
            await self._up_to_date(entry.bank, side, entry)
        except IndexBrokenError as error:
            logger.warning("index is made again bank=%s index=%s: %s", entry.bank.number, entry.name, error.message)
            await entry.index.drop()
            entry.opened = False
            await self._up_to_date(entry.bank, side, entry)

    async def _up_to_date(self, bank: Bank, side: Side, entry: _Entry) -> None:
        if not entry.opened:
            await entry.index.open()
            entry.opened = True
        if isinstance(entry.index, LocalIndex):
            added = await catch_up(self._database, bank, entry.index, embeddings=side == "vector")
            entry.count += added
        await self._grow(bank, side, entry)

    async def _grow(self, bank: Bank, side: Side, entry: _Entry) -> None:
        """Begin to build a larger index where the bank has outgrown the one it has."""
        if entry.growing or not self._choice.outgrown(bank, side, entry.name, count=entry.count):
            return
        entry.count = await self._count(bank)
        if self._choice.outgrown(bank, side, entry.name, count=entry.count):
            entry.growing = True
            task = self._tasks.create_task(self._build(bank, side, entry))
            self._growing.add(task)
            task.add_done_callback(self._growing.discard)

    async def _build(self, bank: Bank, side: Side, entry: _Entry) -> None:
        """Build the larger index while the one there is answers, then put it in its place."""
        name = self._choice.name(bank, side, count=entry.count)
        logger.info("larger index is being built bank=%s side=%s index=%s", bank.number, side, name)
        larger = _Entry(bank=bank, name=name, index=self._make(bank, side, name))
        try:
            await self._ready(larger, side)
            async with entry.lock:
                await self._ready(larger, side)
                # Queries may still hold the old one: it is let go, not closed.
                entry.index, entry.name = larger.index, name
                entry.growing = False
        except asyncio.CancelledError:
            await larger.index.close()
            raise
        except (StackError, OSError) as error:  # the small one goes on answering; the next start tries again
            logger.warning("larger index cannot be built bank=%s index=%s: %s", bank.number, name, error)

    def _make(self, bank: Bank, side: Side, name: str) -> Any:  # noqa: ANN401 (a VectorIndex or a KeywordIndex)
        space = hashlib.sha256(bank.embedding_stamp.encode()).hexdigest()[:8] if side == "vector" else "words"
        folder = self._folder / _name(bank) / f"{name}-{space}"
        context = IndexContext(database=self._database, bank=bank, folder=folder, config=self._config)
        return self._choice.make(side, name, context)

    async def _count(self, bank: Bank) -> int:
        query = sa.select(sa.func.count()).where(chunks.c.bank == bank.number)
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def _sweep(self) -> None:
        """Erase folders of banks that are gone."""
        async with self._database.read() as connection:
            rows = await connection.execute(sa.select(banks.c.number, banks.c.created_at))
            known = {f"{row.number}-{row.created_at}" for row in rows}
        await asyncio.to_thread(_erase_others, self._folder, known)


def _name(bank: Bank) -> str:
    """Name of a bank's folder; its time tells it from one of another database."""
    return f"{bank.number}-{bank.created_at}"


def _erase_others(folder: Path, known: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in known:
            shutil.rmtree(path, ignore_errors=True)


def _own_folder(folder: Path) -> Any:  # noqa: ANN401 (a context manager)
    """The first folder that no other process has, for as long as this one lives."""
    folder.mkdir(parents=True, exist_ok=True)
    slot = 0
    while True:
        file = (folder / f"{slot}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            slot += 1
            continue
        return _held(folder / str(slot), file)


@contextlib.contextmanager
def _held(folder: Path, file: Any) -> Any:  # noqa: ANN401 (a file; a generator)
    folder.mkdir(exist_ok=True)
    with file:
        yield folder

"""Which index a bank gets: the one it names, else the configured one, else what fits."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa

from services.memory.bank import KINDS, Bank
from services.memory.config import MemoryConfig
from services.memory.database import Database
from services.memory.indexes import KEYWORD_INDEXES, VECTOR_INDEXES, IndexKind
from services.memory.indexes.context import IndexContext
from services.runtime.config import ConfigError
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, StackError

logger = logging.getLogger(__name__)
Side: TypeAlias = Literal["vector", "keyword"]
AUTO = "auto"
PGVECTOR = "pgvector"
_KINDS: Mapping[Side, Mapping[str, IndexKind]] = {"vector": VECTOR_INDEXES, "keyword": KEYWORD_INDEXES}
_LARGE: Mapping[str, str] = {"scan": "qdrant-edge", "fts5": "tantivy", "tsvector": "tantivy"}
"""What follows where a bank outgrows an index."""
_OLDEST_PGVECTOR = (0, 8)
"""The first with iterative scans."""


def sides(bank: Bank) -> Sequence[Side]:
    """The indexes that a bank has."""
    match bank.kind:
        case "vector":
            return ("vector", "keyword")
        case "keyword":
            return ("keyword",)
    return ()


class Choice:
    """Chooses indexes.

    Args:
        database: Where the chunks are.
        config: Which indexes are wanted.

    Raises:
        ConfigError: If an index is configured that there is not, or cannot be.
    """

    def __init__(self, database: Database, config: MemoryConfig) -> None:
        self._database = database
        self._config = config
        self._configured: Mapping[Side, str] = {"vector": config.vector_index, "keyword": config.keyword_index}
        self._no_pgvector = "it was not looked for"
        for side, name in self._configured.items():
            if name == AUTO:
                continue
            if name not in _KINDS[side]:
                raise ConfigError(f"memory.{side}_index: no {name!r}; there are auto, {', '.join(_KINDS[side])}")
            if name != PGVECTOR and (why := self._unusable(_KINDS[side][name], name)):
                raise ConfigError(f"memory.{side}_index: {why}")

    async def look(self) -> None:
        """Find out what the database has.

        Raises:
            ConfigError: If the configured index needs what it has not.
        """
        if self._database.dialect == "postgresql":
            self._no_pgvector = await _pgvector_missing(self._database)
            if self._no_pgvector:
                logger.info("no pgvector: %s", self._no_pgvector)
        else:
            self._no_pgvector = "pgvector needs a PostgreSQL database: set memory.database"
        if self._configured["vector"] == PGVECTOR and self._no_pgvector:
            raise ConfigError(f"memory.vector_index: {self._no_pgvector}")

    def check(self, provider: str, kind: str) -> None:
        """See `Catalog.check_provider`."""
        assert kind in KINDS
        of_kind: Mapping[str, Sequence[Side]] = {"vector": ("vector", "keyword"), "keyword": ("keyword",)}
        known = {name: one for side in of_kind.get(kind, ()) for name, one in _KINDS[side].items()}
        if provider == AUTO:
            return
        if provider not in known:
            names = ", ".join([AUTO, *known])
            message = f"provider_id: a {kind} bank has no provider {provider!r}; it can have {names}"
            raise InvalidArgumentError(message, field="provider_id")
        if why := self._unusable(known[provider], provider):
            raise FailedPreconditionError(f"provider_id: {why}", field="provider_id")

    def asked(self, bank: Bank, side: Side) -> str:
        """The index that the bank or the configuration names, or `auto`."""
        return bank.provider_id if bank.provider_id in _KINDS[side] else self._configured[side]

    def written(self, bank: Bank, side: Side) -> str:
        """The transactional index that the bank has from its first chunk on; empty = none."""
        asked = self.asked(bank, side)
        name = self._own(side) if asked == AUTO else asked
        return name if name and _KINDS[side][name].upkeep == "transactional" else ""

    def name(self, bank: Bank, side: Side, *, count: int) -> str:
        """The index of a bank of so many chunks.

        Raises:
            FailedPreconditionError: If the one it asked for cannot be used here.
        """
        asked = self.asked(bank, side)
        if asked != AUTO:
            if why := self._unusable(_KINDS[side][asked], asked):
                raise FailedPreconditionError(f"the index of memory bank {bank.identifier!r} cannot be used: {why}")
            return asked
        small = self._own(side) or "scan"
        return _LARGE[small] if self.outgrown(bank, side, small, count=count) else small

    def outgrown(self, bank: Bank, side: Side, name: str, *, count: int) -> bool:
        """Whether a bank of so many chunks moves from this index to a larger one."""
        asked = self.asked(bank, side)
        if asked != AUTO or name not in _LARGE or not _KINDS[side][_LARGE[name]].installed:
            return False
        return count > (self._config.scan_chunks if side == "vector" else self._config.tantivy_chunks)

    def transactional(self, side: Side) -> Sequence[str]:
        """Indexes of this database that live in it."""
        return [
            name
            for name, kind in _KINDS[side].items()
            if kind.upkeep == "transactional" and not self._unusable(kind, name)
        ]

    def elsewhere(self, bank: Bank, side: Side) -> Sequence[str]:
        """Indexes of a bank that are kept neither in the database nor in its folder."""
        return [name for name in [self.asked(bank, side)] if name == "qdrant"]

    def make(self, side: Side, name: str, context: IndexContext) -> Any:  # noqa: ANN401 (a VectorIndex or KeywordIndex)
        """An index, not yet open."""
        return _KINDS[side][name].make(context)

    def _own(self, side: Side) -> str:
        """The index that the database itself has; empty = none."""
        if side == "keyword":
            return "fts5" if self._database.dialect == "sqlite" else "tsvector"
        return "" if self._no_pgvector else PGVECTOR

    def _unusable(self, kind: IndexKind, name: str) -> str:
        """Why an index cannot be used here; empty = it can."""
        if kind.database and kind.database != self._database.dialect:
            return f"{name} needs a {kind.database} database, memory.database is {self._database.dialect}"
        if not kind.installed:
            return f"{name} needs a package that is not installed: pip install {kind.install}"
        if name == "qdrant" and not self._config.qdrant_url:
            return "qdrant needs an address: set memory.qdrant_url"
        return self._no_pgvector if name == PGVECTOR else ""


async def _pgvector_missing(database: Database) -> str:
    """Why the database has no pgvector that we can use; empty = it has. Installs it where that is allowed."""
    async with database.read() as connection:
        query = sa.text("SELECT default_version, installed_version FROM pg_available_extensions WHERE name = 'vector'")
        row = (await connection.execute(query)).first()
    if row is None:
        return "the PostgreSQL server has no pgvector; install the extension there"
    if row.installed_version is None:
        try:
            async with database.write() as connection:
                await connection.execute(sa.text("SELECT pg_advisory_xact_lock(7236270)"))  # IF NOT EXISTS can race
                await connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector"))
        except StackError as error:
            return f"pgvector is not enabled and cannot be: {error.message}; run CREATE EXTENSION vector as its owner"
    version = row.installed_version or row.default_version
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_PGVECTOR:
        return f"pgvector {version} has no iterative scans; run ALTER EXTENSION vector UPDATE to 0.8 or newer"
    return ""

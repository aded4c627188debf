"""What every index is made from."""

from dataclasses import dataclass
from pathlib import Path

from services.memory.bank import Bank
from services.memory.config import MemoryConfig
from services.memory.database import Database
from stack_client.errors import InternalError


class IndexBrokenError(InternalError):
    """An index cannot be read or written; it is dropped and made again from the tables."""


@dataclass(frozen=True, kw_only=True)
class IndexContext:
    """The bank of an index, and where it may keep things."""

    database: Database
    """Where the chunks are."""
    bank: Bank
    """Whose index it is; only what never changes is read from it."""
    folder: Path
    """Its own folder, which need not exist."""
    config: MemoryConfig
    """Of the service."""

"""Which index a bank has, and keeping it up to date."""

from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.bank import Bank
from services.memory.chunks import Changes
from services.memory.index import KeywordIndex, VectorIndex


class Catalog:
    """The open indexes of all banks."""

    async def vector(self, bank: Bank) -> VectorIndex:
        """The bank's vector index with everything in it that was committed before the call."""
        raise NotImplementedError

    async def keyword(self, bank: Bank) -> KeywordIndex:
        """The bank's index of words with everything in it that was committed before the call."""
        raise NotImplementedError

    async def write(self, connection: AsyncConnection, bank: Bank, changes: Changes) -> None:
        """Take changes into the bank's transactional indexes, inside the transaction that makes them."""
        raise NotImplementedError

    async def drop(self, bank: Bank) -> None:
        """Erase the bank's indexes; its rows are gone already."""

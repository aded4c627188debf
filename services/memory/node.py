"""Putting the memory service together: database, indexes, banks, RPC edge."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import grpc
import sqlalchemy as sa

from llamastack import v1
from services.memory.banks import BankStore
from services.memory.banks_service import MemoryBanksService
from services.memory.catalog import Catalog
from services.memory.config import MemoryConfig
from services.memory.database import Database
from services.memory.embedder import Embedder
from services.runtime.config import ConfigError
from services.runtime.service import ServiceContext
from stack_client.errors import FailedPreconditionError

SERVICES = ("llamastack.v1.MemoryBanksService",)


class MemoryNode:
    """The memory service of one process."""

    name = "memory"

    def __init__(self, context: ServiceContext) -> None:
        self.readiness = context.readiness
        self._context = context
        self._config = context.section(MemoryConfig)
        try:
            self._database = Database(self._config.database or f"sqlite:///{context.data_dir / 'memory.db'}")
        except sa.exc.ArgumentError as error:
            raise ConfigError(f"{context.config.file}: memory.database: {error}") from error
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the database and its indexes."""
        async with AsyncExitStack() as opening:
            try:
                await opening.enter_async_context(self._database)
            except FailedPreconditionError as error:  # starting again cannot help
                raise ConfigError(error.message) from error
            channel = self._context.open_channel("inference")
            opening.push_async_callback(channel.close, None)
            config = self._config
            self._embedder = Embedder(
                channel,
                self._database,
                batch=config.embed_batch,
                cached=config.cached_embeddings,
                default_model=config.embedding_model,
            )
            catalog = Catalog(self._database, config, self._context.data_dir / "indexes")
            self._catalog = await opening.enter_async_context(catalog)
            self._banks = BankStore(self._database, self._catalog)
            self._resources = opening.pop_all()
        self.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what was opened."""
        await self._resources.aclose()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the services."""
        banks = MemoryBanksService(  # type: ignore[abstract] # its parts are being built
            self._database, self._banks, self._embedder, check_provider=self._catalog.check_provider
        )
        v1.add_MemoryBanksServiceServicer_to_server(banks, server)
        return SERVICES


def build(context: ServiceContext) -> MemoryNode:
    """Make the memory service."""
    return MemoryNode(context)

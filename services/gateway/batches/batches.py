"""Putting the batches together: store, leases, worker, RPC edge."""

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Self

import grpc

from services.gateway.batches.config import BatchesConfig
from services.gateway.batches.execute import Execute, KnowsModel
from services.gateway.batches.leases import Leases
from services.gateway.batches.runner import Runner
from services.gateway.batches.service import BatchesService
from services.gateway.batches.steps import Steps
from services.gateway.batches.store import BatchStore
from services.gateway.batches.transfer import Transfer
from services.gateway.batches.worker import Worker
from services.runtime.background import background, repeat
from services.runtime.database import Database
from services.runtime.owners import new_owner

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 600.0


class Batches:
    """The batches of one process of the gateway. Use `async with`, inside of the database's.

    Args:
        database: Brought up to date by `migrations.upgrade`; may be shared with other tables and other processes.
        files_channel: To the memory service.
        execute: Runs one request as HTTP would.
        config: Bounds.
        draining: Set when the process is about to shut down.
        grace_seconds: How long streams may go on then.
        knows_model: Asked of the models that files name, `RegisteredModels`; None: wrong ones fail with their requests.
    """

    def __init__(
        self,
        database: Database,
        files_channel: grpc.aio.Channel,
        execute: Execute,
        config: BatchesConfig,
        *,
        draining: asyncio.Event,
        grace_seconds: float = 0.0,
        knows_model: KnowsModel | None = None,
    ) -> None:
        self._store = BatchStore(database)
        steps = Steps(database, self._store)
        transfer = Transfer(files_channel, steps)
        worker = Worker(steps, transfer, execute=execute, knows_model=knows_model, config=config)
        leases = Leases(database, owner=new_owner(), seconds=config.lease_seconds)
        self._runner = Runner(self._store, leases, worker, config=config)
        self.service = BatchesService(
            self._store, transfer, config=config, draining=draining, grace_seconds=grace_seconds
        )
        """For the gRPC server, before or after `async with` has begun."""
        self._running = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to work on batches, also on those that other processes left."""
        async with AsyncExitStack() as opening:
            await opening.enter_async_context(background(repeat(self._sweep, wake=asyncio.Event())))
            await opening.enter_async_context(self._runner)
            self._running = opening.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop; others go on with what was in progress."""
        await self._running.aclose()

    async def _sweep(self) -> float:
        await self._store.sweep()
        return SWEEP_SECONDS

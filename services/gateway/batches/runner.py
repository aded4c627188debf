"""Looks for batches, one's own and those that others left, and holds their leases while they are worked on."""

import asyncio
import contextlib
import logging
from typing import Self

from services.gateway.batches.config import BatchesConfig
from services.gateway.batches.leases import Leases
from services.gateway.batches.patience import Stop
from services.gateway.batches.rows import Lease, LeaseLostError
from services.gateway.batches.store import NEW, BatchStore
from services.gateway.batches.worker import Worker
from services.runtime.background import wait
from services.runtime.calls import detached
from stack_client.errors import StackError

logger = logging.getLogger(__name__)

LEAVE_SECONDS = 5.0
"""For recording what has ended when the process goes away."""


class Runner:
    """Works on batches. Use `async with`.

    Args:
        store: Tells of batches and cancels.
        leases: Of this process.
        worker: Does the work.
        config: How many at once, and how often to look.
    """

    def __init__(self, store: BatchStore, leases: Leases, worker: Worker, *, config: BatchesConfig) -> None:
        self._store = store
        self._leases = leases
        self._worker = worker
        self._config = config
        self._group = asyncio.TaskGroup()
        self._active: dict[asyncio.Task[None], Stop] = {}
        self._leaving = False

    async def __aenter__(self) -> Self:
        """Begin to look for batches; those of processes of this machine that are gone are taken at once."""
        await self._group.__aenter__()
        self._group.create_task(self._look(), context=detached(tenant=""))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop; batches in progress are given back, with all that has ended."""
        self._leaving = True
        self._store.signals.tell(NEW)
        await self._group.__aexit__(None, None, None)

    async def _look(self) -> None:
        with self._store.signals.listening(NEW) as changed:
            while not self._leaving:
                if len(self._active) < self._config.batches_at_once and await self._take():
                    continue
                await wait(changed, seconds=self._config.poll_seconds)
                changed.clear()
        for stop in self._active.values():
            stop.leave()
        if self._active:
            await asyncio.wait(self._active, timeout=LEAVE_SECONDS)
        for task in self._active:
            task.cancel()

    async def _take(self) -> bool:
        """Begin a batch; whether there was one."""
        try:
            await self._leases.release_dead()
            lease = await self._leases.claim()
        except StackError as error:  # the database may be away for a while
            logger.warning("batches cannot be looked for", extra={"error": error.message})
            return False
        if lease is None:
            return False
        stop = Stop()
        stop.look(lease.batch)
        task = self._group.create_task(self._work(lease, stop), context=detached(tenant=lease.tenant))
        self._active[task] = stop
        task.add_done_callback(self._ended)
        return True

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._active.pop(task, None)
        self._store.signals.tell(NEW)

    async def _work(self, lease: Lease, stop: Stop) -> None:
        """Work on a batch until it ends, is lost or this process stops."""
        try:
            await self._hold(lease, stop)
        except* LeaseLostError:
            logger.warning("a batch was taken over by another process", extra={"batch": lease.batch_id})

    async def _hold(self, lease: Lease, stop: Stop) -> None:
        """Work on a batch while its lease is kept; this process's end gives it back.

        Raises:
            ExceptionGroup: Of `LeaseLostError`, if another process took it.
        """
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep(lease, stop))
                await self._worker.work(lease, stop)
                keeper.cancel()
        finally:
            if not stop.over:
                with contextlib.suppress(StackError):
                    await self._leases.release(lease)

    async def _keep(self, lease: Lease, stop: Stop) -> None:
        """Hold the lease and see whether the batch is to stop.

        Raises:
            LeaseLostError: If it is lost, or may be.
        """
        loop = asyncio.get_running_loop()
        held_until = loop.time() + self._leases.seconds
        with self._store.cancels.listening(lease.number) as changed:
            while True:
                changed.clear()
                asked = loop.time()
                try:
                    stop.look(await self._leases.extend(lease))
                    held_until = asked + self._leases.seconds
                except LeaseLostError:
                    if stop.over:
                        return
                    raise
                except StackError as error:
                    logger.warning("a lease cannot be extended", extra={"error": error.message})
                    if loop.time() > held_until:
                        raise LeaseLostError from error
                await wait(changed, seconds=min(self._config.poll_seconds, self._leases.seconds / 3))

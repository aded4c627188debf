"""Writes rows in batches: while one transaction runs, whatever comes waits for the next one together."""

import asyncio

from services.runtime.background import repeat
from services.telemetry.rows import Batch
from services.telemetry.store import Store
from stack_client.errors import ResourceExhaustedError, StackError, UnavailableError

IDLE_SECONDS = 3600.0


class Writer:
    """Group commit over a store; `run` must run beside it.

    Args:
        store: Where rows go.
        max_waiting: Rows that may wait.
    """

    def __init__(self, store: Store, *, max_waiting: int) -> None:
        self._store = store
        self._most = max_waiting
        self._waiting: list[tuple[Batch, asyncio.Future[None]]] = []
        self._rows = 0
        self._wake = asyncio.Event()

    async def write(self, batch: Batch) -> None:
        """Store rows; returns when they are committed.

        Raises:
            ResourceExhaustedError: If too many wait.
            StackError: If the database failed.
        """
        if not len(batch):
            return
        if self._rows + len(batch) > self._most and self._rows:
            message = "too many spans wait to be written; come back in a second, or set runtime.telemetry.sample lower"
            raise ResourceExhaustedError(message, retry_after=1.0)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, done))
        self._rows += len(batch)
        self._wake.set()
        await done

    async def run(self) -> None:
        """Write until cancelled."""
        try:
            await repeat(self._round, wake=self._wake)
        finally:
            for _, done in self._waiting:
                if not done.done():
                    done.set_exception(UnavailableError("the telemetry service shuts down; send it again"))

    async def _round(self) -> float:
        if not self._waiting:
            return IDLE_SECONDS
        taken, self._waiting, self._rows = self._waiting, [], 0
        error: StackError | None = None
        try:
            await self._store.write(Batch.joined(batch for batch, _ in taken))
        except StackError as failed:
            error = failed
        except asyncio.CancelledError:
            self._waiting = [*taken, *self._waiting]
            raise
        for _, done in taken:
            if done.done():  # its caller has gone
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
        return 0.0 if self._waiting else IDLE_SECONDS

"""Many callers write at once; none waits for more than two transactions, and a full queue is refused."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.runtime.database import Database
from services.telemetry.migrations import upgrade
from services.telemetry.rows import Batch
from services.telemetry.store import Store
from services.telemetry.writer import Writer
from stack_client.errors import ResourceExhaustedError, UnavailableError
from tests.telemetry.mesh import event, start, telemetry_mesh


def spans(number: int) -> Batch:
    row: dict[str, Any] = {
        "tenant": "", "trace_id": f"{number:032x}", "span_id": f"{number:016x}", "parent_id": None, "name": "n",
        "start_ns": 1, "end_ns": 2, "status": 1, "attributes": {}, "expires_ns": 2**62,
    }  # fmt: skip
    return Batch(spans=[row])


class Gated(Store):
    """A store whose transactions wait to be let through, and are counted."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.sizes: list[int] = []

    async def write(self, batch: Batch) -> None:
        self.begun.set()
        await self.gate.wait()
        self.sizes.append(len(batch))
        await super().write(batch)


async def test_what_comes_while_a_transaction_runs_is_written_in_the_next_one(home: Path) -> None:
    async with Database(f"sqlite:///{home}/x.db", owner="test", upgrade=upgrade) as database:
        store = Gated(database)
        writer = Writer(store, max_waiting=100)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(writer.run())
            writes = [group.create_task(writer.write(spans(0)))]
            await store.begun.wait()
            writes += [group.create_task(writer.write(spans(number))) for number in range(1, 51)]
            async with asyncio.timeout(10):
                while writer._rows < 50:
                    await asyncio.sleep(0)
                store.gate.set()
                await asyncio.gather(*writes)
            running.cancel()
        assert store.sizes == [1, 50]


async def test_rows_that_find_no_place_are_refused_and_those_in_it_told_of_the_end(home: Path) -> None:
    async with Database(f"sqlite:///{home}/x.db", owner="test", upgrade=upgrade) as database:
        store = Gated(database)
        writer = Writer(store, max_waiting=1)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(writer.run())
            waiting = asyncio.ensure_future(writer.write(spans(0)))
            await store.begun.wait()
            second = asyncio.ensure_future(writer.write(spans(1)))
            async with asyncio.timeout(10):
                while not writer._rows:
                    await asyncio.sleep(0)
            with pytest.raises(ResourceExhaustedError, match="too many spans wait"):
                await writer.write(spans(2))
            running.cancel()
            for one in (waiting, second):
                with pytest.raises(UnavailableError, match="send it again"):
                    await one


async def test_a_caller_that_leaves_does_not_disturb_the_others(home: Path) -> None:
    async with telemetry_mesh(home) as mesh:
        calls = [
            asyncio.ensure_future(mesh.client.telemetry.log_event(event(f"{n:02x}", "ab", structured_log=start("n"))))
            for n in range(1, 41)
        ]
        await asyncio.sleep(0)
        for one in calls[::2]:
            one.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert done[1::2] == [None] * 20
        stored = {trace.trace_id for trace in await mesh.client.telemetry.query_traces()}
        assert stored >= {f"{n:02x}" for n in range(2, 41, 2)}

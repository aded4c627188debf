"""The memory service goes away, comes back, or refuses."""

import tempfile
from pathlib import Path

from llamastack import v1
from services.gateway.batches.store import KEEP_EVENTS
from services.runtime.moments import now
from tests.gateway.batches.world import World, gateway, request, until
from tests.memory.mesh import memory_mesh

MEMORY = "memory.sock"


async def status(world: World, batch_id: str) -> int:
    return (await world.client.batches.get(batch_id)).status


async def test_a_batch_waits_for_the_memory_service_to_come_back(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="stack-") as name:
        folder = Path(name)
        async with gateway(tmp_path, f"unix:{folder}/run/{MEMORY}") as world:
            async with memory_mesh(folder):
                batch = await world.start([request("a"), request("b", do="hang")])
                await until(lambda: world.script.times("b") == 1)
            world.script.release.set()

            async def finalizing() -> bool:
                return await status(world, batch.id) == v1.BATCH_STATUS_FINALIZING

            await until(finalizing)
            # What is being written belongs to a batch that somebody may still want to stop.
            asked = await world.client.batches.cancel(batch.id)
            assert asked.status == v1.BATCH_STATUS_CANCELLING
            async with memory_mesh(folder):
                done = await world.client.batches.wait(batch.id)
                assert done.status == v1.BATCH_STATUS_CANCELLED
                assert len(await world.lines(done.output_file_id)) == 2
            assert world.script.times("a") == 1


async def test_output_that_the_memory_service_refuses_fails_the_batch_and_says_why(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="stack-") as name:
        folder = Path(name)
        async with (
            memory_mesh(folder, max_file_bytes=2000),
            gateway(tmp_path, f"unix:{folder}/run/{MEMORY}") as world,
        ):
            done = await world.run([request(str(n)) for n in range(15)])
            assert done.status == v1.BATCH_STATUS_FAILED
            assert [error.code for error in done.errors.data] == ["output_failed"]
            assert "2000" in done.errors.data[0].message
            assert done.request_counts.completed == 15


async def test_events_of_a_batch_that_ended_long_ago_are_forgotten_but_for_the_last(world: World) -> None:
    done = await world.run([request("a")])
    await world.change(done.id, ended_at=now() - KEEP_EVENTS - 1)
    await world.nodes[-1].batches._store.sweep()
    kept = [event async for event in world.client.batches.watch(done.id, after_sequence=done.last_sequence - 1)]
    assert [event.WhichOneof("event") for event in kept] == ["completed"]

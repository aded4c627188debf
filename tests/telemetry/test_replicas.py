"""Two processes over one PostgreSQL write spans of the same traces at once."""

import asyncio
import tempfile
from pathlib import Path

from tests.telemetry.mesh import end, event, start, telemetry_mesh

CHAIN = 12


async def test_a_trace_that_two_replicas_write_at_once_has_one_root_and_all_spans(postgres_url: str) -> None:
    with tempfile.TemporaryDirectory(prefix="tel-") as one, tempfile.TemporaryDirectory(prefix="tel-") as two:
        async with (
            telemetry_mesh(Path(one), database=postgres_url) as first,
            telemetry_mesh(Path(two), database=postgres_url) as second,
        ):
            for trace in range(10):
                events = []
                for place in range(CHAIN):
                    parent = None if place == 0 else f"a{place - 1:02x}"
                    events.append(
                        event(f"{trace:04x}", f"a{place:02x}", at=1e9 + place, structured_log=start("n", parent))
                    )
                    events.append(event(f"{trace:04x}", f"a{place:02x}", at=2e9 + place, structured_log=end()))
                meshes = (first, second)
                await asyncio.gather(
                    *(meshes[i % 2].client.telemetry.log_event(one) for i, one in enumerate(reversed(events)))
                )
                found = await second.client.telemetry.trace(f"{trace:04x}")
                assert found.root_span_id == "a00"
                assert (found.start_time.seconds, found.end_time.seconds) == (10**9, 2 * 10**9 + CHAIN - 1)

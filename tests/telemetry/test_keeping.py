"""What is kept, for how long, and how much."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from llamastack import v1
from services.runtime.database import Database
from services.telemetry.migrations import upgrade
from services.telemetry.tables import events, metadata, points, series
from tests.telemetry.mesh import end, event, of, start, telemetry_mesh, until


async def count(home: Path, table: sa.Table) -> int:
    async with Database(f"sqlite:///{home}/data/telemetry/telemetry.db", owner="test", upgrade=upgrade) as database:
        async with database.read() as connection:
            found: int = (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
            return found


async def test_events_go_when_their_time_is_over(home: Path) -> None:
    async with telemetry_mesh(home, sweep_seconds=0.05) as mesh:
        client = mesh.client.telemetry
        short: list[dict[str, Any]] = [
            {"structured_log": start("short")},
            {"metric": v1.MetricEvent(metric="m", value=1)},
            {"unstructured_log": v1.UnstructuredLog(message="hello")},
        ]
        for kind in short:
            await client.log_event(event("ab", "cd", **kind), ttl_seconds=1)
        await client.log_event(event("ef", "ab", structured_log=start("long")))

        async def alone() -> bool:
            return [one.name for one in await client.spans()] == ["long"]

        await until(alone)
        assert [one.trace_id for one in await client.query_traces()] == ["ef"]
        for table in (events, points, series):

            async def empty(table: sa.Table = table) -> bool:
                return await count(home, table) == 0

            await until(empty)


async def test_the_oldest_spans_go_when_there_are_too_many(home: Path) -> None:
    async with telemetry_mesh(home, sweep_seconds=0.05, max_spans=3) as mesh:
        client = mesh.client.telemetry
        for number in range(6):
            await client.log_event(event("ab", f"0{number}", at=1e9 + number, structured_log=start(str(number))))

        async def few() -> bool:
            return sorted(one.name for one in await client.spans()) == ["3", "4", "5"]

        await until(few)
        assert (await client.trace("ab")).root_span_id == "03"


async def test_a_trace_goes_for_a_tenant_with_its_last_span_there(home: Path) -> None:
    async with telemetry_mesh(home, sweep_seconds=0.05, max_spans=2) as mesh:
        for number, tenant in enumerate(("blue", "red", "red")):
            one = event("ab", f"0{number}", at=1e9 + number, structured_log=start(str(number)))
            await mesh.stub.LogEvent(v1.LogEventRequest(event=one), metadata=of(tenant))

        async def seen(tenant: str) -> int:
            return len((await mesh.stub.QueryTraces(v1.QueryTracesRequest(), metadata=of(tenant))).data)

        async def gone() -> bool:
            return await seen("blue") == 0

        await until(gone)
        assert await seen("red") == await seen("") == 1


async def test_spans_outlive_the_service(home: Path) -> None:
    async with telemetry_mesh(home) as mesh:
        await mesh.client.telemetry.log_event(event("ab", "cd", structured_log=start("one")))
    async with telemetry_mesh(home) as mesh:
        await mesh.client.telemetry.log_event(event("ab", "cd", structured_log=end()))
        (trace,) = await mesh.client.telemetry.query_traces()
        assert trace.HasField("end_time")


async def test_spans_of_the_last_second_are_kept_when_a_process_ends(home: Path) -> None:
    async with telemetry_mesh(home, "inference") as mesh:
        await mesh.client.inference.chat("scripted", "say one")
    async with telemetry_mesh(home) as mesh:
        (trace,) = await mesh.client.telemetry.query_traces()
        root = await mesh.client.telemetry.span(trace.trace_id, trace.root_span_id)
        assert root.name == "llamastack.v1.InferenceService/ChatCompletion"


async def test_the_migrations_make_the_tables_that_the_code_uses(home: Path) -> None:
    async with Database(f"sqlite:///{home}/x.db", owner="test", upgrade=upgrade) as database:
        async with database.read() as connection:

            def shape(sync: sa.Connection) -> dict[str, tuple[set[str], set[str]]]:
                look = sa.inspect(sync)
                return {
                    name: (
                        {column["name"] for column in look.get_columns(name)},
                        {str(index["name"]) for index in look.get_indexes(name)},
                    )
                    for name in look.get_table_names()
                }

            found = await connection.run_sync(shape)
    for table in metadata.sorted_tables:
        columns, indexes = found[table.name]
        assert columns == {column.name for column in table.c}
        assert indexes >= {str(index.name) for index in table.indexes}

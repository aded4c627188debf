"""Two processes over one PostgreSQL: one execution per key, cancels that reach the other one, the dead found out."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from llamastack import v1
from services.tools.tables import invocations
from stack_client.content import text_of
from stack_client.errors import InvalidArgumentError
from tests.tools.mesh import SHOP, ToolsMesh, tools_mesh

WRITE, READ = f"{SHOP}/write", f"{SHOP}/read"
WAIT = '{"do": "wait", "text": "waited"}'
Pair = tuple[ToolsMesh, ToolsMesh]


@pytest.fixture
async def pair(postgres_url: str) -> AsyncIterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="stack-") as one, tempfile.TemporaryDirectory(prefix="stack-") as two:
        async with (
            tools_mesh(Path(one), database=postgres_url, lease_seconds=2) as first,
            tools_mesh(Path(two), database=postgres_url, lease_seconds=2) as second,
        ):
            await first.register()
            yield first, second


async def test_a_call_in_another_process_is_joined(pair: Pair) -> None:
    first, second = pair
    running = first.start(WRITE, kwargs_json=WAIT, idempotency_key="k1")
    await first.shop.begun.acquire()
    joined = second.start(WRITE, kwargs_json=WAIT, idempotency_key="k1")
    with pytest.raises(InvalidArgumentError):
        await second.invoke(WRITE, kwargs_json='{"do": "say"}', idempotency_key="k1")
    first.shop.gate.set()
    assert text_of((await running).result.content) == "waited"
    assert (await joined).result == (await running).result
    assert not second.shop.ran


async def test_many_calls_in_both_processes_run_once(pair: Pair) -> None:
    said = json.dumps({"do": "say", "text": "x"})
    results = await asyncio.gather(
        *(mesh.invoke(WRITE, kwargs_json=said, idempotency_key="k1") for mesh in pair for _ in range(5))
    )
    assert all(result == results[0] for result in results)
    assert len(pair[0].shop.ran) + len(pair[1].shop.ran) == 1
    for mesh in pair:
        assert await mesh.node.audit.verify() == ""


async def test_a_call_in_another_process_is_cancelled(pair: Pair) -> None:
    first, second = pair
    running = first.start(WRITE, kwargs_json=WAIT, idempotency_key="k1")
    await first.shop.begun.acquire()
    await second.runtime.CancelInvocation(v1.CancelInvocationRequest(idempotency_key="k1"))
    assert (await running).result.error_code == 499
    assert (await second.get("k1")).status == v1.INVOCATION_STATUS_CANCELLED


@pytest.mark.parametrize(("tool", "status"), [(WRITE, "LOST"), (READ, "COMPLETED")])
async def test_calls_of_a_dead_process_are_lost_or_run_again(pair: Pair, tool: str, status: str) -> None:
    first, second = pair
    running = first.start(tool, kwargs_json=WAIT, idempotency_key="k1")
    await first.shop.begun.acquire()
    async with first.node._database.write() as connection:  # as if another process had it, of which nobody hears
        await connection.execute(sa.update(invocations).values(owner="tools-dead"))
    second.shop.gate.set()
    joined = await second.invoke(tool, kwargs_json=WAIT, idempotency_key="k1")
    found = await second.ended("k1")
    if status == "LOST":
        assert joined.error_code == 520
        assert found.status == v1.INVOCATION_STATUS_LOST
        assert not second.shop.ran
    else:
        again = await second.invoke(tool, kwargs_json=WAIT, idempotency_key="k1")
        assert text_of(again.content) == "waited"
        assert (await second.get("k1")).status == v1.INVOCATION_STATUS_COMPLETED
    running.cancel()

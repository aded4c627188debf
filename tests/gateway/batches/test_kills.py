"""The process is gone between any two steps: no finished line is lost, none that was recorded runs again."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.gateway.batches import Batches, BatchesConfig, upgrade
from services.gateway.batches.tables import lines
from services.runtime.calls import detached
from services.runtime.config import RuntimeConfig
from services.runtime.database import Database
from services.runtime.listen import open_channel
from services.runtime.outgoing import client_interceptors
from services.runtime.service import ServiceContext
from stack_client import StackClient
from stack_client.errors import StackError
from tests.gateway.batches.world import ENDED, Node, Script, World, gateway, knows_model, open_database, until
from tests.gateway.batches.world import request as line

LINES = [line(name) for name in ("a", "b", "c", "d")] + [line("wrong", do="refuse")]


class DeadError(Exception):
    """The process is gone."""


class Mortal(Database):
    """A database whose process dies at one of its transactions: before it commits, or right after."""

    def __init__(self, url: str, *, at: int, commits: bool) -> None:
        super().__init__(url, owner="gateway", upgrade=upgrade)
        self.left = at
        self.commits = commits
        self.dead = asyncio.Event()
        self.born = False

    def alive(self) -> None:
        if self.dead.is_set():
            raise DeadError

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        self.alive()
        async with super().write() as connection:
            yield connection
            self.alive()
            self.left -= self.born
            last = self.born and not self.left  # PostgreSQL has several transactions at once
            if last and not self.commits:
                self.dead.set()
                raise DeadError
        if last:
            self.dead.set()
            raise DeadError

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        self.alive()
        async with super().read() as connection:
            yield connection


async def live(database: Mortal, memory: str, script: Script, batch_id: str) -> bool:
    """Work on batches until one has ended or death comes; whether it has ended."""
    channel = open_channel(memory, config=RuntimeConfig(), interceptors=client_interceptors())
    config = BatchesConfig(poll_seconds=0.05, retry_seconds=0.01, lease_seconds=0.3, concurrency=2)
    batches = Batches(database, channel, script, config, draining=asyncio.Event(), knows_model=knows_model)

    async def ended() -> bool:
        return bool((await batches.service._store.get(batch_id, tenant=""))["status"] in ENDED)

    try:
        async with database, asyncio.timeout(20):
            database.born = True
            async with batches:
                await until(ended)
    except* DeadError:
        pass
    finally:
        await channel.close(None)
    return not database.dead.is_set()


async def recorded(database: Database) -> set[str]:
    async with database as opened, opened.read() as connection:
        query = sa.select(lines.c.custom_id).where(lines.c.status_code.is_not(None))
        return set((await connection.execute(query)).scalars())


async def files_of(world: World, batch_id: str) -> list[v1.File]:
    return [one for one in await world.client.files.list(purpose="batch_output") if one.filename.startswith(batch_id)]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shared.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.mark.parametrize("commits", [False, True])
async def test_killed_at_any_transaction_a_batch_goes_on_and_ends_as_if_nothing_had_been(
    tmp_path: Path, memory: str, url: str, commits: bool
) -> None:
    at, dies = 0, True
    async with gateway(tmp_path, memory, database=open_database(url), batches_at_once=0) as world:
        while dies:
            at += 1
            assert at < 40, "it never ends without dying"
            script = Script()
            batch = await world.start(LINES)
            first = Mortal(url, at=at, commits=commits)
            dies = not await asyncio.create_task(live(first, memory, script, batch.id), context=detached(tenant=""))
            if dies:
                kept = await recorded(open_database(url))
                calls = len(script.calls)
                second = Mortal(url, at=-1, commits=commits)
                assert await asyncio.create_task(live(second, memory, script, batch.id), context=detached(tenant=""))
                again = {text for text, _ in script.calls[calls:]}
                assert not again & kept, f"killed at transaction {at}"
            done = await world.client.batches.get(batch.id)
            assert done.status == v1.BATCH_STATUS_COMPLETED
            assert (done.request_counts.completed, done.request_counts.failed) == (4, 1)
            assert done.usage.total_tokens == 20, "a lost try is not counted"
            output = await world.lines(done.output_file_id)
            assert [one["custom_id"] for one in output] == ["a", "b", "c", "d"]
            assert [one["custom_id"] for one in await world.lines(done.error_file_id)] == ["wrong"]
            assert len(await files_of(world, batch.id)) == 2, "each file was written once"
            assert all(len(ids) == 1 for ids in script.request_ids.values())
            events = [event async for event in world.client.batches.watch(batch.id)]
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert at > 8, "there are at least so many steps"


async def test_a_runner_that_lost_its_lease_changes_nothing_any_more(tmp_path: Path, memory: str) -> None:
    async with gateway(tmp_path, memory, poll_seconds=60.0, lease_seconds=180.0) as world:
        batch = await world.start([line("a", do="hang"), line("b")])

        async def b_done() -> bool:
            return (await world.client.batches.get(batch.id)).request_counts.completed == 1

        await until(b_done)
        # Another process takes it over.
        await world.change(batch.id, fence=99, owner="elsewhere", leased_until=9e9)
        world.script.release.set()
        await until(lambda: not world.runner_is_busy)
        found = await world.client.batches.get(batch.id)
        assert found.status == v1.BATCH_STATUS_IN_PROGRESS
        assert found.request_counts.completed == 1


async def test_a_gateway_that_stops_gives_its_batches_back(tmp_path: Path, memory: str) -> None:
    database = f"sqlite:///{tmp_path}/shared.db"
    script = Script()
    async with gateway(tmp_path, memory, database=open_database(database), script=script, lease_seconds=600.0) as world:
        batch = await world.start([line("a"), line("b", do="hang")])
        await until(lambda: script.times("b") == 1)
    assert script.cancelled == 1
    script.release.set()
    async with gateway(tmp_path, memory, database=open_database(database), script=script) as world:
        done = await world.client.batches.wait(batch.id)
    assert done.request_counts.completed == 2
    assert script.times("a") == 1


async def test_of_two_gateways_on_one_database_each_batch_is_run_by_one(tmp_path: Path, memory: str, url: str) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    shared: dict[str, Any] = {"batches_at_once": 1, "lease_seconds": 2.0}
    async with (
        gateway(tmp_path / "a", memory, database=open_database(url), **shared) as first,
        gateway(tmp_path / "b", memory, database=open_database(url), **shared) as second,
    ):
        batches = []
        for number in range(6):
            world = (first, second)[number % 2]
            batches.append(await world.start([line(f"{number}/{n}") for n in range(10)], idempotency_key=str(number)))
        keyed = await second.upload([line("a")])
        worlds = [first, second] * 4
        same = await asyncio.gather(*[one.client.batches.create(keyed, idempotency_key="same") for one in worlds])
        assert len({one.id for one in same}) == 1
        await first.client.batches.wait(same[0].id)
        for batch in batches:
            done = await second.client.batches.wait(batch.id)
            assert done.request_counts.completed == 10
        calls = [text for text, _ in first.script.calls + second.script.calls]
        assert sorted(calls) == sorted({*calls})
        assert len(calls) == 61
        stuck = await first.start([line("stuck", do="hang")])
        await until(lambda: bool(first.script.running + second.script.running))
        other = second if first.script.running else first
        await other.client.batches.cancel(stuck.id)
        done = await other.client.batches.wait(stuck.id)
        assert done.status == v1.BATCH_STATUS_CANCELLED


class Process:
    """A gateway as a process, in one life after the other."""

    def __init__(self, home: Path, memory: str) -> None:
        self.home = home
        self.calls = home / "calls"
        self.addresses = {"gateway": f"unix:{home}/gateway.sock", "memory": memory}
        runtime = {"tcp": False, "socket_dir": str(home), "drain_notice_seconds": 0}
        settings = {"poll_seconds": 0.05, "retry_seconds": 0.01, "concurrency": 2}
        config = {"addresses": self.addresses, "runtime": runtime, "gateway": settings}
        (home / "stack.yaml").write_text(json.dumps(config))
        self.running: asyncio.subprocess.Process

    async def start(self) -> None:
        code = "import sys; from pathlib import Path; from services.runtime.process import run; "
        code += "home = Path(sys.argv[1]); "
        code += "sys.exit(run(['gateway=tests.gateway.batches.test_kills:build'], "
        code += "config_path=home / 'stack.yaml', home=home))"
        with (self.home / "log").open("ab") as log:
            self.running = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, str(self.home), stdout=log, stderr=log
            )

    async def kill(self) -> None:
        if self.running.returncode is None:
            self.running.send_signal(signal.SIGKILL)
        await self.running.wait()

    def ran(self) -> list[str]:
        return self.calls.read_text().split("\n")[:-1] if self.calls.exists() else []


def build(context: ServiceContext) -> Node:
    """The gateway of `Process`."""
    home = context.data_dir.parent.parent
    return Node(context, script=Script(file=home / "calls"), database=open_database(f"sqlite:///{home}/gateway.db"))


async def test_a_batch_survives_kill_9_of_its_process(tmp_path: Path, memory: str) -> None:
    process = Process(tmp_path, memory)
    async with StackClient(process.addresses) as client, asyncio.TaskGroup() as group:
        await process.start()
        try:

            async def answers() -> bool:
                assert process.running.returncode is None, (tmp_path / "log").read_text()
                try:
                    await client.batches.list(timeout=5)
                except StackError:
                    return False
                return True

            await until(answers, 30)
            world = World(client, Script(), open_database(f"sqlite:///{tmp_path}/unused.db"))
            requests = [line(f"{n}") for n in range(6)] + [line("stuck", do="hang")]
            requests += [line(f"{n}") for n in range(6, 12)]
            batch = await world.start(requests)
            await until(lambda: len(process.ran()) == 13)

            async def all_but_one() -> bool:
                return (await client.batches.get(batch.id)).request_counts.completed == 12

            await until(all_but_one)
            waiting = group.create_task(client.batches.wait(batch.id))
            await process.kill()
            await process.start()
            await until(answers, 30)
            await until(lambda: process.ran().count("stuck") == 2)
            assert sorted(process.ran()) == sorted([*(str(n) for n in range(12)), "stuck", "stuck"])
            await client.batches.cancel(batch.id)
            done = await waiting
        finally:
            await process.kill()
        assert done.status == v1.BATCH_STATUS_CANCELLED
        assert [one["custom_id"] for one in await world.lines(done.output_file_id)] == [str(n) for n in range(12)]
        assert [one["error"]["code"] for one in await world.lines(done.error_file_id)] == ["batch_cancelled"]

"""Two replicas over one database: turns of one that dies are ended by the other, and either serves any caller."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from stack_client import StackClient
from stack_client.content import text_of
from stack_client.errors import StackError, UnavailableError
from tests.agents.mesh import TOOLS, Mesh, check_dense, kinds, result, running_mesh, until, user
from tests.agents.test_durability import Process, living

GROUP = [v1.AgentToolGroup(name="test")]
LEASE = 1.0
LOAD = 12


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of our own behind a unix socket; skips where there is none, unless REQUIRE_REDIS=1."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("REQUIRE_REDIS") == "1":
            raise FileNotFoundError("redis-server is not installed")
        pytest.skip("needs Redis: apt-get install redis-server")
    socket = tmp_path_factory.mktemp("redis") / "r.sock"
    arguments = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(socket.parent)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as server:
        try:
            yield f"unix://{socket}"
        finally:
            server.terminate()


@pytest.fixture(params=["sqlite", "postgresql", "postgresql+redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    common = {"lease_seconds": LEASE, "watch_seconds": 0.05}
    if request.param == "sqlite":
        return {"database": f"sqlite:///{tmp_path}/shared.db", **common}
    databases: Callable[[], str] = request.getfixturevalue("postgres_databases")
    url = databases().replace("postgresql://", "postgresql+psycopg://", 1)
    if request.param == "postgresql":
        return {"database": url, **common}
    return {"database": url, "redis": request.getfixturevalue("redis"), **common, "watch_seconds": 30.0}


@pytest.fixture
async def tools(tmp_path: Path, inference: str) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path / "tools", "tools", inference=inference) as mesh:
        yield mesh


@asynccontextmanager
async def replicas(tmp_path: Path, inference: str, **settings: Any) -> AsyncIterator[list[Process]]:
    async with AsyncExitStack() as stack:
        found = []
        for name in "ab":
            (tmp_path / name).mkdir()
            found.append(await stack.enter_async_context(living(tmp_path / name, inference, **settings)))
        yield found


async def watched(client: StackClient, turn_id: str) -> list[v1.WatchTurnResponse]:
    async with asyncio.timeout(60):
        return [event async for event in client.agents.watch_turn(turn_id)]


async def test_under_load_one_replica_is_killed_and_every_turn_ends(
    tmp_path: Path, inference: str, tools: Mesh, settings: dict[str, Any]
) -> None:
    address = tools.config.addresses["tools"]
    async with replicas(tmp_path, inference, tools=address, **settings) as (first, second):
        turns = []
        for number in range(LOAD):
            process = (first, second)[number % 2]
            turns.append(await process.ask("chain" if number % 3 else "slow " + "word " * 60, toolgroups=GROUP))
        await first.end(signal.SIGKILL)
        for turn in turns:
            events = await watched(second.client, turn.turn_id)
            check_dense(events)
            assert kinds(events)[-1] == "turn_complete"
        chains = sum(bool(number % 3) for number in range(LOAD))
        assert tools.tools.count("pay") == chains, "each paid once"
        assert tools.tools.count("put") == chains


async def test_a_turn_is_watched_resumed_and_cancelled_at_the_other_replica(
    tmp_path: Path, inference: str, settings: dict[str, Any]
) -> None:
    async with replicas(tmp_path, inference, **settings) as (first, second):
        turn = await first.ask("weather")
        waiting = (await watched(second.client, turn.turn_id))[-1].turn_awaiting_input.turn
        call_id = waiting.output_message.tool_calls[0].call_id
        await second.client.agents.resume_turn(turn.turn_id, [result(call_id, "sunny")])
        events = await first.read(turn.turn_id, after=waiting.last_sequence)
        assert kinds(events)[-1] == "turn_complete"
        stuck = await first.ask("hang")
        cancelled = await second.client.agents.cancel_turn(stuck.turn_id)
        assert cancelled.status == v1.TURN_STATUS_CANCELLED
        assert kinds(await watched(second.client, stuck.turn_id))[-1] == "turn_cancelled"


async def test_a_replica_that_was_frozen_writes_nothing_after_the_other_took_over(
    tmp_path: Path, inference: str, settings: dict[str, Any]
) -> None:
    async with replicas(tmp_path, inference, **settings) as (first, second):
        turn = await first.ask("slow " + "word " * 400)
        await first.read(turn.turn_id, count=4)
        first.running.send_signal(signal.SIGSTOP)
        try:
            events = await watched(second.client, turn.turn_id)
        finally:
            first.running.send_signal(signal.SIGCONT)
        check_dense(events)
        assert kinds(events)[-1] == "turn_complete"
        assert "step_restarted" in kinds(events)
        again = await watched(first.client, turn.turn_id)
        assert again == events, "what it still wanted to say is not said"
        done = await first.client.agents.get_turn(turn.turn_id)
        assert text_of(done.output_message.content).split() == ["word"] * 400


async def test_of_two_replicas_that_are_asked_for_turns_of_a_session_one_is_refused(
    tmp_path: Path, inference: str, settings: dict[str, Any]
) -> None:
    async with replicas(tmp_path, inference, **settings) as (first, second):
        agent_id = await first.client.agents.create(v1.AgentConfig(model="scripted", client_tools=TOOLS))
        session_id = await first.client.agents.create_session(agent_id)

        async def ask(process: Process) -> str:
            try:
                await process.client.agents.create_turn(agent_id, session_id, [user("weather")])
            except UnavailableError:
                raise
            except StackError as error:
                return error.reason
            return ""

        outcomes = await asyncio.gather(*[ask(process) for process in (first, second) * 4])
        assert sorted(outcomes) == ["", *["TURN_IN_PROGRESS"] * 7]


async def test_a_graceful_stop_hands_over_at_once(tmp_path: Path, inference: str, settings: dict[str, Any]) -> None:
    settings["lease_seconds"] = 6.0
    async with replicas(tmp_path, inference, **settings) as (first, second):
        turn = await first.ask("slow " + "word " * 400)
        await first.read(turn.turn_id, count=4)
        assert await first.end(signal.SIGTERM) == 0

        async def over() -> bool:
            found = await second.client.agents.get_turn(turn.turn_id)
            return bool(found.status == v1.TURN_STATUS_COMPLETED)

        await until(over, 30)

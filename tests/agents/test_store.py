"""The store alone: sequences, repeats, order, rollback, and the file."""

import asyncio
import contextlib
import sqlite3
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from llamastack import v1
from services.agents import rows, tables
from services.agents.database import SchemaError, StoreError, to_the_end
from services.agents.store import KEEP_REQUESTS_SECONDS, AgentStore
from services.agents.turn_log import TurnLog
from services.agents.turn_store import TurnDeletedError
from stack_client.errors import InvalidArgumentError, NotFoundError
from tests.agents.mesh import Mesh, check_dense, kinds, running_mesh, text_of, until, until_event


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AgentStore]:
    async with AgentStore(f"sqlite:///{tmp_path}/deep/agents.db") as opened:
        yield opened


async def new_turn(store: AgentStore) -> v1.Turn:
    turn = v1.Turn(turn_id=str(uuid.uuid4()), session_id=str(uuid.uuid4()), status=v1.TURN_STATUS_RUNNING)

    def create(connection: sa.Connection) -> None:
        rows.add_agent(connection, v1.Agent(agent_id="a" + turn.turn_id))
        rows.add_session(connection, v1.Session(session_id=turn.session_id, agent_id="a" + turn.turn_id))
        rows.add_turn(connection, turn, v1.CreateTurnRequest(agent_id="a" + turn.turn_id))

    await store.write(create)
    return turn


async def test_twenty_writers_of_one_log_store_dense_sequences(store: AgentStore) -> None:
    log = TurnLog(store, await new_turn(store), fence=0)

    async def write() -> None:
        for _ in range(10):
            log.add(step_progress=v1.TurnStepProgress(step_id="s"))
            await log.commit()

    await asyncio.gather(*[write() for _ in range(20)])
    stored = await store.events_after(log.turn.turn_id, 0)
    check_dense(stored.events)
    assert stored.last_sequence == 200 == (await store.turn(log.turn.turn_id)).last_sequence
    assert log.committed == stored.events


async def test_a_watcher_never_sees_an_event_before_the_log_shows_it(store: AgentStore) -> None:
    """It would ask for what comes after it, and be told that there is no such event yet."""
    before = TurnLog(store, await new_turn(store), fence=0)
    before.add(turn_start=v1.TurnStart())
    await before.commit()
    log = TurnLog(store, await store.turn(before.turn.turn_id), fence=0)
    just_stored = v1.WatchTurnResponse(sequence=2, step_start=v1.TurnStepStart())
    await store.append(
        None, [just_stored], turn_id=log.turn.turn_id, fence=0
    )  # a commit whose news is still on its way
    assert [event.sequence for event in await log.after(0)] == [1]


async def test_commits_that_are_cancelled_leave_no_hole(store: AgentStore) -> None:
    log = TurnLog(store, await new_turn(store), fence=0)
    for number in range(50):
        log.add(step_progress=v1.TurnStepProgress(step_id="s"))
        task = asyncio.create_task(log.commit())
        for _ in range(number % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await log.commit()
    stored = await store.events_after(log.turn.turn_id, 0)
    check_dense(stored.events)
    assert len(stored.events) == 50
    assert log.committed == stored.events


async def test_a_cancelled_caller_waits_for_the_end_of_what_it_began() -> None:
    done = []

    async def work() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.append(True)

    task = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


async def test_once_does_its_work_once_for_twenty_repeats(store: AgentStore) -> None:
    request = v1.CreateAgentRequest(request_id="r", agent_config=v1.AgentConfig(model="m"))
    made: list[str] = []

    def create(connection: sa.Connection) -> v1.CreateAgentResponse:
        made.append(str(uuid.uuid4()))
        rows.add_agent(connection, v1.Agent(agent_id=made[-1]))
        return v1.CreateAgentResponse(agent_id=made[-1])

    answers = await asyncio.gather(*[store.once(request, v1.CreateAgentResponse, create) for _ in range(20)])
    assert {answer.agent_id for answer in answers} == set(made)
    assert len(made) == 1
    assert len(await store.list_agents(before=0, count=100)) == 1
    other = v1.CreateAgentRequest(request_id="r", agent_config=v1.AgentConfig(model="n"))
    with pytest.raises(InvalidArgumentError):
        await store.once(other, v1.CreateAgentResponse, create)


async def test_a_transaction_that_fails_leaves_nothing_and_its_request_id_free(store: AgentStore) -> None:
    request = v1.CreateAgentRequest(request_id="r")

    def fail(connection: sa.Connection) -> v1.CreateAgentResponse:
        rows.add_agent(connection, v1.Agent(agent_id="half"))
        raise NotFoundError("on purpose")

    with pytest.raises(NotFoundError):
        await store.once(request, v1.CreateAgentResponse, fail)
    with pytest.raises(NotFoundError):
        await store.agent("half")
    await store.once(request, v1.CreateAgentResponse, lambda _: v1.CreateAgentResponse(agent_id="whole"))


async def test_old_requests_are_forgotten_and_young_ones_are_not(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/agents.db"

    def answer(_: sa.Connection) -> v1.CreateAgentResponse:
        return v1.CreateAgentResponse(agent_id=str(uuid.uuid4()))

    old, young = v1.CreateAgentRequest(request_id="old"), v1.CreateAgentRequest(request_id="young")
    async with AgentStore(url) as store:
        first_old = await store.once(old, v1.CreateAgentResponse, answer)
        first_young = await store.once(young, v1.CreateAgentResponse, answer)
        aged = sa.update(tables.requests).where(tables.requests.c.request_id == "old")
        created = tables.requests.c.created - KEEP_REQUESTS_SECONDS - 1
        await store.write(lambda connection: connection.execute(aged.values(created=created)))
    async with AgentStore(url) as store:
        assert await store.once(young, v1.CreateAgentResponse, answer) == first_young
        assert await store.once(old, v1.CreateAgentResponse, answer) != first_old


async def test_lists_keep_the_order_of_creation_also_after_deleting(store: AgentStore) -> None:
    for name in "abc":
        await store.write(lambda connection, name=name: rows.add_agent(connection, v1.Agent(agent_id=name)))  # type: ignore[misc]
    numbers = [number for number, _ in await store.list_agents(before=0, count=10)]
    await store.delete_agent("c")
    await store.write(lambda connection: rows.add_agent(connection, v1.Agent(agent_id="d")))
    listed = await store.list_agents(before=0, count=10)
    assert [agent.agent_id for _, agent in listed] == ["d", "b", "a"]
    assert listed[0][0] > max(numbers)
    assert [agent.agent_id for _, agent in await store.list_agents(before=listed[1][0], count=10)] == ["a"]


async def test_the_file_holds_everything(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/agents.db"
    async with AgentStore(url) as store:
        log = TurnLog(store, await new_turn(store), fence=0)
        log.put_step(v1.Step(step_id="s", turn_id=log.turn.turn_id))
        log.add(step_start=v1.TurnStepStart(step_id="s"))
        await log.commit()
    async with AgentStore(url) as store:
        assert await store.turn(log.turn.turn_id) == log.turn
        assert (await store.step(log.turn.turn_id, "s")).step_id == "s"
        assert [held.turn_id for held in await store.claim_orphans(seconds=5, limit=9)] == [log.turn.turn_id]
        assert (await store.events_after(log.turn.turn_id, 0)).events == log.committed


async def test_nothing_is_added_to_a_deleted_turn(store: AgentStore) -> None:
    log = TurnLog(store, await new_turn(store), fence=0)
    await store.delete_session(log.turn.session_id)
    log.add(step_progress=v1.TurnStepProgress(step_id="s"))
    with pytest.raises(TurnDeletedError):
        await log.commit()
    log.add(turn_start=v1.TurnStart())
    with pytest.raises(TurnDeletedError):
        await log.commit()


async def test_a_step_is_stored_as_it_was_when_it_was_put(store: AgentStore) -> None:
    log = TurnLog(store, await new_turn(store), fence=0)
    step = v1.Step(step_id="s", turn_id=log.turn.turn_id)
    log.put_step(step)
    step.completed_at.GetCurrentTime()
    await log.commit()
    assert not (await store.step(log.turn.turn_id, "s")).HasField("completed_at")


async def test_what_could_not_be_stored_is_stored_by_the_next_commit(store: AgentStore, tmp_path: Path) -> None:
    log = TurnLog(store, await new_turn(store), fence=0)
    fill_disk(tmp_path / "deep" / "agents.db")
    log.add(turn_start=v1.TurnStart())
    with pytest.raises(StoreError, match="database or disk is full"):
        await log.commit()
    assert not log.committed
    log.add(turn_complete=v1.TurnComplete())
    free_disk(tmp_path / "deep" / "agents.db")
    await log.commit()
    check_dense((await store.events_after(log.turn.turn_id, 0)).events)
    assert kinds(log.committed) == ["turn_start", "turn_complete"]


def fill_disk(file: Path) -> None:
    """Make the database refuse events, in the words of a full disk."""
    with sqlite3.connect(file) as connection:
        refuse = "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        connection.execute(f"CREATE TRIGGER full_disk BEFORE INSERT ON event {refuse}")
    connection.close()


def free_disk(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TRIGGER full_disk")
    connection.close()


async def test_a_turn_on_a_full_disk_fails_and_its_watchers_hear_of_it(tmp_path: Path, inference: str) -> None:
    file = tmp_path / "data" / "agents" / "agents.db"
    async with running_mesh(tmp_path, inference=inference) as mesh:
        turn = await mesh.start("slow " + "word " * 300)
        await until_event(mesh, turn.turn_id, "step_progress")
        watching = asyncio.create_task(mesh.watch(turn.turn_id))
        fill_disk(file)
        outcome = (await asyncio.gather(watching, return_exceptions=True))[0]
        assert "disk is full" in str(outcome)
        assert getattr(outcome, "reason", "") == "UNAVAILABLE"
        free_disk(file)
        await until(lambda: turn.turn_id not in mesh.node._runner._running)
        events = await mesh.watch(turn.turn_id)
        check_dense(events)
        failed = events[-1].turn_failed.turn
        assert failed == await mesh.client.agents.get_turn(turn.turn_id)
        assert "disk is full" in failed.error.message
        assert text_of(events)


async def test_a_turn_that_cannot_be_stored_can_be_cancelled_and_left_behind(tmp_path: Path, inference: str) -> None:
    file = tmp_path / "data" / "agents" / "agents.db"
    async with running_mesh(tmp_path, inference=inference) as mesh:
        turn = await mesh.start("hang")
        await until_event(mesh, turn.turn_id, "step_progress")
        fill_disk(file)
        asking = asyncio.create_task(mesh.client.agents.cancel_turn(turn.turn_id))
        await until(lambda: mesh.node._runner._running[turn.turn_id].log.turn.status == v1.TURN_STATUS_CANCELLED)
        free_disk(file)
        assert (await asking).status == v1.TURN_STATUS_CANCELLED
        other = await mesh.start("hang")
        await until_event(mesh, other.turn_id, "step_progress")
        fill_disk(file)
    free_disk(file)
    async with running_mesh(tmp_path, inference=inference) as mesh:  # the shutdown was not held up
        await goes_on(mesh, other.turn_id)


async def goes_on(mesh: Mesh, turn_id: str) -> None:
    await until_event(mesh, turn_id, "step_restarted")
    await mesh.client.agents.cancel_turn(turn_id)


async def test_a_database_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    with contextlib.closing(sqlite3.connect(file)) as old:
        old.execute("CREATE TABLE step (turn_id TEXT, place INTEGER)")
        old.commit()
    with pytest.raises(SchemaError, match="made by another version"):
        async with AgentStore(f"sqlite:///{file}"):
            pass
    with contextlib.closing(sqlite3.connect(file)) as old:
        assert [row[1] for row in old.execute("PRAGMA table_info(step)")] == ["turn_id", "place"]
        assert old.execute("SELECT count(*) FROM sqlite_master WHERE name = 'turn'").fetchone() == (0,)

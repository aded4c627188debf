"""Batches from their file to their files."""

import asyncio
from pathlib import Path

from llamastack import v1
from tests.gateway.batches.world import Script, World, gateway, request, until


async def test_a_batch_runs_every_line_and_writes_its_answers_in_the_order_of_the_file(world: World) -> None:
    batch = await world.start([request(f"line {n}") for n in range(20)], metadata={"who": "ada"})
    assert batch.status == v1.BATCH_STATUS_VALIDATING
    done = await world.client.batches.wait(batch.id)
    assert done.status == v1.BATCH_STATUS_COMPLETED
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (20, 20, 0)
    assert done.model == "small"
    assert done.usage == v1.Usage(prompt_tokens=40, completion_tokens=60, total_tokens=100)
    assert dict(done.metadata) == {"who": "ada"}
    assert not done.HasField("error_file_id")
    assert done.in_progress_at.seconds
    assert done.finalizing_at.seconds
    assert done.completed_at.seconds
    assert done.expires_at.seconds - done.created_at.seconds == 24 * 3600
    lines = await world.lines(done.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"line {n}" for n in range(20)]
    first = lines[0]
    assert set(first) == {"id", "custom_id", "response", "error"}
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    assert first["response"]["body"]["text"] == "LINE 0", "an object, not a string of JSON"
    assert {first["response"]["request_id"]} == world.script.request_ids["line 0"]
    assert len({line["id"] for line in lines}) == 20
    file = await world.client.files.get(done.output_file_id)
    assert file.purpose == v1.FILE_PURPOSE_BATCH_OUTPUT
    assert world.script.most <= 8


async def test_what_fails_is_in_the_error_file_and_what_succeeds_in_the_output(world: World) -> None:
    lines = [request("a"), request("b", do="refuse"), request("c", do="missing"), request("d", do="bug"), request("e")]
    lines.append(request("f", do="odd"))
    done = await world.run(lines)
    assert done.status == v1.BATCH_STATUS_COMPLETED
    assert (done.request_counts.completed, done.request_counts.failed) == (2, 4)
    assert [line["custom_id"] for line in await world.lines(done.output_file_id)] == ["a", "e"]
    errors = await world.lines(done.error_file_id)
    found = [(line["custom_id"], line["response"]["status_code"]) for line in errors]
    assert found == [("b", 400), ("c", 404), ("d", 500), ("f", 500)]
    said = errors[1]["response"]["body"]["error"]
    assert (said["message"], said["type"], said["code"]) == ("no such thing", "not_found_error", "not_found")


async def test_overload_is_tried_again_until_it_passes_under_the_same_request_id(world: World) -> None:
    lines = [request("a", do="overload", times=4), request("b", do="overload", times=2, status=503), request("c")]
    done = await world.run([*lines, request("d", do="busy")])
    assert done.request_counts.completed == 4
    assert [world.script.times(name) for name in "abcd"] == [5, 3, 1, 2]
    assert len(world.script.request_ids["a"]) == 1


async def test_a_request_that_always_times_out_is_given_up(world: World) -> None:
    done = await world.run([request("a", do="overload", times=99, status=504), request("b")])
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 1)
    assert world.script.times("a") == 5
    once = await world.run([request("late once", do="overload", times=1, status=504)])
    assert once.request_counts.completed == 1
    assert world.script.times("late once") == 2


async def test_a_request_that_does_not_end_counts_as_timed_out(tmp_path: Path, memory: str) -> None:
    async with gateway(tmp_path, memory, request_seconds=0.02, timeout_tries=2) as world:
        done = await world.run([request("a", do="hang"), request("b")])
        assert (done.request_counts.completed, done.request_counts.failed) == (1, 1)
        assert (await world.lines(done.error_file_id))[0]["response"]["status_code"] == 504
        assert world.script.cancelled == 2


async def test_cancel_stops_what_runs_and_keeps_what_is_done(world: World) -> None:
    lines = [request(f"fast {n}") for n in range(5)] + [request(f"slow {n}", do="hang") for n in range(20)]
    batch = await world.start(lines)

    async def stuck() -> bool:
        found = await world.client.batches.get(batch.id)
        return found.request_counts.completed == 5 and world.script.running == 8

    await until(stuck)
    asked = await world.client.batches.cancel(batch.id)
    assert asked.status == v1.BATCH_STATUS_CANCELLING
    done = await world.client.batches.wait(batch.id)
    assert done.status == v1.BATCH_STATUS_CANCELLED
    assert done.cancelling_at.seconds
    assert done.cancelled_at.seconds
    assert world.script.cancelled == 8
    assert world.script.running == 0
    assert done.request_counts.completed == 5
    assert [line["custom_id"] for line in await world.lines(done.output_file_id)] == [f"fast {n}" for n in range(5)]
    errors = await world.lines(done.error_file_id)
    assert [line["error"]["code"] for line in errors] == ["batch_cancelled"] * 20
    assert errors[0]["response"] is None


async def test_a_batch_that_nobody_has_begun_is_cancelled_at_once(tmp_path: Path, memory: str) -> None:
    async with gateway(tmp_path, memory, batches_at_once=0) as world:
        batch = await world.start([request("a")])
        assert (await world.client.batches.cancel(batch.id)).status == v1.BATCH_STATUS_CANCELLED
        events = [event async for event in world.client.batches.watch(batch.id)]
        assert [event.WhichOneof("event") for event in events] == ["progress", "cancelled"]


async def test_the_end_of_the_window_writes_out_what_is_done(world: World) -> None:
    batch = await world.start([request("a"), request("b", do="hang"), request("c", do="overload", times=10**9)])

    async def one_done() -> bool:
        return (await world.client.batches.get(batch.id)).request_counts.completed == 1

    await until(one_done)
    await world.change(batch.id, expires_at=1)
    done = await world.client.batches.wait(batch.id)
    assert done.status == v1.BATCH_STATUS_EXPIRED
    assert done.expired_at.seconds
    assert [line["custom_id"] for line in await world.lines(done.output_file_id)] == ["a"]
    errors = {line["custom_id"]: line["error"]["code"] for line in await world.lines(done.error_file_id)}
    assert errors == {"b": "batch_expired", "c": "batch_expired"}


async def test_progress_is_seen_while_a_batch_runs_and_events_have_no_gaps(world: World) -> None:
    batch = await world.start([request(f"line {n}") for n in range(30)] + [request("last", do="hang")])
    seen: list[v1.WatchBatchResponse] = []
    async with asyncio.timeout(30), world.client.batches.watch(batch.id) as stream:
        async for event in stream:
            seen.append(event)
            if event.progress.request_counts.completed == 30:
                world.script.release.set()
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    statuses = [event.progress.status for event in seen[:-1]]
    assert statuses == sorted(statuses)
    assert {v1.BATCH_STATUS_VALIDATING, v1.BATCH_STATUS_IN_PROGRESS, v1.BATCH_STATUS_FINALIZING} == set(statuses)
    assert seen[-1].completed == await world.client.batches.get(batch.id)
    rest = [event async for event in world.client.batches.watch(batch.id, after_sequence=3)]
    assert rest == seen[3:]
    late = [event async for event in world.client.batches.watch(batch.id, after_sequence=len(seen))]
    assert late == seen[-1:], "each stream ends with the terminal event"


async def test_batches_share_the_slots_of_their_gateway(tmp_path: Path, memory: str) -> None:
    script = Script()
    async with gateway(tmp_path, memory, script=script, concurrency=3) as world:
        batches = [await world.start([request(f"{k} {n}") for n in range(10)]) for k in range(3)]
        for batch in batches:
            done = await world.client.batches.wait(batch.id)
            assert done.request_counts.completed == 10
    assert script.most <= 3

"""The audit log: every verdict is in it, and nothing in it can be changed, taken out or cut off unseen."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from services.safety.audit import AuditError, AuditLog, records, segments, verify
from stack_client.cli import main
from stack_client.errors import InternalError, NotFoundError, StackError
from tests.safety.mesh import SafetyMesh, safety_mesh


def log_of(folder: Path, **settings: Any) -> AuditLog:
    log = AuditLog(folder, **{"keep_text": False, "segment_bytes": 1 << 20, **settings})
    log.open()
    return log


async def filled(folder: Path, count: int = 20, **settings: Any) -> list[str]:
    log = log_of(folder, **settings)
    for number in range(count):
        await log.append([{"verdict_id": f"v{number}", "text": f"text {number}"}])
    return [line for file in segments(folder) for line in file.read_text().splitlines()]


async def test_every_verdict_is_logged_without_the_text_and_explained(mesh: SafetyMesh) -> None:
    name = await mesh.shield()
    response = await mesh.client.safety.run_shield(name, "a forbidden secret")
    explained = await mesh.client.safety.explain(response.verdict.verdict_id)
    assert explained.verdict.codes == ["S1"]
    assert explained.rules == [f"surfaces.user.shields.{name}.threshold"]
    assert explained.thresholds["S1"] == 0.5
    [record] = [
        one for one in records(mesh.home / "data/safety/audit") if one["verdict_id"] == response.verdict.verdict_id
    ]
    assert record["policy_version"] == response.verdict.policy_version
    assert (record["shield_id"], record["surface"], len(record["text_hmac"])) == (name, "user", 64)
    assert "secret" not in json.dumps(record)
    with pytest.raises(NotFoundError, match="no verdict"):
        await mesh.client.safety.explain("nobody")


async def test_an_untouched_log_verifies_over_segments_and_restarts(tmp_path: Path) -> None:
    await filled(tmp_path, segment_bytes=1000)
    await filled(tmp_path, segment_bytes=1000)
    assert len(segments(tmp_path)) > 2
    assert (verify(tmp_path).records, verify(tmp_path).problem) == (40, "")


@pytest.mark.parametrize("damage", ["change", "remove", "swap", "insert", "cut", "file"])
async def test_damage_is_found_and_named(tmp_path: Path, damage: str) -> None:
    lines = await filled(tmp_path, segment_bytes=2000)
    files = segments(tmp_path)
    [*first] = files[0].read_text().splitlines(keepends=True)
    match damage:
        case "change":
            first[1] = first[1].replace('"v1"', '"v9"')
        case "remove":
            del first[1]
        case "swap":
            first[0], first[1] = first[1], first[0]
        case "insert":
            first.insert(1, first[1])
        case "cut":
            last = files[-1].read_text().splitlines(keepends=True)
            files[-1].write_text("".join(last[:-1]))
        case "file":
            files[1].unlink()
    if damage not in {"cut", "file"}:
        files[0].write_text("".join(first))
    report = verify(tmp_path)
    assert report.problem
    assert report.records < len(lines)


async def test_a_log_whose_newest_file_is_damaged_is_kept_aside_and_a_new_one_begins(tmp_path: Path) -> None:
    async with safety_mesh(tmp_path) as mesh:
        await mesh.client.safety.run_shield(await mesh.shield("words"), "hello")
    folder = tmp_path / "data/safety/audit"
    file = segments(folder)[0]
    file.write_text(file.read_text().replace("words", "birds"))
    with pytest.raises(AuditError, match="damaged"):
        log_of(folder)
    async with safety_mesh(tmp_path) as mesh:
        await mesh.client.safety.run_shield("words", "hello again")
        assert "DAMAGED" in mesh.node.readiness.details["audit"]
    assert not verify(folder).problem
    [aside] = (tmp_path / "data/safety").glob("audit-damaged-*")
    assert verify(aside).problem


async def test_cancelled_judgements_leave_the_chain_in_order(mesh: SafetyMesh) -> None:
    name = await mesh.shield()

    async def hurried(number: int) -> None:
        with contextlib.suppress(TimeoutError, StackError):
            async with asyncio.timeout(number % 20 / 1000):
                await mesh.client.safety.run_shield(name, f"hello {number}")

    for round_ in range(5):
        await asyncio.gather(*(hurried(100 * round_ + number) for number in range(40)))
    response = await mesh.client.safety.run_shield(name, "the last one")
    assert response.verdict.verdict_id
    assert not verify(mesh.home / "data/safety/audit").problem


async def test_a_log_is_verified_while_it_is_written(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    writing = asyncio.ensure_future(_many(log))
    while not writing.done():
        assert not (await asyncio.to_thread(verify, tmp_path)).problem
    (tmp_path / "head.json").write_text("")
    assert "head.json is damaged" in verify(tmp_path).problem


async def _many(log: AuditLog) -> None:
    for number in range(300):
        await log.append([{"verdict_id": f"{number}-{part}", "text": "x"} for part in range(5)])


def _write_for_ever(folder: Path) -> None:
    async def write() -> None:
        log = log_of(folder)
        number = 0
        while True:
            number += 1
            await log.append([{"verdict_id": f"{os.getpid()}-{number}", "text": "x" * 5000}])

    asyncio.run(write())


async def test_a_writer_killed_in_the_middle_leaves_a_log_in_order(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for round_ in range(2):
        process = context.Process(target=_write_for_ever, args=(tmp_path,))
        process.start()
        written = 0
        while written < 50 * (round_ + 1):
            written = sum(file.read_bytes().count(b"\n") for file in segments(tmp_path))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    with segments(tmp_path)[-1].open("ab") as log:
        log.write(b'{"half": ')
    log_of(tmp_path)
    report = verify(tmp_path)
    assert not report.problem
    assert report.records >= 100


async def test_a_log_that_cannot_be_written_blocks_where_it_is_required(tmp_path: Path) -> None:
    async with safety_mesh(tmp_path, audit={"required": True}) as mesh:
        name = await mesh.shield()
        assert mesh.node._audit is not None
        mesh.node._audit._file = tmp_path / "nowhere" / "000001.jsonl"
        with pytest.raises(InternalError, match="cannot be written to the audit log"):
            await mesh.client.safety.run_shield(name, "hello")


async def test_the_text_is_kept_only_where_asked_for(tmp_path: Path) -> None:
    await filled(tmp_path / "with", keep_text=True)
    assert '"text": "text 7"' in segments(tmp_path / "with")[0].read_text()


async def test_the_command_verifies_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await filled(tmp_path)
    assert main(["audit", "verify", "--log", str(tmp_path)]) == 0
    assert "20 records in order" in capsys.readouterr().out
    assert main(["audit", "export", "--log", str(tmp_path), "-o", str(tmp_path / "out.jsonl")]) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 20
    file = segments(tmp_path)[0]
    file.write_text(file.read_text().replace('"v3"', '"v4"'))
    assert main(["audit", "verify", "--log", str(tmp_path)]) == 1
    assert "line 4: the record was changed" in capsys.readouterr().out
    assert main(["audit", "verify", "--log", str(tmp_path / "nowhere")]) == 1

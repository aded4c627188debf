"""Chaos: the memory service is killed with signal 9 at random moments while clients insert, replace, delete and ingest.

Afterwards everything that was acknowledged must be there, nothing may be there twice, and a document whose call was cut
off is either as before or as sent, never half. `CHAOS_KILLS` says how many kills (default 200).
"""

import asyncio
import os
import random
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.measure import STACK, report, served
from llamastack import v1
from stack_client import StackClient
from stack_client.errors import StackError
from stack_client.memory import document

BANK = "chaos"
DOCUMENTS = 60
WORKERS = 4
PARTS = 5
START_SECONDS = 60.0
KILL_SECONDS = (0.02, 0.7)
WORDS = [{"model_id": "words", "provider_id": "scripted", "model_type": "embedding"}]


@dataclass
class Known:
    """What the clients know of each document: the versions that may be there; 0 = none."""

    states: dict[str, set[int]] = field(default_factory=dict)
    version: int = 0
    acknowledged: int = 0
    jobs: dict[str, dict[str, int]] = field(default_factory=dict)

    def may_be(self, name: str) -> set[int]:
        """Versions of a document that may be there."""
        return self.states.setdefault(name, {0})


def main() -> None:
    """Kill, start again, and look."""
    kills = int(os.environ.get("CHAOS_KILLS", "200"))
    with (
        tempfile.TemporaryDirectory() as folder,
        served("inference", Path(folder) / "i", {"inference": {"models": WORDS}}) as inference,
    ):
        home = Path(folder) / "m"
        home.mkdir()
        asyncio.run(_chaos(home, inference.address, kills))


async def _chaos(home: Path, inference: str, kills: int) -> None:
    known, chance, begun = Known(), random.Random(11), time.monotonic()
    for kill in range(kills):
        async with _memory(home, inference) as (client, process):
            if kill == 0:
                await client.memory.create(BANK)
            workers = [asyncio.create_task(_work(client, known, chance)) for _ in range(WORKERS)]
            await asyncio.sleep(chance.uniform(*KILL_SECONDS))
            process.kill()
            await asyncio.gather(*workers)
    async with _memory(home, inference) as (client, _):
        faults = await _look(client, known)
    report("memory chaos: kills", kills, "", note=f"{time.monotonic() - begun:.0f} s")
    report("memory chaos: writes acknowledged", known.acknowledged, "")
    report("memory chaos: documents lost, doubled or half", len(faults), "", note="; ".join(faults[:3]))


async def _work(client: StackClient, known: Known, chance: random.Random) -> None:
    """Do one thing after another until the service is gone; two workers never touch the same document at once."""
    while True:
        name = f"d{chance.randrange(DOCUMENTS)}"
        if name in _busy:
            await asyncio.sleep(0)
            continue
        _busy.add(name)
        try:
            await _step(client, known, name, chance.choice(("insert", "insert", "delete", "job")))
        except StackError:
            return
        finally:
            _busy.discard(name)


_busy: set[str] = set()


async def _step(client: StackClient, known: Known, name: str, kind: str) -> None:
    known.version += 1
    version = 0 if kind == "delete" else known.version
    before = known.may_be(name)
    known.states[name] = before | {version}  # until it is acknowledged, either may be there
    if kind == "delete":
        await client.memory.delete_documents(BANK, name)
    elif kind == "insert":
        await client.memory.insert(BANK, {"id": name, "text": _text(name, version)})
    else:
        source = v1.IngestionDocuments(documents=[document({"id": name, "text": _text(name, version)})])
        job = await client.memory.start_ingestion(v1.CreateIngestionJobRequest(bank_id=BANK, documents=source))
        known.jobs[job.job_id] = {name: version}
        async with client.memory.watch_job(job.job_id) as events:
            async for _ in events:
                pass
    known.states[name] = {version}
    known.acknowledged += 1


async def _look(client: StackClient, known: Known) -> list[str]:
    """What is not as it must be."""
    for job in await client.memory.jobs(BANK):  # a job goes on by itself after each start
        async with client.memory.watch_job(job.job_id) as events:
            last = [event async for event in events][-1]
        if not last.HasField("completed"):
            return [f"job {job.job_id} ended as {last.WhichOneof('event')}"]
    faults = []
    stored = {one.document_id: one for one in await client.memory.documents(BANK)}
    for name, versions in sorted(known.states.items()):
        there = stored.get(name)
        if there is None:
            if 0 not in versions:
                faults.append(f"{name} is lost")
            continue
        text = await client.memory.document(BANK, name)
        version = next((one for one in versions if one and text == _text(name, one)), None)
        if version is None:
            faults.append(f"{name} is of none of the versions {sorted(versions)}")
        for mode in ("keyword", "vector"):
            hits = await client.memory.search(BANK, f"{name}v", mode=mode, k=1000, where={"document_id": name})
            wanted = there.chunk_count if mode == "vector" else None
            texts = [hit.text for hit in hits]
            if len({hit.chunk_id for hit in hits}) != len(hits) or (wanted is not None and len(hits) != wanted):
                faults.append(f"{name}: {len(hits)} chunks by {mode}, {there.chunk_count} stored")
            if any(one not in text for one in texts):
                faults.append(f"{name}: a chunk by {mode} is of another version")
    return faults


def _text(name: str, version: int) -> str:
    return "\n\n".join(f"Part {part} of {name}v{version}. {'filler ' * 300}" for part in range(PARTS))


@asynccontextmanager
async def _memory(home: Path, inference: str) -> AsyncIterator[tuple[StackClient, "subprocess.Popen[bytes]"]]:
    """The memory service in a process that may be killed."""
    socket = home / "memory.sock"
    config = home / "stack.yaml"
    runtime = {"tcp": False, "socket_dir": str(home), "log_level": "WARNING", "drain_grace_seconds": 0.5}
    settings = {"addresses": {"inference": inference}, "runtime": runtime, "memory": {"lease_seconds": 2}}
    config.write_text(yaml.safe_dump(settings))
    command = [*STACK, "serve", "memory", "--config", str(config), "--home", str(home)]
    process = subprocess.Popen(command, stderr=(home / "log.txt").open("ab"))  # noqa: ASYNC220 (once per kill)
    try:
        async with StackClient({"memory": f"unix:{socket}"}) as client:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    try:
                        await client.memory.list(timeout=2)
                        break
                    except StackError:
                        await asyncio.sleep(0.05)
            yield client, process
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)

"""kill -9 during ingestion: whatever the moment, what is there in the end is what an undisturbed run leaves."""

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.catalog import Catalog
from services.memory.config import MemoryConfig
from services.memory.database import Database
from services.memory.jobs import Item, JobStore
from services.memory.parse.warm import pdf
from services.memory.tables import chunks, documents, job_events, job_items, jobs
from stack_client.content import content

KILLS = int(os.environ.get("INGEST_KILLS", "3"))
DOCUMENTS = 60
JOB = "job"


def sources() -> list[v1.RAGDocument]:
    """Documents of several kinds, some of which fail."""
    result = []
    for number in range(DOCUMENTS):
        text = "\n\n".join(f"# Part {part}\n\nDocument {number} says {'much ' * 40}here." for part in range(6))
        kind, suffix = [("text", ".md"), ("pdf", ".pdf"), ("bad", ".json"), ("text", ".txt")][number % 4]
        body = {"text": text, "bad": '{"a"', "pdf": ""}[kind]
        form = v1.ContentOrUrl(content=content(body))
        if kind == "pdf":
            data = pdf([f"Page {page} of {number}" for page in range(3)]).hex()
            form = v1.ContentOrUrl(url=v1.URL(uri=f"data:application/pdf,{'%'.join(['', *_pairs(data)])}"))
        mime_type = "application/json" if kind == "bad" else None
        result.append(v1.RAGDocument(document_id=f"{number:03d}{suffix}", content=form, mime_type=mime_type))
    return result


def _pairs(text: str) -> list[str]:
    return [text[at : at + 2] for at in range(0, len(text), 2)]


async def prepared(url: str) -> Bank:
    """A database with a bank and a job in it."""
    async with Database(url) as database, Catalog(database, MemoryConfig(), Path(tempfile.mkdtemp())) as catalog:
        params = v1.BankParams(keyword=v1.KeywordBankParams())
        store = JobStore(database, lease_seconds=30)
        async with database.write() as connection:
            bank = await BankStore(database, catalog).create(
                connection, tenant="", identifier="bank", kind="keyword", params=params, provider_id="auto",
                provider_resource_id="bank",
            )  # fmt: skip
            items = [
                Item(place=place, document_id=one.document_id, file_id="", document=one)
                for place, one in enumerate(sources())
            ]
            request = v1.CreateIngestionJobRequest(bank_id="bank", job_id=JOB)
            await store.create(connection, bank, request, items, digest="", expires_at=None)
    return bank


async def content_of(url: str) -> Any:
    """Everything that a run leaves, without times and numbers."""
    async with Database(url) as database, database.read() as connection:
        c = documents.c
        query = sa.select(c.document_id, c.content_hash, c.recipe_hash, c.chunk_count).order_by(c.document_id)
        found = [tuple(row) for row in await connection.execute(query)]
        query = sa.select(chunks.c.chunk_id, chunks.c.place, chunks.c.content_hash).order_by(chunks.c.chunk_id)
        pieces = [tuple(row) for row in await connection.execute(query)]
        events = (await connection.execute(sa.select(job_events.c.event).order_by(job_events.c.sequence))).scalars()
        told = [v1.WatchIngestionJobResponse.FromString(event) for event in events]
        job = (await connection.execute(sa.select(jobs))).mappings().one()
        left = (await connection.execute(sa.select(sa.func.count()).where(sa.not_(job_items.c.done)))).scalar_one()
    assert [event.sequence for event in told] == list(range(1, len(told) + 1)), "events have no gaps"
    handled = sorted(
        (event.document.document_id, event.document.error.message) for event in told if event.HasField("document")
    )
    terminal = [event.WhichOneof("event") for event in told if event.WhichOneof("event") in {"completed", "failed"}]
    assert told[-1].WhichOneof("event") == "completed"
    return {
        "documents": found, "chunks": pieces, "handled": handled, "terminal": terminal, "left": left,
        "done": job["done"], "failed": job["counts"]["failed"],
    }  # fmt: skip


async def work(url: str, *, kill_after: float | None) -> bool:
    """Work on the job in a process of its own; whether it was killed before the job's end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.memory.ingest.worker", url, JOB,
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        async with asyncio.timeout(120):
            assert process.stdout is not None
            assert await process.stdout.readline() == b"working\n"
            if kill_after is None:
                assert await process.wait() == 0
                return False
            try:
                async with asyncio.timeout(kill_after):
                    await process.wait()
            except TimeoutError:
                process.kill()
            return await process.wait() == -signal.SIGKILL
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_killed_at_any_moment_ends_as_if_undisturbed(
    tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    fresh = _databases(tmp_path, backend, request)
    calm = fresh()
    await prepared(calm)
    await work(calm, kill_after=None)
    expected = await content_of(calm)
    assert expected["terminal"] == ["completed"]
    assert (expected["done"], expected["left"]) == (DOCUMENTS, 0)

    chance, killed = random.Random(5), 0
    while killed < KILLS:
        url = fresh()
        await prepared(url)
        while await work(url, kill_after=chance.uniform(0.0, 1.5)):
            killed += 1
        assert json.dumps(await content_of(url)) == json.dumps(expected)


def _databases(folder: Path, backend: str, request: pytest.FixtureRequest) -> Callable[[], str]:
    if backend == "postgresql":
        make: Callable[[], str] = request.getfixturevalue("postgres_databases")
        return make
    names = iter(range(1_000_000))
    return lambda: f"sqlite:///{folder}/{next(names)}.db"

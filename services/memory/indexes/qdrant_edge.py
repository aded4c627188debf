"""Qdrant's engine in this process, for large banks on one machine.

Its HNSW graph is built by `optimize`, which holds Python's lock until it ends, minutes for a large bank. So it is run
in a process of its own on a copy of the folder, which then takes the place of the one in use; until then the chunks
beyond the graph are scanned.
"""

import asyncio
import contextlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import qdrant_edge as qdrant

from services.memory.chunks import Changes, Found, Vector
from services.memory.filters import Filter
from services.memory.index import LocalIndex
from services.memory.indexes.context import IndexBrokenError, IndexContext
from services.memory.indexes.filter_points import EXPIRES, TERMS, compiled, number_keys, payload, resolve

logger = logging.getLogger(__name__)
VERSION = 1
POINTS = 250
"""Points of one update, which holds Python's lock for 10 ms."""
OPTIMISE_FROM = 20_000
"""Chunks beyond the graph from which it is built again."""
OPTIMISE_SHARE = 0.25
"""The same as share of those within it."""
MOST_NUMBER_KEYS = 64
"""Keys whose numbers are indexed; those of others are compared one by one."""
SPARE = 16
"""Points asked for beyond the limit, among which equal scores are put in order."""
MOST_POINTS = 20_000
_OPTIMISE = """
import os, sys, qdrant_edge
os.nice(10)
shard = qdrant_edge.EdgeShard.load(sys.argv[1])
shard.optimize()
shard.flush()
shard.close()
"""


class QdrantEdgeIndex(LocalIndex):
    """Vectors of a bank in a folder."""

    name: ClassVar[str] = "qdrant-edge"

    def __init__(self, context: IndexContext) -> None:
        self._context = context
        self._folder = context.folder
        self._lock = asyncio.Lock()
        self._shard: Any = None
        self._state: dict[str, Any] = {}
        self._optimising: asyncio.Task[None] | None = None
        # What was taken in while the graph is built from a copy.
        self._since: list[Changes] = []

    async def open(self) -> None:
        """See `Index.open`."""
        async with self._lock:
            await asyncio.to_thread(self._open)

    async def close(self) -> None:
        """See `Index.close`."""
        await self._stop()
        async with self._lock:
            await asyncio.to_thread(self._close)

    async def drop(self) -> None:
        """See `Index.drop`."""
        await self._stop()
        async with self._lock:
            await asyncio.to_thread(self._drop)

    async def position(self) -> int:
        """See `LocalIndex.position`."""
        return int(self._state.get("position", 0))

    async def apply(self, changes: Changes) -> None:
        """See `LocalIndex.apply`."""
        async with self._lock:
            if self._shard is None:
                await asyncio.to_thread(self._open)
            await asyncio.to_thread(self._apply, changes)
            if self._optimising is not None:
                self._since.append(changes)
            fresh = self._state["points"] - self._state["optimised"]
            if self._optimising is None and fresh > max(OPTIMISE_FROM, OPTIMISE_SHARE * self._state["optimised"]):
                self._since = []
                self._optimising = asyncio.create_task(self._optimise())

    async def query(self, vector: Vector, *, limit: int, where: Filter | None, now: int) -> list[Found]:
        """See `VectorIndex.query`."""
        resolved = await resolve(self._context.database, self._context.bank, where)
        matching = compiled(_MAKE, where, resolved, now=now)
        async with self._lock:
            return await asyncio.to_thread(self._query, vector.tolist(), matching, limit)

    def _query(self, vector: list[float], matching: Any, limit: int) -> list[Found]:  # noqa: ANN401 (a filter)
        if self._shard is None:
            raise IndexBrokenError("the vector index is being made again; ask once more")
        count, exact = limit + SPARE, False
        while True:
            with self._broken_when_it_fails(), _translated():
                request = qdrant.QueryRequest(
                    limit=count,
                    query=qdrant.Query.Nearest(vector),
                    filter=matching,
                    params=qdrant.SearchParams(exact=exact),
                )
                found = [Found(int(point.id), float(point.score)) for point in self._shard.query(request)]
            if len(found) < min(count, self._state["points"]) and not exact:
                exact = True  # a walk over the graph may end too early
                continue
            found.sort(key=lambda one: (-one.score, one.number))
            # More of the last score may follow, with smaller numbers.
            if len(found) < count or found[-1].score < found[limit - 1].score or count >= MOST_POINTS:
                return found[:limit]
            count *= 4

    def _open(self) -> None:
        mark = f"{VERSION} {self._context.bank.embedding_stamp}"
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._state = json.loads((self._folder / "state.json").read_text())
            with _translated():
                assert self._state["mark"] == mark, "it is of another model"
                self._shard = qdrant.EdgeShard.load(str(self._folder / self._state["shard"]))
                self._state["points"] = self._shard.info().points_count
        except (OSError, ValueError, KeyError, TypeError, IndexBrokenError):
            self._drop()
            self._state = {"mark": mark, "position": 0, "shard": "0", "keys": [], "points": 0, "optimised": 0}
            self._shard = self._created(self._folder / "0")
        for path in self._folder.iterdir():
            if path.is_dir() and path.name != self._state["shard"]:
                shutil.rmtree(path, ignore_errors=True)

    def _created(self, folder: Path) -> Any:  # noqa: ANN401 (no type information)
        folder.mkdir(parents=True)
        size = self._context.bank.embedding_dimension
        with _translated():
            shard = qdrant.EdgeShard.create(
                str(folder),
                qdrant.EdgeConfig(
                    vectors=qdrant.EdgeVectorParams(size, qdrant.Distance.Dot),
                    hnsw_config=qdrant.HnswIndexConfig(16, 128, 10_000),
                ),
            )
            # Before the graph is built: it is linked by them, so that filtered walks find enough.
            shard.update(qdrant.UpdateOperation.create_field_index(TERMS, qdrant.KeywordIndexParams()))
            shard.update(qdrant.UpdateOperation.create_field_index(EXPIRES, qdrant.FloatIndexParams()))
        return shard

    def _close(self) -> None:
        if self._shard is not None:
            with contextlib.suppress(IndexBrokenError), _translated():
                self._shard.flush()
                self._shard.close()
            self._shard = None

    def _drop(self) -> None:
        self._close()
        self._state = {}
        shutil.rmtree(self._folder, ignore_errors=True)

    def _apply(self, changes: Changes) -> None:
        with self._broken_when_it_fails(), _translated():
            self._update(self._shard, changes)
            self._shard.flush()
            self._state["points"] = self._shard.info().points_count
        self._state["position"] = changes.revision
        self._save()

    def _update(self, shard: Any, changes: Changes) -> None:  # noqa: ANN401 (no type information)
        removed = set(changes.removed)
        added = [one for one in changes.added if one.embedding is not None and one.number not in removed]
        for key in dict.fromkeys(key for one in added for key in number_keys(one)):
            if key not in self._state["keys"] and len(self._state["keys"]) < MOST_NUMBER_KEYS:
                shard.update(qdrant.UpdateOperation.create_field_index(key, qdrant.FloatIndexParams()))
                self._state["keys"].append(key)
        for start in range(0, len(changes.removed), POINTS):
            some: list[Any] = list(changes.removed[start : start + POINTS])
            shard.update(qdrant.UpdateOperation.delete_points(some))
        for start in range(0, len(added), POINTS):
            points = [
                qdrant.Point(one.number, one.embedding.tolist(), payload(one))
                for one in added[start : start + POINTS]
                if one.embedding is not None
            ]
            shard.update(qdrant.UpdateOperation.upsert_points(points))

    def _save(self) -> None:
        """Only after the shard is flushed: a position that is too old is caught up with, one too new is not."""
        draft = self._folder / "state.draft"
        draft.write_text(json.dumps(self._state))
        draft.replace(self._folder / "state.json")

    async def _optimise(self) -> None:
        """Build the graph in another process, from a copy, and take the copy."""
        fresh = self._folder / ("1" if self._state["shard"] == "0" else "0")
        try:
            async with self._lock:
                await asyncio.to_thread(self._copy, fresh)
            logger.info("vector index is optimised bank=%s", self._context.bank.number)
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", _OPTIMISE, str(fresh))
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                process.kill()
                await process.wait()
                raise
            async with self._lock:
                await asyncio.to_thread(self._take, fresh, code)
        except (IndexBrokenError, OSError) as error:  # the one in use goes on answering
            logger.warning("vector index cannot be optimised bank=%s: %s", self._context.bank.number, error)
        finally:
            self._optimising, self._since = None, []

    def _copy(self, fresh: Path) -> None:
        shutil.rmtree(fresh, ignore_errors=True)
        with _translated():
            self._shard.flush()
        shutil.copytree(self._folder / self._state["shard"], fresh)

    def _take(self, fresh: Path, code: int) -> None:
        if code:
            raise IndexBrokenError(f"the process that builds it ended with {code}")
        before = self._folder / self._state["shard"]
        with _translated():
            shard = qdrant.EdgeShard.load(str(fresh))
            for changes in self._since:
                self._update(shard, changes)
            shard.flush()
        self._close()
        self._shard = shard
        self._state["shard"], self._state["optimised"] = fresh.name, self._state["points"]
        self._save()
        shutil.rmtree(before, ignore_errors=True)

    async def _stop(self) -> None:
        if self._optimising is not None:
            self._optimising.cancel()
            await asyncio.gather(self._optimising, return_exceptions=True)

    @contextlib.contextmanager
    def _broken_when_it_fails(self) -> Iterator[None]:
        """What failed once is made again from the tables."""
        try:
            yield
        except IndexBrokenError:
            self._shard, self._state = None, {}
            shutil.rmtree(self._folder, ignore_errors=True)
            raise


class _Make:
    """Conditions of the embedded engine."""

    def among(self, terms: list[str]) -> Any:  # noqa: ANN401 (no type information)
        return qdrant.FieldCondition(TERMS, match=qdrant.MatchAny(terms))

    def between(self, key: str, **bounds: float) -> Any:  # noqa: ANN401 (no type information)
        return qdrant.FieldCondition(key, range=qdrant.RangeFloat(**bounds))

    def numbered(self, numbers: list[int]) -> Any:  # noqa: ANN401 (no type information)
        return qdrant.HasIdCondition(set(numbers))

    def every(self, some: list[Any]) -> Any:  # noqa: ANN401 (no type information)
        return qdrant.Filter(must=some)

    def some(self, some: list[Any]) -> Any:  # noqa: ANN401 (no type information)
        return qdrant.Filter(should=some)

    def none(self, some: list[Any]) -> Any:  # noqa: ANN401 (no type information)
        return qdrant.Filter(must_not=some)


_MAKE = _Make()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """What the engine raises, also where it panics, as our own error."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime":  # its panics are no Exceptions
            raise IndexBrokenError(f"qdrant-edge failed: {error}") from error
        raise

"""Vectors in a Qdrant server, which all replicas share; or in the client's local engine, for tests and small folders.

Each bank has a collection. Its position is a point of another collection, so that a replica takes in only what no other
has. The server's key is read from the environment, `QDRANT_API_KEY`.
"""

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException

from services.memory.chunks import Changes, Found, Vector
from services.memory.filters import Filter
from services.memory.index import LocalIndex
from services.memory.indexes.context import IndexBrokenError, IndexContext
from services.memory.indexes.filter_points import EXPIRES, TERMS, compiled, number_keys, payload, resolve
from stack_client.errors import UnavailableError

VERSION = 1
POSITIONS = "llama-stack-memory-positions"
POINTS = 500
"""Points of one update."""
SPARE = 16
"""Points asked for beyond the limit, among which equal scores are put in order."""
MOST_POINTS = 10_000
MOST_NUMBER_KEYS = 64
"""Keys whose numbers are indexed; those of others are compared one by one."""
TIMEOUT = 60
"""Seconds."""


class QdrantIndex(LocalIndex):
    """Vectors of a bank in a collection of its own."""

    name: ClassVar[str] = "qdrant"
    shared: ClassVar[bool] = True

    def __init__(self, context: IndexContext) -> None:
        self._context = context
        bank = context.bank
        # Servers may be shared by several databases, and numbers are not theirs alone.
        key = f"{VERSION} {bank.number} {bank.created_at} {bank.tenant} {bank.identifier} {bank.embedding_stamp}"
        self._key = str(uuid.uuid5(uuid.NAMESPACE_OID, key))
        self._collection = f"llama-stack-memory-{self._key}"
        self._remote = "://" in context.config.qdrant_url
        self._client: AsyncQdrantClient | None = None
        # The local engine is plain Python data.
        self._lock = asyncio.Lock()
        self._numbers: set[str] = set()

    async def open(self) -> None:
        """See `Index.open`."""
        client = await self._connected()
        async with self._translated():
            if not await self._call(client.collection_exists, self._collection):
                await self._create(client)

    async def close(self) -> None:
        """See `Index.close`."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def drop(self) -> None:
        """See `Index.drop`."""
        client = await self._connected()
        async with self._translated():
            await self._call(client.delete_collection, self._collection)
            if await self._call(client.collection_exists, POSITIONS):
                await self._call(client.delete, POSITIONS, [self._key])
        await self.close()

    async def position(self) -> int:
        """See `LocalIndex.position`."""
        client = await self._connected()
        async with self._translated():
            if not await self._call(client.collection_exists, POSITIONS):
                return 0
            found = await self._call(client.retrieve, POSITIONS, [self._key])
        return int(found[0].payload["position"]) if found else 0

    async def apply(self, changes: Changes) -> None:
        """See `LocalIndex.apply`."""
        client = await self._connected()
        removed = set(changes.removed)
        added = [one for one in changes.added if one.embedding is not None and one.number not in removed]
        async with self._translated():
            await self._index_numbers(client, {key for one in added for key in number_keys(one)})
            for start in range(0, len(changes.removed), POINTS):
                some = models.PointIdsList(points=list(changes.removed[start : start + POINTS]))
                await self._call(client.delete, self._collection, some, wait=True)
            for start in range(0, len(added), POINTS):
                points = [
                    models.PointStruct(id=one.number, vector=one.embedding.tolist(), payload=payload(one))
                    for one in added[start : start + POINTS]
                    if one.embedding is not None
                ]
                await self._call(client.upsert, self._collection, points, wait=True)
            here = models.PointStruct(id=self._key, vector=[1.0], payload={"position": changes.revision})
            await self._call(client.upsert, POSITIONS, [here], wait=True)

    async def query(self, vector: Vector, *, limit: int, where: Filter | None, now: int) -> list[Found]:
        """See `VectorIndex.query`."""
        resolved = await resolve(self._context.database, self._context.bank, where)
        matching = compiled(_MAKE, where, resolved, now=now)
        client = await self._connected()
        count, exact = limit + SPARE, not self._remote
        while True:
            async with self._translated():
                answer = await self._call(
                    client.query_points,
                    self._collection,
                    query=vector.tolist(),
                    query_filter=matching,
                    limit=count,
                    with_payload=False,
                    search_params=models.SearchParams(exact=exact) if self._remote else None,
                )
            found = [Found(int(point.id), float(point.score)) for point in answer.points]
            if len(found) < count and not exact:
                exact = True  # a walk over the graph may end too early
                continue
            found.sort(key=lambda one: (-one.score, one.number))
            # More of the last score may follow, with smaller numbers.
            if len(found) < count or found[-1].score < found[limit - 1].score or count >= MOST_POINTS:
                return found[:limit]
            count *= 4

    async def _connected(self) -> AsyncQdrantClient:
        if self._client is None:
            url = self._context.config.qdrant_url
            if self._remote:
                key = os.environ.get("QDRANT_API_KEY")
                self._client = AsyncQdrantClient(url=url, api_key=key, timeout=TIMEOUT, check_compatibility=False)
            elif url == ":memory:":
                self._client = AsyncQdrantClient(":memory:")
            else:  # one folder has one user
                path = os.path.join(url, self._collection)  # noqa: PTH118 (as it was configured)
                self._client = await asyncio.to_thread(AsyncQdrantClient, path=path)
        return self._client

    async def _create(self, client: AsyncQdrantClient) -> None:
        size = self._context.bank.embedding_dimension
        vectors = models.VectorParams(size=size, distance=models.Distance.DOT)
        await self._made(client, self._collection, vectors)
        if not await self._call(client.collection_exists, POSITIONS):
            await self._made(client, POSITIONS, models.VectorParams(size=1, distance=models.Distance.DOT))
        if self._remote:  # the local engine has none
            for field, kind in ((TERMS, models.PayloadSchemaType.KEYWORD), (EXPIRES, models.PayloadSchemaType.FLOAT)):
                await self._call(client.create_payload_index, self._collection, field, field_schema=kind, wait=True)

    async def _made(self, client: AsyncQdrantClient, name: str, vectors: models.VectorParams) -> None:
        """A collection, which another replica may be making at the same time."""
        try:
            await self._call(client.create_collection, name, vectors_config=vectors)
        except (ApiException, ValueError):
            if not await self._call(client.collection_exists, name):
                raise

    async def _index_numbers(self, client: AsyncQdrantClient, keys: set[str]) -> None:
        for key in sorted(keys - self._numbers):
            if self._remote and len(self._numbers) < MOST_NUMBER_KEYS:
                kind = models.PayloadSchemaType.FLOAT
                await self._call(client.create_payload_index, self._collection, key, field_schema=kind, wait=True)
                self._numbers.add(key)

    async def _call(self, method: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 (any of the client's)
        """A call of the client; the local engine computes, so it does not run on the event loop."""
        if self._remote:
            return await method(*arguments, **options)
        async with self._lock:
            return await asyncio.to_thread(lambda: asyncio.run(method(*arguments, **options)))

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except (ApiException, QdrantException, httpx.HTTPError) as error:
            message = f"Qdrant at {self._context.config.qdrant_url} cannot be asked: {error}"
            raise UnavailableError(message) from error
        except (ValueError, KeyError, OSError) as error:
            raise IndexBrokenError(f"Qdrant's collection {self._collection} is damaged: {error}") from error


class _Make:
    """Conditions of the client."""

    def among(self, terms: list[str]) -> Any:  # noqa: ANN401 (one of many types)
        return models.FieldCondition(key=TERMS, match=models.MatchAny(any=terms))

    def between(self, key: str, **bounds: float) -> Any:  # noqa: ANN401 (one of many types)
        return models.FieldCondition(key=key, range=models.Range(**bounds))

    def numbered(self, numbers: list[int]) -> Any:  # noqa: ANN401 (one of many types)
        return models.HasIdCondition(has_id=list(numbers))

    def every(self, some: list[Any]) -> Any:  # noqa: ANN401 (one of many types)
        return models.Filter(must=some)

    def some(self, some: list[Any]) -> Any:  # noqa: ANN401 (one of many types)
        return models.Filter(should=some)

    def none(self, some: list[Any]) -> Any:  # noqa: ANN401 (one of many types)
        return models.Filter(must_not=some)


_MAKE = _Make()

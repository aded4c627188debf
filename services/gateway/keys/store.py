"""The keys: made, listed, revoked, and found for every request."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from llamastack import v1
from services.gateway.keys.cache import Cache
from services.gateway.keys.form import Secret
from services.gateway.keys.tables import keys
from services.gateway.principal import Principal
from services.runtime.background import background, repeat
from services.runtime.database import Database
from services.runtime.moments import now, stamp
from stack_client.errors import InvalidArgumentError, NotFoundError, StackError

logger = logging.getLogger(__name__)

CACHE_SECONDS = 3.0
CACHED = 10_000
USED_SECONDS = 60.0
"""Pause between two writings of when keys were last used."""
_BY_ID = "SELECT digest, message, revoked_at FROM gateway_key WHERE key_id = ?"
_SEEN = (keys.c.number, keys.c.message, keys.c.last_used_at, keys.c.revoked_at)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A key as requests need it."""

    digest: bytes
    """SHA-256 of its secret."""
    principal: Principal
    """Its bearer."""
    expires_at: int | None
    """Microseconds since 1970 from which it is refused; None is never."""
    revoked_at: int | None
    """When it was revoked; None: it was not."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which keys a list shows."""

    tenant: str = ""
    """Only those of this tenant; empty means all."""
    revoked: bool = False
    """Whether revoked ones too."""
    before: int = 0
    """Only those older than the one of this number; 0 means all."""
    count: int = 100
    """So many at most."""


class Keys:
    """Reads and writes keys. Use `async with keys.running()`.

    Args:
        database: Open, with the tables of `migrations.upgrade`.
        cache_seconds: For how long a key that was found is not looked for again: the time that a revocation on another
            replica takes.
        cached: Keys kept in memory.
        clock: Seconds of that cache, never going back.
    """

    def __init__(
        self,
        database: Database,
        *,
        cache_seconds: float = CACHE_SECONDS,
        cached: int = CACHED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._cache: Cache[Found] = Cache(seconds=cache_seconds, most=cached, clock=clock)
        # Ids are drawn by chance, so one that is unknown stays so; kept apart, for anybody can ask for such ones.
        self._unknown: Cache[bool] = Cache(seconds=cache_seconds, most=cached, clock=clock)
        self._used: dict[str, int] = {}
        self._changes = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Keys"]:
        """Note now and then when keys were last used, until the block ends, and once more then."""
        async with background(repeat(self._write_used, wake=asyncio.Event())):
            yield self
        try:
            await self.flush()
        except StackError as error:  # no reason to end in another way than otherwise
            logger.warning("last use of keys was not written", extra={"error": error.message})

    async def create(
        self, key: v1.ApiKey, secret: Secret, *, request: v1.CreateKeyRequest, caller: str = ""
    ) -> v1.ApiKey | None:
        """Store a new key.

        Args:
            key: It, without the times of its use and end.
            secret: Its secret, of which the hash is stored.
            request: What asks for it.
            caller: The tenant for whom the caller comes; request ids are its own.

        Returns:
            None; or the key that the same request made before, and then nothing is stored.

        Raises:
            InvalidArgumentError: REQUEST_ID_REUSED, if another request had this id.
        """
        body = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        # No tenant's name has a slash.
        request_id = f"{caller}/{request.request_id}" if request.request_id else None
        row = {
            "key_id": key.id, "digest": secret.digest, "tenant": key.tenant, "message": key.SerializeToString(),
            "request_id": request_id, "request": body if request_id else None,
        }  # fmt: skip
        async with self._database.write() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            added = insert(keys).values(**row).on_conflict_do_nothing(index_elements=[keys.c.request_id])
            if (await connection.execute(added.returning(keys.c.number))).first():
                return None
            query = sa.select(*_SEEN, keys.c.request).where(keys.c.request_id == request_id)
            before = (await connection.execute(query)).one()
        if before.request != body:
            message = f"request_id {request.request_id!r} was used before with another body; choose a new one"
            raise InvalidArgumentError(message, reason="REQUEST_ID_REUSED", field="request_id")
        return _shown(before)

    async def list(self, window: Window) -> list[tuple[int, v1.ApiKey]]:
        """Keys with their numbers, newest first."""
        query = sa.select(*_SEEN).order_by(keys.c.number.desc()).limit(window.count)
        if window.tenant:
            query = query.where(keys.c.tenant == window.tenant)
        if not window.revoked:
            query = query.where(keys.c.revoked_at.is_(None))
        if window.before:
            query = query.where(keys.c.number < window.before)
        async with self._database.read() as connection:
            return [(row.number, _shown(row)) for row in await connection.execute(query)]

    async def revoke(self, key_id: str, *, tenant: str = "") -> v1.ApiKey:
        """End a key: from now on here, within `cache_seconds` on other replicas.

        Args:
            key_id: The key; one that was revoked before stays as it is.
            tenant: Whose it must be; empty means anybody's.

        Raises:
            NotFoundError: If there is none.
        """
        one = keys.c.key_id == key_id
        if tenant:
            one &= keys.c.tenant == tenant
        async with self._database.write() as connection:
            end = sa.update(keys).where(one, keys.c.revoked_at.is_(None)).values(revoked_at=now())
            await connection.execute(end)
            row = (await connection.execute(sa.select(*_SEEN).where(one))).one_or_none()
        self._changes += 1  # what is being read at this moment may be older
        self._cache.drop(key_id)
        if row is None:
            raise NotFoundError(f"no key {key_id[:64]!r}; `stack keys list` shows them", field="key_id")
        return _shown(row)

    async def exist(self) -> bool:
        """Whether there is a key that was not revoked."""
        return bool(await self.list(Window(count=1)))

    async def find(self, key_id: str) -> Found | None:
        """A key by its id; None when there is none. May be `cache_seconds` old.

        Raises:
            StoreError: If the database failed.
        """
        found = self._cache.get(key_id)
        if found is not None or self._unknown.get(key_id):
            return found
        changes = self._changes
        columns = sa.select(keys.c.digest, keys.c.message, keys.c.revoked_at).where(keys.c.key_id == key_id)
        rows = await self._database.glance(columns, text=_BY_ID, values=(key_id,))
        if not rows:
            self._unknown.put(key_id, True)  # noqa: FBT003 (a value)
            return None
        found = _found(*rows[0])
        if changes == self._changes:
            self._cache.put(key_id, found)
        return found

    def touch(self, key_id: str) -> None:
        """Note that a key is used now; it is written later."""
        self._used[key_id] = now()

    async def flush(self) -> None:
        """Write when keys were last used.

        Raises:
            StoreError: If the database failed; it is tried again the next time.
        """
        used, self._used = self._used, {}
        if not used:
            return
        older = sa.or_(keys.c.last_used_at.is_(None), keys.c.last_used_at < sa.bindparam("at"))
        note = sa.update(keys).where(keys.c.key_id == sa.bindparam("used"), older)
        # In one order, so that two replicas never wait for each other's rows.
        rows = [{"used": key_id, "at": at} for key_id, at in sorted(used.items())]
        try:
            async with self._database.write() as connection:
                await connection.execute(note.values(last_used_at=sa.bindparam("at")), rows)
        except BaseException:
            self._used = used | self._used
            raise

    async def _write_used(self) -> float:
        await self.flush()
        return USED_SECONDS


def _found(digest: bytes, message: bytes, revoked_at: int | None) -> Found:
    key = v1.ApiKey.FromString(bytes(message))
    principal = Principal(
        key_id=key.id,
        tenant=key.tenant,
        scopes=frozenset(key.scopes),
        requests_per_minute=key.requests_per_minute if key.HasField("requests_per_minute") else None,
        tokens_per_minute=key.tokens_per_minute if key.HasField("tokens_per_minute") else None,
    )
    expires_at = key.expires_at.ToMicroseconds() if key.HasField("expires_at") else None
    return Found(digest=bytes(digest), principal=principal, expires_at=expires_at, revoked_at=revoked_at)


def _shown(row: Any) -> v1.ApiKey:  # noqa: ANN401 (a row)
    key = v1.ApiKey.FromString(row.message)
    for name in ("last_used_at", "revoked_at"):
        moment = stamp(getattr(row, name))
        if moment is not None:
            getattr(key, name).CopyFrom(moment)
    return key

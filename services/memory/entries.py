"""Values by key: versions, compare-and-set, ends of life, and the log of changes.

All writers of a bank go one after the other (`next_revision`), so that revisions are committed in their order and who
reads the log after a revision misses nothing. An entry whose life ended counts as gone from that moment, though the
sweeper takes it away later, with a revision of its own.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from google.protobuf.struct_pb2 import Struct, Value
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory import requests
from services.memory.bank import Bank
from services.memory.database import Database, next_revision
from services.memory.tables import banks, entries, entry_changes, entry_logs
from services.runtime.background import Signals
from services.runtime.moments import SECOND, now, stamp
from stack_client.errors import ConflictError, NotFoundError, OutOfRangeError, ResourceExhaustedError

KEPT_REVISIONS = 10_000
"""Of a bank's log."""
KEPT_BYTES = 64 * 1024 * 1024
"""Of the values in a bank's log."""
FORGET_EVERY = 64
"""Revisions from one trimming of the log to the next."""
SCAN_BYTES = GET_BYTES = 3 * 1024 * 1024
"""Of one page, and of one answer of GetEntries; also other clients of gRPC take messages of 4 MiB."""
BATCH = 50
"""Changes read at once."""
SWEPT = 1000
"""Entries that are swept in one transaction."""
SWEEP_SECONDS = 60.0
"""Longest pause between sweeps: other processes write entries too."""

_HEAD = ("key", "version", "revision", "updated_at", "expires_at", "metadata")
_VALUE = ("json", "data")


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """A page of entries."""

    entries: Sequence[v1.Entry]
    """By key in byte order."""
    more: bool
    """Whether others follow."""
    revision: int
    """The bank's, that was read."""


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What happened in a bank after a place in its log."""

    events: Sequence[Mapping[str, Any]]
    """Members of `WatchEntriesResponse.event`, one each, in their order."""
    place: tuple[int, bytes]
    """Where to go on: after this revision and key."""
    closed: bool
    """Whether the bank is gone."""
    more: bool
    """Whether further changes wait."""


class EntryStore:
    """The entries of all key-value banks.

    Args:
        database: Where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.signals = Signals()
        """Tells of a bank's changes, by its number."""
        self.due = asyncio.Event()
        """Set when an entry may end before the next sweep was due."""

    async def get(self, bank: Bank, keys: Sequence[bytes]) -> dict[bytes, v1.Entry]:
        """Those of the entries that exist.

        Raises:
            ResourceExhaustedError: If they are too large for one answer.
        """
        c, moment = entries.c, now()
        where = (c.bank == bank.number) & c.key.in_(keys) & _alive(moment)
        async with self._database.read() as connection:
            size = (await connection.execute(sa.select(sa.func.sum(_size())).where(where))).scalar_one() or 0
            if size > GET_BYTES and len(keys) > 1:  # one is always answered
                message = f"the values are {size} bytes; at most {GET_BYTES} fit into one answer: ask for fewer keys"
                raise ResourceExhaustedError(message, reason="MESSAGE_TOO_LARGE", field="keys")
            rows = (await connection.execute(_select(keys_only=False).where(where))).mappings().all()
        return {row["key"]: entry_of(row) for row in rows}

    async def put(self, bank: Bank, request: v1.PutEntryRequest, *, tenant: str) -> v1.PutEntryResponse:
        """Write a value.

        Raises:
            ConflictError: If the key's version is not `if_version`.
            InvalidArgumentError: If the request's id was used before with another body.
            NotFoundError: If the bank is gone.
        """
        key = request.key.encode()
        async with self._database.write() as connection:
            revision = await next_revision(connection, bank.number)
            moment = now()  # others may have been waited for
            before = await requests.recall(connection, request, tenant=tenant, answer=v1.PutEntryResponse)
            if before is not None:
                return before
            found, version = await _version(connection, bank, key, moment)
            _check_version(request, version)
            row = _row(bank, request, version=version + 1, revision=revision, moment=moment)
            if found:
                c = entries.c
                change = sa.update(entries).where(c.bank == bank.number, c.key == key)
                await connection.execute(change.values(**{name: row[name] for name in (*_HEAD[1:], *_VALUE)}))
            else:
                await connection.execute(sa.insert(entries).values(bank=bank.number, **row))
            size = len(row["json"] or row["data"] or b"")
            change_row = {"bank": bank.number, "kind": "put", "size": size, **row}
            await connection.execute(sa.insert(entry_changes).values(**change_row))
            await _forget(connection, bank.number, revision)
            answer = v1.PutEntryResponse(entry=entry_of(row))
            await requests.remember(connection, request, tenant=tenant, answer=answer, bank=bank.number)
        self._changed(bank.number, expires=row["expires_at"] is not None)
        return answer

    async def delete(self, bank: Bank, key: bytes, *, if_version: int | None) -> tuple[bool, int]:
        """Delete a key; answers whether it was there, and the bank's revision.

        Raises:
            ConflictError: If it is there and its version is not `if_version`.
            NotFoundError: If the bank is gone.
        """
        async with self._database.write() as connection:
            revision = await next_revision(connection, bank.number)
            _found, version = await _version(connection, bank, key, now())
            if not version:  # one whose life ended waits for the sweeper, who tells of it
                return False, revision
            if if_version is not None and if_version != version:
                raise _conflict(key.decode(), version=version, wanted=if_version)
            c = entries.c
            await connection.execute(sa.delete(entries).where(c.bank == bank.number, c.key == key))
            await connection.execute(sa.insert(entry_changes).values(**_gone(bank.number, key, revision, "deleted")))
            await _forget(connection, bank.number, revision)
        self._changed(bank.number)
        return True, revision

    async def scan(self, bank: Bank, *, prefix: bytes, after: bytes, limit: int, keys_only: bool) -> Scanned:
        """A page of the entries whose keys start with a prefix, after a key."""
        c = entries.c
        where = (c.bank == bank.number) & (c.key > after) & starts_with(c.key, prefix) & _alive(now())
        page = sa.select(c.key, _size(keys_only=keys_only)).where(where).order_by(c.key).limit(limit + 1)
        async with self._database.read() as connection:
            sizes = (await connection.execute(page)).all()
            taken = _fitting([size for _key, size in sizes[:limit]])
            rows: Sequence[Any] = ()
            if taken:
                where &= c.key <= sizes[taken - 1][0]
                query = _select(keys_only=keys_only).where(where).order_by(c.key)
                rows = (await connection.execute(query)).mappings().all()
            revision = await _revision(connection, bank.number)
        if revision is None:
            raise NotFoundError(f"no memory bank {bank.identifier!r}; it was deleted meanwhile", field="bank_id")
        return Scanned(entries=[entry_of(row) for row in rows], more=len(sizes) > taken, revision=revision)

    async def changes(self, bank: int, *, prefix: bytes, after: tuple[int, bytes]) -> Changed:
        """What happened after a place in the log.

        Raises:
            OutOfRangeError: If that is no longer kept, or the place lies ahead of the bank.
        """
        c = entry_changes.c
        where = (c.bank == bank) & (c.revision >= after[0]) & (sa.tuple_(c.revision, c.key) > sa.tuple_(*after))
        if prefix:
            where &= starts_with(c.key, prefix)
        query = sa.select(entry_changes).where(where).order_by(c.revision, c.key).limit(BATCH)
        async with self._database.read() as connection:
            revision = await _revision(connection, bank)
            if revision is None:
                return Changed(events=[], place=after, closed=True, more=False)
            await _check_place(connection, bank, after[0], revision)
            rows = (await connection.execute(query)).mappings().all()
        more = len(rows) == BATCH
        # Revisions without changes of this prefix are passed too: the log may forget them.
        place = (rows[-1]["revision"], rows[-1]["key"]) if more else (revision, _LAST_KEY)
        return Changed(events=[_event(row) for row in rows], place=place, closed=False, more=more)

    async def sweep(self) -> float:
        """Take away what has ended; answers the seconds until something ends next."""
        c = entries.c
        async with self._database.read() as connection:
            ended = sa.select(c.bank).where(c.expires_at <= now()).distinct()
            found = (await connection.execute(ended)).scalars().all()
        for bank in found:
            while await self._sweep(bank):
                pass
        async with self._database.read() as connection:
            next_end = (await connection.execute(sa.select(sa.func.min(c.expires_at)))).scalar_one()
        return SWEEP_SECONDS if next_end is None else min(SWEEP_SECONDS, max(0.0, (next_end - now()) / SECOND))

    async def _sweep(self, bank: int) -> bool:
        """Sweep a part of a bank; answers whether more may wait."""
        c = entries.c
        try:
            async with self._database.write() as connection:
                revision = await next_revision(connection, bank)
                query = sa.select(c.key).where(c.bank == bank, c.expires_at <= now()).order_by(c.key).limit(SWEPT)
                keys = (await connection.execute(query)).scalars().all()
                if keys:
                    await connection.execute(sa.delete(entries).where(c.bank == bank, c.key.in_(keys)))
                    gone = [_gone(bank, key, revision, "expired") for key in keys]
                    await connection.execute(sa.insert(entry_changes), gone)
                    await _forget(connection, bank, revision)
        except NotFoundError:  # deleted meanwhile, with its entries
            return False
        self._changed(bank)
        return len(keys) == SWEPT

    def _changed(self, bank: int, *, expires: bool = False) -> None:
        self.signals.tell(bank)
        if expires:
            self.due.set()


_LAST_KEY = b"\xff"
"""Above every key: no UTF-8 begins with this byte."""


async def delete_entries(connection: AsyncConnection, bank: Bank) -> None:
    """Delete everything of a bank that this module keeps."""
    for table in (entries, entry_changes, entry_logs):
        await connection.execute(sa.delete(table).where(table.c.bank == bank.number))


def starts_with(column: sa.ColumnElement[bytes], prefix: bytes) -> sa.ColumnElement[bool]:
    """Whether a column of bytes starts with some, in a form that an index serves."""
    if not prefix:
        return sa.true()
    above = prefix.rstrip(b"\xff")  # UTF-8 has no such byte, but who knows what comes
    below = above[:-1] + bytes([above[-1] + 1]) if above else None
    return (column >= prefix) & (column < below) if below else column >= prefix


def entry_of(row: Mapping[Any, Any]) -> v1.Entry:
    """A row as a message; without its value when only the head was read."""
    entry = v1.Entry(
        key=row["key"].decode(),
        version=row["version"],
        revision=row["revision"],
        updated_at=stamp(row["updated_at"]),
        expires_at=stamp(row["expires_at"]),
        metadata=None if row["metadata"] is None else Struct.FromString(row["metadata"]),
    )
    if row.get("json") is not None:
        entry.json.CopyFrom(Value.FromString(row["json"]))
    elif row.get("data") is not None:
        entry.data = row["data"]
    return entry


def _row(bank: Bank, request: v1.PutEntryRequest, *, version: int, revision: int, moment: int) -> dict[str, Any]:
    life = request.ttl_seconds if request.HasField("ttl_seconds") else bank.params.keyvalue.default_ttl_seconds
    is_json = request.WhichOneof("value") == "json"
    return {
        "key": request.key.encode(),
        "version": version,
        "revision": revision,
        "updated_at": moment,
        "expires_at": moment + life * SECOND if life else None,
        "metadata": request.metadata.SerializeToString(deterministic=True) if request.HasField("metadata") else None,
        "json": request.json.SerializeToString(deterministic=True) if is_json else None,
        "data": None if is_json else request.data,
    }


def _gone(bank: int, key: bytes, revision: int, kind: str) -> dict[str, Any]:
    return {"bank": bank, "key": key, "revision": revision, "kind": kind, "size": 0, "version": 0}


def _event(row: Mapping[Any, Any]) -> Mapping[str, Any]:
    if row["kind"] == "put":
        return {"put": entry_of(row)}
    key, expired = row["key"].decode(), row["kind"] == "expired"
    return {"deleted": v1.EntryDeleted(key=key, revision=row["revision"], expired=expired)}


def _alive(moment: int) -> sa.ColumnElement[bool]:
    return entries.c.expires_at.is_(None) | (entries.c.expires_at > moment)


def _select(*, keys_only: bool) -> "sa.Select[Any]":
    return sa.select(*(entries.c[name] for name in (_HEAD if keys_only else (*_HEAD, *_VALUE))))


def _size(*, keys_only: bool = False) -> sa.ColumnElement[int]:
    names = ("key", "metadata") if keys_only else ("key", "metadata", *_VALUE)
    lengths = [sa.func.coalesce(sa.func.length(entries.c[name]), 0) for name in names]
    return sum(lengths[1:], start=lengths[0])


def _fitting(sizes: Sequence[int]) -> int:
    """How many entries fit into a page; the first one always does."""
    total = 0
    for index, size in enumerate(sizes):
        total += size
        if index and total > SCAN_BYTES:
            return index
    return len(sizes)


async def _revision(connection: AsyncConnection, bank: int) -> int | None:
    return (await connection.execute(sa.select(banks.c.revision).where(banks.c.number == bank))).scalar_one_or_none()


async def _version(connection: AsyncConnection, bank: Bank, key: bytes, moment: int) -> tuple[bool, int]:
    """Whether there is a row, and the version that it counts as: 0 when its life ended."""
    c = entries.c
    query = sa.select(c.version, c.expires_at).where(c.bank == bank.number, c.key == key)
    row = (await connection.execute(query)).first()
    if row is None:
        return False, 0
    return True, 0 if row.expires_at is not None and row.expires_at <= moment else row.version


def _check_version(request: v1.PutEntryRequest, version: int) -> None:
    if request.HasField("if_version") and request.if_version != version:
        raise _conflict(request.key, version=version, wanted=request.if_version)


def _conflict(key: str, *, version: int, wanted: int) -> ConflictError:
    have = f"has version {version}" if version else "does not exist"
    message = f"key {key[:80]!r} {have}, not version {wanted}; read it again and decide anew"
    return ConflictError(message, metadata={"version": str(version)}, field="if_version")


async def _check_place(connection: AsyncConnection, bank: int, place: int, revision: int) -> None:
    query = sa.select(entry_logs.c.forgotten).where(entry_logs.c.bank == bank)
    forgotten = (await connection.execute(query)).scalar_one_or_none() or 0
    if place < forgotten:
        message = f"changes up to revision {forgotten} are no longer kept, not after {place}; scan the entries again"
    elif place > revision:
        message = f"the bank stands at revision {revision}, before {place}: it was made anew; scan the entries again"
    else:
        return
    metadata = {"oldest_sequence": str(forgotten + 1)}
    raise OutOfRangeError(message, metadata=metadata, field="resume_after_revision")


async def _forget(connection: AsyncConnection, bank: int, revision: int) -> None:
    """Trim the log of a bank now and then."""
    if revision % FORGET_EVERY:
        return
    c = entry_changes.c
    upto = revision - KEPT_REVISIONS
    total = (await connection.execute(sa.select(sa.func.sum(c.size)).where(c.bank == bank))).scalar_one() or 0
    if total > KEPT_BYTES:
        query = sa.select(c.revision, c.size).where(c.bank == bank, c.size > 0).order_by(c.revision.desc())
        kept = 0
        for row in await connection.execute(query):
            kept += row.size
            if kept > KEPT_BYTES:
                upto = max(upto, row.revision)
                break
    if upto <= 0:
        return
    await connection.execute(sa.delete(entry_changes).where(c.bank == bank, c.revision <= upto))
    change = sa.update(entry_logs).where(entry_logs.c.bank == bank).values(forgotten=upto)
    if not (await connection.execute(change)).rowcount:
        await connection.execute(sa.insert(entry_logs).values(bank=bank, forgotten=upto))

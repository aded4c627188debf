"""The record of calls: who called which tool, with what effect and end; each record holds the hash of the one before.

Arguments are in it as a hash with a key of this database (a plain hash of a short argument could be guessed); values
and secrets are not.
"""

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database
from services.runtime.moments import now
from services.tools.tables import audit, settings

FIRST = "0" * 64
_KEY = "audit_key"
_KEY_BYTES = 32
_LOCK = 0x746F6F6C61  # of the chain among PostgreSQL's advisory locks


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is recorded of a call."""

    tool_name: str
    """`group/tool`, or the name that was asked for when there is none."""
    outcome: str
    """completed, failed, invalid, timeout, cancelled, lost, refused, unavailable, overloaded, replayed, asked."""
    tenant: str = ""
    """For whom."""
    request_id: str = ""
    """Of the RPC."""
    session_id: str = ""
    """The agent's session."""
    call_id: str = ""
    """The model's id of the call."""
    key: str = ""
    """Idempotency key."""
    digest: str = ""
    """Of tool and arguments; recorded as a hash with the key."""
    effect: str = ""
    """read, idempotent_write or write."""
    attempt: int = 0
    """Which run under the key; 0 when it did not run."""
    approved_by: str = ""
    """Who allowed it."""
    error_code: int = 0
    """Of the result."""
    milliseconds: int = 0
    """That the tool ran."""


class Audit:
    """Writes and checks the record.

    Args:
        database: Where it is.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._key = b""

    async def open(self) -> None:
        """Read the key, which is made once."""
        async with self._database.write() as connection:
            wanted = sa.select(settings.c.value).where(settings.c.name == _KEY)
            if connection.dialect.name == "postgresql":
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            found = (await connection.execute(wanted)).scalar_one_or_none()
            if found is None:
                found = secrets.token_bytes(_KEY_BYTES)
                await connection.execute(sa.insert(settings).values(name=_KEY, value=found))
            self._key = found

    async def note(self, entry: Entry) -> None:
        """Record a call in a transaction of its own."""
        async with self._database.write() as connection:
            await self.add(connection, entry)

    async def add(self, connection: AsyncConnection, entry: Entry) -> None:
        """Record a call in the transaction that made it true."""
        if connection.dialect.name == "postgresql":  # one chain, so one writer; SQLite has one anyway
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        last = sa.select(audit.c.hash).order_by(audit.c.number.desc()).limit(1)
        previous = (await connection.execute(last)).scalar_one_or_none() or FIRST
        moment = now()
        facts = asdict(entry)
        facts["arguments_hmac"] = self.fingerprint(facts.pop("digest"))
        record = json.dumps({**facts, "at": moment, "previous": previous}, sort_keys=True)
        values = {"at": moment, "tenant": entry.tenant, "record": record, "hash": _hash(record)}
        await connection.execute(sa.insert(audit).values(**values))

    def fingerprint(self, digest: str) -> str:
        """The hash under which arguments are recorded; empty for none."""
        return hmac.new(self._key, digest.encode(), hashlib.sha256).hexdigest() if digest else ""

    async def verify(self) -> str:
        """The first thing wrong with the chain; empty when nothing is."""
        previous, number = "", 0
        async with self._database.read() as connection:
            rows = await connection.stream(
                sa.select(audit.c.number, audit.c.record, audit.c.hash).order_by(audit.c.number)
            )
            async for row in rows:
                if row.hash != _hash(row.record):
                    return f"record {row.number} was changed"
                if number and row.number != number + 1:
                    return f"record {number + 1} is missing"
                if previous and json.loads(row.record)["previous"] != previous:
                    return f"record {row.number} does not follow record {number}"
                previous, number = row.hash, row.number
        return ""


def _hash(record: str) -> str:
    return hashlib.sha256(record.encode()).hexdigest()

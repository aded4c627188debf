"""The folders of sessions: one call at a time in each, deleted when they are old or too many."""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from services.tools.interpreter import folder
from services.tools.interpreter.config import InterpreterConfig
from services.tools.interpreter.job import Room

_log = logging.getLogger(__name__)
_CALL = "call-"
_ROUND_SECONDS = 300.0


@dataclass
class _Session:
    """What is known of a session's folder."""

    used: float = 0.0
    """When it was used last, seconds since 1970."""
    bytes: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    callers: int = 0
    """Calls that have it or wait for it."""


class Sessions:
    """Gives each call its folders. Call `open` once, and run `sweep` beside the calls.

    Args:
        path: Folder of all sessions.
        config: Their bounds.
        forget: Told the key of a session before its folder is deleted.
    """

    def __init__(self, path: Path, config: InterpreterConfig, *, forget: Callable[[str], Awaitable[None]]) -> None:
        self._path = path
        self._config = config
        self._forget = forget
        self._sessions: dict[str, _Session] = {}
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """Find the sessions that are there; what calls of a killed process left is deleted."""
        await asyncio.to_thread(self._path.mkdir, mode=0o700, parents=True, exist_ok=True)
        self._sessions = await asyncio.to_thread(self._find)

    @contextlib.asynccontextmanager
    async def room(self, *, tenant: str, session_id: str) -> AsyncIterator[Room]:
        """The folders of a call: its session's, which nobody else has meanwhile, or new ones that are deleted after."""
        if not session_id:
            room = Room(key="", path=self._path / f"{_CALL}{uuid.uuid4().hex}")
            try:
                await asyncio.to_thread(_make, room)
                yield room
            finally:
                await asyncio.to_thread(folder.remove, str(room.path))
            return
        key = _key(tenant, session_id)
        session = self._sessions.setdefault(key, _Session())
        session.callers += 1
        try:
            async with session.lock:
                room = Room(key=key, path=self._path / key)
                await asyncio.to_thread(_make, room)
                try:
                    yield room
                finally:
                    session.used = time.time()
                    session.bytes = await asyncio.to_thread(self._measure, room.path)
                    await asyncio.to_thread(os.utime, room.path)
        finally:
            session.callers -= 1
            self._changed.set()

    async def sweep(self) -> None:
        """Delete sessions that are old or too many, for ever."""
        while True:
            self._changed.clear()
            for key in self._superfluous():
                await self._delete(key)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_ROUND_SECONDS, self._config.session_seconds)):
                    await self._changed.wait()

    def _superfluous(self) -> list[str]:
        """Keys of idle sessions that have to go."""
        idle = sorted((one.used, key) for key, one in self._sessions.items() if one.callers == 0)
        over = sum(one.bytes for one in self._sessions.values()) - self._config.sessions_bytes
        chosen, now = [], time.time()
        for used, key in idle:
            if over > 0 or now - used > self._config.session_seconds:
                over -= self._sessions[key].bytes
                chosen.append(key)
        return chosen

    async def _delete(self, key: str) -> None:
        session = self._sessions[key]
        if session.callers:
            return
        session.callers += 1
        try:
            async with session.lock:
                await self._forget(key)
                await asyncio.to_thread(folder.remove, str(self._path / key))
                _log.info("interpreter session deleted", extra={"session": key, "bytes": session.bytes})
                session.bytes = 0
        finally:
            session.callers -= 1
            if session.callers == 0:
                del self._sessions[key]

    def _find(self) -> dict[str, _Session]:
        found = {}
        for path in list(self._path.iterdir()):
            if path.name.startswith(_CALL):
                folder.remove(str(path))
            else:
                used = path.stat().st_mtime
                found[path.name] = _Session(used=used, bytes=self._measure(path))
        return found

    def _measure(self, path: Path) -> int:
        return folder.usage(str(path), most=100 * self._config.disk_entries).bytes


def _key(tenant: str, session_id: str) -> str:
    """A name that no other pair has and that says nothing of it."""
    return hashlib.sha256(f"{len(tenant)}:{tenant}{session_id}".encode()).hexdigest()[:40]


def _make(room: Room) -> None:
    for path in (room.path, room.inbox, room.state, room.work):
        path.mkdir(mode=0o700, exist_ok=True)

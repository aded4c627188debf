"""The parent's side of parsing: a few warm children, each of one tenant, replaced after some documents or a failure."""

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

from services.memory.parse.extract import LENGTH, MAX_HEAD, Limits, Task
from services.memory.text import Parsed
from services.runtime.spawn import spawn
from stack_client.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StackError,
)

_log = logging.getLogger(__name__)

DOCUMENTS_PER_CHILD = 50
BASE_MEMORY = 256 << 20
"""Address space of a child without a document."""
START_SECONDS = 60.0
MAX_CHARACTER_BYTES = 4


@dataclass
class _Child:
    """A process that parses."""

    process: asyncio.subprocess.Process
    tenant: str = ""
    documents: int = 0
    sound: bool = True
    """It answered, and can take another document."""


@dataclass
class ParserPool:
    """Parses documents in child processes. Use `async with`.

    Attributes:
        children: Documents parsed at once.
        limits: What a document may cost.
        parser: `builtin` or `docling`.
    """

    children: int = 2
    limits: Limits = field(default_factory=Limits)
    parser: str = "builtin"

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.children)
        self._idle: list[_Child] = []
        self._told = False

    async def __aenter__(self) -> Self:
        """Check that the parser is there; children start with the first document.

        Raises:
            FailedPreconditionError: If its package is not installed.
        """
        check_parser(self.parser)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End the children."""
        idle, self._idle = self._idle, []
        for child in idle:
            await _end(child)

    async def parse(self, data: bytes, *, name: str, mime_type: str = "", tenant: str = "") -> Parsed:
        """The text of a document.

        Args:
            data: Its bytes.
            name: File name, for messages and to tell kinds of text apart.
            mime_type: As declared; a hint among kinds of text.
            tenant: Whose it is: no child sees documents of two.

        Raises:
            InvalidArgumentError: If it is empty, damaged, encrypted, or of a kind without text.
            ResourceExhaustedError: If it needs more time, memory or space than a document may.
        """
        async with self._child(tenant) as child:
            return await self._ask(child, Task(name=name[:1000], mime_type=mime_type[:200], limits=self.limits), data)

    @contextlib.asynccontextmanager
    async def _child(self, tenant: str) -> AsyncIterator[_Child]:
        """A child that saw nobody else's documents; ended unless it is as good as before."""
        async with self._slots:
            child = next((one for one in self._idle if one.documents == 0 or one.tenant == tenant), None)
            if child is not None:
                self._idle.remove(child)
            else:
                if len(self._idle) >= self.children:
                    await _end(self._idle.pop(0))
                child = await self._start()
            child.tenant, child.sound = tenant, False
            try:
                yield child
            finally:
                if child.sound and child.process.returncode is None:
                    self._idle.append(child)
                else:
                    await _end(child)

    async def _start(self) -> _Child:
        memory = BASE_MEMORY + self.limits.memory_bytes
        # Twice the time of a document: a child is replaced when it has used half, so that each gets its full share.
        cpu = int(self.limits.seconds * 2) + 2
        process = await spawn(
            sys.executable, "-m", "services.memory.parse.child", str(os.getpid()), str(memory), str(cpu), self.parser,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"},
            limit=1 << 20,
        )  # fmt: skip
        child = _Child(process)
        try:
            async with asyncio.timeout(START_SECONDS):
                hello, _ = await self._read(child)
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            await _end(child)
            message = f"the process that parses documents did not start (status {process.returncode}); see the log"
            raise InternalError(message) from error
        except BaseException:
            await _end(child)
            raise
        if not self._told:
            self._told = True
            _log.info("documents are parsed in child processes", extra={"held_by": hello.get("held")})
        return child

    async def _ask(self, child: _Child, task: Task, data: bytes) -> Parsed:
        child.documents += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                head, body = await self._exchange(child, task, data)
        except TimeoutError:
            message = (
                f"{task.name!r} was not read within {self.limits.seconds:g} s: split it or save it in a simpler form"
            )
            raise ResourceExhaustedError(message, reason="MESSAGE_TOO_LARGE") from None
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            raise await _death(child, task.name, limits=self.limits) from error
        child.sound = child.documents < DOCUMENTS_PER_CHILD and float(head.get("cpu", 0.0)) < self.limits.seconds
        if "refused" in head:
            raise _refusal(task.name, head, limits=self.limits)
        return await asyncio.to_thread(_parsed, head["extract"], body)

    async def _exchange(self, child: _Child, task: Task, data: bytes) -> tuple[dict[str, Any], bytes]:
        assert child.process.stdin is not None
        head = task.pack()
        child.process.stdin.write(LENGTH.pack(len(head)) + head + LENGTH.pack(len(data)))
        view = memoryview(data)
        for start in range(0, len(data), 1 << 20):
            child.process.stdin.write(view[start : start + (1 << 20)])
            await child.process.stdin.drain()
        await child.process.stdin.drain()
        return await self._read(child)

    async def _read(self, child: _Child) -> tuple[dict[str, Any], bytes]:
        """An answer; never more than a document may have: a child that was taken over can say anything."""
        assert child.process.stdout is not None
        most = (MAX_HEAD + self.limits.pages * 12, self.limits.characters * MAX_CHARACTER_BYTES)
        parts = []
        for limit in most:
            length = LENGTH.unpack(await child.process.stdout.readexactly(LENGTH.size))[0]
            if length > limit:
                raise ValueError("the child's answer is too long")
            parts.append(await child.process.stdout.readexactly(length))
        head = json.loads(parts[0])
        if not isinstance(head, dict):
            raise ValueError("the child's answer is no answer")  # noqa: TRY004 (its data, not our types)
        return head, parts[1]


def check_parser(parser: str) -> None:
    """Refuse a parser that is not there.

    Raises:
        FailedPreconditionError: If its package is not installed.
        InvalidArgumentError: If there is none of that name.
    """
    if parser not in {"builtin", "docling"}:
        raise InvalidArgumentError(f"memory.parser: there is no {parser!r}; choose builtin or docling")
    if parser == "docling" and importlib.util.find_spec("docling") is None:
        message = "memory.parser: docling needs the package docling: pip install docling, or set it to builtin"
        raise FailedPreconditionError(message)


def _refusal(name: str, head: dict[str, Any], *, limits: Limits) -> StackError:
    reason, said = str(head.get("reason", "")), str(head["refused"])
    if reason == "memory":
        said, reason = f"it needs more than {limits.memory_bytes >> 20} MiB of memory: split it", "too_large"
    message = f"{name!r} cannot be read: {said}"
    if reason == "too_large":
        return ResourceExhaustedError(message, reason="MESSAGE_TOO_LARGE")
    return InvalidArgumentError(message)


async def _death(child: _Child, name: str, *, limits: Limits) -> StackError:
    """What the end of a child says about its document."""
    if child.process.returncode is None:
        await _end(child)
    code = child.process.returncode or 0
    if code == -signal.SIGXCPU:
        message = f"{name!r} needs more than {limits.seconds:g} s of computing to be read: split it"
        return ResourceExhaustedError(message, reason="MESSAGE_TOO_LARGE")
    _log.warning("a document ended the process that read it", extra={"status": code})
    how = f"signal {-code}" if code < 0 else f"status {code}"
    return InvalidArgumentError(f"{name!r} cannot be read: its reader died of it ({how}); it is damaged or hostile")


async def _end(child: _Child) -> None:
    """Kill a child and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        child.process.kill()
    await child.process.wait()
    transport: Any = getattr(child.process, "_transport", None)
    if transport is not None:
        transport.close()


def _parsed(values: dict[str, Any], body: bytes) -> Parsed:
    text = body.decode()
    pages = [min(int(start), len(text)) for start in values["pages"]]
    return Parsed(
        text=text,
        mime_type=str(values["mime_type"]),
        structure=values["structure"],
        language=str(values["language"]),
        pages=pages,
        title=str(values["title"])[:1000],
    )

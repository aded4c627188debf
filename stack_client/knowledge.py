"""`Memory`: files, or a bank, that an agent remembers.

memory = Memory("docs/*.pdf")
for passage in memory.query("How is the engine cooled?"):
    print(passage.citation, passage.text)

agent = Agent("smollm2-135m", memory=["docs/*.pdf", Memory("team-notes")])
"""

import asyncio
import glob
import hashlib
import itertools
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llamastack import v1
from stack_client.client import StackClient
from stack_client.content import struct
from stack_client.errors import (
    CancelledError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StreamBrokenError,
    from_error_message,
)
from stack_client.memory import DocumentLike, MemoryHit, Where
from stack_client.portal import SyncStackClient, portal

T = TypeVar("T")

UPLOADS_AT_ONCE = 4
RETRIES = 5
RETRY_SECONDS = 0.5
MAX_STEM = 40


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What became of the files of a `Memory`."""

    bank: str
    """The bank that holds them."""
    ingested: list[str] = field(default_factory=list)
    """Files that were new or changed."""
    unchanged: int = 0
    """Files that were there already."""
    deleted: list[str] = field(default_factory=list)
    """Documents whose files are gone."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Files that could not be read, and why."""


class Memory:
    """Files on this machine that the stack has read, or a bank of the stack.

    A name is a bank of the stack, made when something is first put into it. Anything else - a path, a folder, a pattern
    with `*` - stands for files: they become documents of a bank of their own, named after where they are, and each use
    first brings the bank up to date: only files whose bytes changed are sent and read again, and documents whose files
    are gone are deleted.

    Args:
        sources: One name; or paths, folders and patterns.
        bank: Name of the bank that holds the files; empty means one made of where they are.
        embedding_model: Of a bank that is made; empty means the stack's default.
        chunk_size: Tokens of a chunk in a bank that is made; 0 means as many as the model reads.
        client: Says which stack; None is the one on this machine.
    """

    def __init__(
        self,
        *sources: str | Path,
        bank: str = "",
        embedding_model: str = "",
        chunk_size: int = 0,
        client: StackClient | SyncStackClient | None = None,
    ) -> None:
        if not sources:
            raise InvalidArgumentError("name a bank, files, folders or patterns", field="sources")
        names = [source for source in sources if isinstance(source, str) and not is_files(source)]
        if names and len(sources) > 1:
            raise InvalidArgumentError(
                f"{names[0]!r} is a bank's name; it cannot be mixed with others", field="sources"
            )
        self.patterns: Sequence[str] = [] if names else [str(Path(source).expanduser()) for source in sources]
        """Where the files are; empty when this is a bank by name."""
        self.bank = names[0] if names else bank or _bank_name(self.patterns)
        """The bank's name."""
        self._embedding_model = embedding_model
        self._chunk_size = chunk_size
        self._client = client

    def query(self, question: str, k: int = 5, *, where: Where = None, mode: str = "") -> list[MemoryHit]:
        """Find passages; files are brought up to date first. See `MemoryBanks.search`.

        Raises:
            StackError: If the stack cannot answer.
        """
        return portal().run(
            self._with_client(lambda client: self.aquery(question, k, where=where, mode=mode, client=client))
        )

    def put(self, *documents: DocumentLike) -> v1.InsertDocumentsResponse:
        """Store documents; only in a bank by name. See `MemoryBanks.insert`.

        Raises:
            StackError: If the stack refuses.
        """
        return portal().run(self._with_client(lambda client: self.aput(*documents, client=client)))

    def sync(self) -> Synced:
        """Bring the bank up to date with the files.

        Raises:
            FailedPreconditionError: If there are no files.
            StackError: If the stack refuses.
        """
        return portal().run(self._with_client(self.async_sync))

    async def aquery(
        self, question: str, k: int = 5, *, where: Where = None, mode: str = "", client: StackClient | None = None
    ) -> list[MemoryHit]:
        """The same as `query`, awaited."""
        if client is None:
            return await self._with_client(lambda made: self.aquery(question, k, where=where, mode=mode, client=made))
        if self.patterns:
            await self.async_sync(client)
        return await client.memory.search(self.bank, question, mode=mode, k=k, where=where)

    async def aput(self, *documents: DocumentLike, client: StackClient | None = None) -> v1.InsertDocumentsResponse:
        """The same as `put`, awaited."""
        if client is None:
            return await self._with_client(lambda made: self.aput(*documents, client=made))
        if self.patterns:
            raise FailedPreconditionError(f"bank {self.bank!r} follows its files; put documents into a bank by name")
        await self._ensure(client)
        return await client.memory.insert(self.bank, documents)

    async def async_sync(self, client: StackClient) -> Synced:
        """The same as `sync`, awaited."""
        await self._ensure(client)
        files = await asyncio.to_thread(find_files, self.patterns)
        if not files:
            message = f"no file matches {', '.join(self.patterns)}; see that the path is right"
            raise FailedPreconditionError(message)
        stored = {one.document_id: one for one in await client.memory.documents(self.bank)}
        changed = [
            name for name, file in files.items() if name not in stored or stored[name].source_hash != file.digest
        ]
        failures = await ingest_files(client, self.bank, {name: files[name] for name in changed}) if changed else {}
        old = [stored[name].file_id for name in changed if name in stored and name not in failures]
        gone = sorted(set(stored) - set(files))
        if gone:
            await client.memory.delete_documents(self.bank, *gone)
        await _forget(client, [*old, *(stored[name].file_id for name in gone)])
        return Synced(
            bank=self.bank,
            ingested=[name for name in changed if name not in failures],
            unchanged=len(files) - len(changed),
            deleted=gone,
            failures=failures,
        )

    async def ensure(self, client: StackClient) -> str:
        """The bank's name, once it is there and up to date.

        Raises:
            StackError: If the stack refuses, or no file could be read.
        """
        if not self.patterns:
            await client.memory.get(self.bank)
            return self.bank
        synced = await self.async_sync(client)
        if synced.failures and not synced.ingested and not synced.unchanged:
            name, why = next(iter(synced.failures.items()))
            raise FailedPreconditionError(f"no file of {', '.join(self.patterns)} could be read; {name}: {why}")
        return self.bank

    async def _ensure(self, client: StackClient) -> None:
        try:
            await client.memory.get(self.bank)
        except NotFoundError:
            await client.memory.create(self.bank, embedding_model=self._embedding_model, chunk_size=self._chunk_size)

    async def _with_client(self, work: Callable[[StackClient], Awaitable[T]]) -> T:
        if isinstance(self._client, StackClient):
            return await work(self._client)
        made = self._client.client.copy() if isinstance(self._client, SyncStackClient) else StackClient()
        async with made as client:
            return await work(client)


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file on this machine."""

    path: Path
    """Where it is."""
    digest: str
    """SHA-256 of its content, hexadecimal."""


async def ingest_files(
    client: StackClient,
    bank: str,
    files: Mapping[str, LocalFile],
    *,
    metadata: Mapping[str, Any] | None = None,
    on_event: Callable[[v1.WatchIngestionJobResponse], None] = lambda _event: None,
) -> dict[str, str]:
    """Load files into a bank as documents and wait until it is done.

    The job goes on when its watcher is gone; a stream that breaks is taken up where it was.

    Args:
        client: Of the stack.
        bank: A vector or keyword bank.
        files: By the identifiers of their documents, which are also their sources.
        metadata: Given to every document.
        on_event: Told every event of the job.

    Returns:
        Documents that failed, with reasons.

    Raises:
        StackError: If the stack refuses, or the job as a whole failed.
    """
    limit = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def upload(name: str, file: LocalFile) -> v1.IngestionFile:
        async with limit:
            stored = await client.files.upload(file.path)
        return v1.IngestionFile(file_id=stored.id, document_id=name, source=name)

    async with asyncio.TaskGroup() as group:
        uploads = [group.create_task(upload(name, file)) for name, file in files.items()]
    source = v1.IngestionFiles(files=[task.result() for task in uploads], metadata=struct(metadata))
    unused: set[str] = set()

    def see(event: v1.WatchIngestionJobResponse) -> None:
        if event.HasField("document") and (event.document.unchanged or event.document.HasField("error")):
            unused.add(event.document.document_id)
        on_event(event)

    job = await client.memory.start_ingestion(v1.CreateIngestionJobRequest(bank_id=bank, files=source))
    failures = await follow_ingestion(client, job.job_id, on_event=see)
    await _forget(client, [one.file_id for one in source.files if one.document_id in unused])
    return failures


async def follow_ingestion(
    client: StackClient, job_id: str, *, on_event: Callable[[v1.WatchIngestionJobResponse], None]
) -> dict[str, str]:
    """Wait for the end of an ingestion job; returns documents that failed, with reasons.

    Raises:
        StackError: If the job as a whole failed, or was cancelled.
    """
    failures: dict[str, str] = {}
    sequence, breaks, ended = 0, 0, False
    while not ended:
        try:
            async with client.memory.watch_job(job_id, after_sequence=sequence) as events:
                async for event in events:
                    sequence, breaks = event.sequence or sequence, 0
                    on_event(event)
                    if event.HasField("document") and event.document.HasField("error"):
                        failures[event.document.document_id] = event.document.error.message
                    if event.HasField("failed"):
                        raise from_error_message(event.failed.error)
                    if event.HasField("cancelled"):
                        raise CancelledError(f"ingestion job {job_id} was cancelled; what it had loaded stays")
                    ended = event.HasField("completed")
        except StreamBrokenError:
            breaks += 1
            if breaks > RETRIES:
                raise
            await asyncio.sleep(RETRY_SECONDS * breaks)
    return failures


def is_files(source: str) -> bool:
    """Whether a source stands for files rather than for a bank's name."""
    return bool(re.search(r"[/\\*?\[~]", source)) or Path(source).exists() or bool(re.search(r"\.\w{1,5}$", source))


def _bank_name(patterns: Sequence[str]) -> str:
    """A name that the same files have from wherever the program is started."""
    where = sorted(str(Path(pattern).absolute()) for pattern in patterns)
    stem = re.sub(r"[^a-z0-9]+", "-", patterns[0].lower()).strip("-")[-MAX_STEM:].strip("-")
    digest = hashlib.sha256("\0".join(where).encode()).hexdigest()
    return f"files-{stem or 'all'}-{digest[:12]}"


def find_files(patterns: Sequence[str]) -> dict[str, LocalFile]:
    """Files by the names of their documents: paths below the folder that all patterns share."""
    paths: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207 (absolute patterns too)
        paths |= {one.absolute() for one in found if one.is_file() and not _hidden(one, path)}
    if not paths:
        return {}
    shared = Path(*_common([_root(pattern).parts for pattern in patterns]))
    return {path.relative_to(shared).as_posix(): LocalFile(path=path, digest=_digest(path)) for path in sorted(paths)}


def _root(pattern: str) -> Path:
    """The folder below which all files of a pattern lie, whichever there are."""
    path = Path(pattern).absolute()
    if path.is_dir():
        return path
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1])
    return Path(*fixed)


def _common(parts: Sequence[tuple[str, ...]]) -> list[str]:
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return common


def _hidden(path: Path, root: Path) -> bool:
    """Whether a file lies in a hidden folder below the root, or is hidden itself."""
    inside = path.relative_to(root).parts if root.is_dir() else (path.name,)
    return any(part.startswith(".") for part in inside)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _forget(client: StackClient, file_ids: Sequence[str]) -> None:
    """Delete uploads that no document needs any more."""
    for file_id in filter(None, file_ids):
        try:
            await client.files.delete(file_id)
        except NotFoundError:
            continue

"""The worker of ingestion jobs: takes a lease, handles documents a few at a time, records each as it is done.

What kills it leaves a job whose lease ends; whoever takes it goes on with the documents that are not recorded. A
document that was stored but not recorded is found unchanged then: storing is repeatable by its recipe.
"""

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, Self

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.cut.cutter import cutting_of
from services.memory.database import StoreError
from services.memory.embedder import Embedder, EmbeddingModel
from services.memory.fetch import Fetched
from services.memory.files import FileStore
from services.memory.ingest_metrics import IngestMetrics
from services.memory.jobs import Item, JobStore, Lease, LeaseLostError, Outcome, this_worker
from services.memory.pipeline import Pipeline, Source, Store, fetched_source, file_source, source_of
from services.runtime.background import wait
from stack_client.errors import (
    ConflictError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
)

_log = logging.getLogger(__name__)

FETCH_TRIES = 3
TRIES = 5
"""Of a document whose failure may be a fault of ours."""
PASSING = (UnavailableError, DeadlineExceededError, ResourceExhaustedError, StoreError, ConflictError)
"""What is waited for, however long it takes."""
LONGEST_PAUSE = 30.0

Progress = Callable[[int, int], Awaitable[None]]
"""Told how many chunks are done, and how many there are."""


class Documents(Store, Protocol):
    """What jobs need of `DocumentStore`."""

    async def reembed(self, bank: Bank, model: EmbeddingModel, *, report: Progress) -> None:
        """Compute all embeddings of a bank with a model beside the old ones, and switch in one transaction."""


class JobFailedError(Exception):
    """A job cannot go on.

    Args:
        error: Why.
    """

    def __init__(self, error: StackError) -> None:
        super().__init__(error.message)
        self.error = error


class JobRunner:
    """Works on jobs, one's own and those that others left. Use `async with`.

    Args:
        jobs: All jobs.
        banks: Where documents go.
        documents: What stores them.
        files: Uploaded files.
        pipeline: Reads and cuts.
        embedder: Knows models, for embedding anew.
        metrics: Told of each document.
        jobs_at_once: Jobs worked on at once; 0 leaves all to other processes.
        documents_at_once: Of one job.
        lease_seconds: How long a job is held without a sign of life.
        poll_seconds: How often jobs of other processes are looked for.
        retry_seconds: First pause before something that was unavailable is tried again; doubles each time.
    """

    def __init__(
        self,
        jobs: JobStore,
        *,
        banks: BankStore,
        documents: Documents,
        files: FileStore,
        pipeline: Pipeline,
        embedder: Embedder,
        metrics: IngestMetrics | None = None,
        jobs_at_once: int = 2,
        documents_at_once: int = 4,
        lease_seconds: float = 30.0,
        poll_seconds: float = 1.0,
        retry_seconds: float = 0.5,
    ) -> None:
        self._jobs = jobs
        self._banks = banks
        self._documents = documents
        self._files = files
        self._pipeline = pipeline
        self._embedder = embedder
        self._metrics = metrics
        self._most = jobs_at_once
        self._at_once = documents_at_once
        self._lease = lease_seconds
        self._poll = poll_seconds
        self._retry = retry_seconds
        self._worker = this_worker()
        self._said: dict[int, str] = {}
        self._group = asyncio.TaskGroup()
        self._active: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Begin to look for jobs; those of processes that died here are taken at once."""
        await self._jobs.release_dead(socket.gethostname())
        await self._group.__aenter__()
        self._looking = self._group.create_task(self._look())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop; jobs in progress are given back."""
        for task in (self._looking, *self._active):
            task.cancel()
        await self._group.__aexit__(None, None, None)

    async def _look(self) -> None:
        with self._jobs.signals.listening(0) as changed:
            while True:
                changed.clear()
                if await self._take():
                    continue
                await wait(changed, seconds=self._poll)

    async def _take(self) -> bool:
        """Begin a job; whether there was one."""
        if len(self._active) >= self._most:
            return False
        try:
            lease = await self._jobs.claim(self._worker)
        except StackError as error:  # the database may be away for a while
            _log.warning("jobs cannot be looked for", extra={"error": error.message})
            return False
        if lease is None:
            return False
        task = self._group.create_task(self._work(lease))
        self._active.add(task)
        task.add_done_callback(self._ended)
        return True

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._active.discard(task)
        self._jobs.signals.tell(0)

    async def _work(self, lease: Lease) -> None:
        """Work on a job until it ends, is lost or this process stops."""
        cancelled = asyncio.Event()
        # Tasks of our own, not a group: losing the lease must stop the work, and the work's end the keeper.
        keeper = asyncio.create_task(self._keep(lease, cancelled))
        work = asyncio.create_task(self._run(lease))
        tasks = (keeper, work)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif cancelled.is_set():
                await _stopped(work)
                await self._jobs.finish(lease, v1.JOB_STATUS_CANCELLED)
        except asyncio.CancelledError:
            await _stopped(work)
            with contextlib.suppress(StackError):
                await self._jobs.release(lease)
            raise
        except LeaseLostError:
            _log.warning("a job was taken over by another worker", extra={"job": lease.job["job_id"]})
        except StackError as error:  # what happened cannot even be recorded: its lease ends, and it is taken again
            _log.warning("a job waits to be taken again", extra={"job": lease.job["job_id"], "error": error.message})
        finally:
            for task in tasks:
                await _stopped(task)
            self._said.pop(lease.number, None)

    async def _keep(self, lease: Lease, cancelled: asyncio.Event) -> None:
        """Hold the lease; ends when it is lost, or when the job is to be cancelled."""
        loop = asyncio.get_running_loop()
        held_until = loop.time() + self._lease
        with self._jobs.signals.listening(lease.number) as changed:
            while loop.time() < held_until:
                changed.clear()
                try:
                    if await self._jobs.extend(lease) == v1.JOB_STATUS_CANCELLING:
                        cancelled.set()
                        return
                    held_until = loop.time() + self._lease
                except LeaseLostError:
                    return
                except StackError as error:
                    _log.warning("a lease cannot be extended", extra={"error": error.message})
                await self._until_cancelling(lease, changed)

    async def _until_cancelling(self, lease: Lease, changed: asyncio.Event) -> None:
        """Wait a third of the lease, or until somebody here asks for the job's end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._lease / 3
        while loop.time() < until:
            await wait(changed, seconds=min(until - loop.time(), self._poll))
            changed.clear()
            with contextlib.suppress(StackError):
                job = await self._jobs.get(lease.job["job_id"], tenant=lease.job["tenant"])
                if job["status"] == v1.JOB_STATUS_CANCELLING:
                    return

    async def _run(self, lease: Lease) -> None:
        if lease.job["status"] == v1.JOB_STATUS_CANCELLING:
            await self._jobs.finish(lease, v1.JOB_STATUS_CANCELLED)
            return
        try:
            if lease.request.HasField("reembed"):
                await self._reembed(lease)
            else:
                await self._all(lease)
        except JobFailedError as failure:
            await self._jobs.finish(lease, v1.JOB_STATUS_FAILED, error=failure.error)
            return
        await self._jobs.finish(lease, v1.JOB_STATUS_COMPLETED)

    async def _all(self, lease: Lease) -> None:
        """Handle all documents that are left.

        Raises:
            JobFailedError: If nothing can go on.
        """
        slots, after = asyncio.Semaphore(self._at_once), -1
        try:
            async with asyncio.TaskGroup() as group:
                while items := await self._jobs.pending(lease, after=after):
                    for item in items:
                        await slots.acquire()
                        group.create_task(self._one(lease, item)).add_done_callback(lambda _: slots.release())
                    after = items[-1].place
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _one(self, lease: Lease, item: Item) -> None:
        """Handle a document, again and again while what it needs is unavailable."""
        pause, tries = self._retry, 0
        while True:
            try:
                outcome = await self._outcome(lease, item)
                break
            except PASSING as error:
                await self._wait_said(lease, error)
                wished = error.retry_after or 0.0
            except InternalError as error:
                tries += 1
                if tries == TRIES:
                    outcome = Outcome(status="failed", error=error)
                    break
                wished = 0.0
            await asyncio.sleep(max(pause, wished) * random.uniform(0.7, 1.3))  # noqa: S311 (spreads retries)
            pause = min(pause * 2, LONGEST_PAUSE)
        await self._jobs.handled(lease, item, outcome)
        self._said.pop(lease.number, None)
        if self._metrics is None:
            return
        if outcome.error is not None:
            self._metrics.failed(outcome.error.reason)
        else:
            self._metrics.handled(outcome.status, size=outcome.bytes)

    async def _wait_said(self, lease: Lease, error: StackError) -> None:
        """Tell why a job waits, once."""
        message = f"waiting: {error.message}"[:500]
        if self._said.get(lease.number) != message:
            self._said[lease.number] = message
            await self._jobs.note(lease, message)

    async def _outcome(self, lease: Lease, item: Item) -> Outcome:
        """Fetch, read, cut and store a document; what is its own fault is its outcome.

        Raises:
            JobFailedError: If nothing can go on.
            StackError: If it is worth another try.
        """
        bank = await self._bank(lease)
        try:
            source = await self._source(lease, item)
        except (StoreError, JobFailedError):
            raise
        except StackError as error:
            return Outcome(status="failed", error=error)
        try:
            request = lease.request
            chunking = request.chunking_strategy if request.HasField("chunking_strategy") else None
            cutting = cutting_of(chunking, bank, window=await self._pipeline.window(bank))
            stored = await self._pipeline.ingest(bank, source, cutting, self._documents)
        except StackError as error:
            return _judged(error, size=len(source.data))
        except Exception as error:  # noqa: BLE001 (a bug over one document must not end the job, nor repeat for ever)
            _log.exception("a document could not be ingested", extra={"document": item.document_id})
            fault = InternalError(f"{item.document_id!r} met a fault of ours ({type(error).__name__}); see the log")
            return Outcome(status="failed", bytes=len(source.data), error=fault)
        if stored is None:
            return Outcome(status="unchanged", bytes=len(source.data))
        return Outcome(status=stored.status, chunks=stored.chunks, bytes=len(source.data))

    async def _source(self, lease: Lease, item: Item) -> Source:
        expires_at = lease.job["expires_at"]
        if item.file_id:
            file = await self._files.get(item.file_id, tenant=lease.job["tenant"])
            data = await self._files.read(file)
            read = file_source(file, data, metadata=item.document.metadata, expires_at=expires_at)
            return replace(read, document_id=item.document_id, name=item.source or read.name)
        source = source_of(item.document, expires_at=expires_at)
        if item.document.content.WhichOneof("form") != "url":
            return source
        source = replace(source, document_id=item.document_id)
        return fetched_source(source, await self._fetched(item.document.content.url.uri))

    async def _fetched(self, url: str) -> Fetched:
        """What a URL gave; a server that does not answer is asked a few times, not for ever."""
        for attempt in range(FETCH_TRIES - 1):
            try:
                return await self._pipeline.fetch(url)
            except UnavailableError as error:
                await asyncio.sleep(max(self._retry * 2**attempt, min(error.retry_after or 0.0, LONGEST_PAUSE)))
        return await self._pipeline.fetch(url)

    async def _bank(self, lease: Lease) -> Bank:
        try:
            bank = await self._banks.get(lease.job["bank_id"], tenant=lease.job["tenant"])
        except NotFoundError as error:
            raise JobFailedError(error) from error
        if bank.number != lease.job["bank"]:
            message = (
                f"the memory bank {bank.identifier!r} of this job was deleted; another of that name was made since"
            )
            raise JobFailedError(NotFoundError(message))
        return bank

    async def _reembed(self, lease: Lease) -> None:
        async def progress(done: int, total: int) -> None:
            await self._jobs.note(lease, "computing embeddings", done=done, total=total)

        pause, tries = self._retry, 0
        while True:
            bank = await self._bank(lease)
            try:
                model = await self._embedder.model(lease.request.reembed.embedding_model or bank.embedding_model)
                await self._documents.reembed(bank, model, report=progress)
                return
            except PASSING as error:
                await self._wait_said(lease, error)
            except StackError as error:
                tries += 1
                if not isinstance(error, InternalError) or tries == TRIES:
                    raise JobFailedError(error) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)


def _judged(error: StackError, *, size: int) -> Outcome:
    """What an error means for a job: a document's own fault is its outcome.

    Raises:
        JobFailedError: If the bank or its model is gone.
        StackError: If it is worth another try.
    """
    if isinstance(error, NotFoundError | FailedPreconditionError):
        raise JobFailedError(error) from error
    again = isinstance(error, UnavailableError | DeadlineExceededError | InternalError | ConflictError)
    full = isinstance(error, ResourceExhaustedError) and error.reason != "MESSAGE_TOO_LARGE"
    if (again or full) and not isinstance(error, DataLossError):
        raise error
    return Outcome(status="failed", bytes=size, error=error)


async def _stopped(task: asyncio.Task[object]) -> None:
    """Cancel a task and wait until it has ended, however it does."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()

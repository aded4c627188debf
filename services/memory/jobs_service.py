"""Job calls of the memory service: create, get, list, cancel, watch."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from llamastack import v1
from services.memory import requests
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.cut.context import check_prompt
from services.memory.cut.cutter import cutting_of
from services.memory.database import Database
from services.memory.fetch import is_data
from services.memory.files import FileStore
from services.memory.filters import facts_of
from services.memory.jobs import ENDED, Item, JobRow, JobStore, job_message
from services.memory.metadata import metadata_of
from services.memory.pipeline import MAX_DOCUMENT_ID, source_of
from services.runtime.background import wait
from services.runtime.calls import current_tenant
from services.runtime.moments import SECOND, now
from services.runtime.names import check_printable
from services.runtime.pages import decode_token, encode_token, page_size
from services.runtime.stream import EventWriter, RpcContext
from stack_client.calls import terminal_events
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, OutOfRangeError

MAX_ITEMS = 10_000
MAX_NAME = 256
POLL_SECONDS = 1.0
"""How often a watcher looks for what other processes did."""
ANY_WINDOW = 1 << 30


class JobCalls:
    """Part of `MemoryBanksService`.

    Args:
        rest: What the other parts take.
        jobs: The jobs.
        job_files: Uploaded files.
        job_draining: Set when the service is about to shut down.
        job_grace_seconds: How long streams may go on then.
    """

    _database: Database
    _banks: BankStore

    def __init__(
        self,
        *rest: Any,  # noqa: ANN401 (of the other parts)
        jobs: JobStore,
        job_files: FileStore,
        job_draining: asyncio.Event,
        job_grace_seconds: float,
        **named: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*rest, **named)
        self._jobs = jobs
        self._job_files = job_files
        self._job_draining = job_draining
        self._job_grace = job_grace_seconds

    async def CreateIngestionJob(
        self, request: v1.CreateIngestionJobRequest, context: RpcContext
    ) -> v1.CreateIngestionJobResponse:
        """Accept a job."""
        tenant = current_tenant()
        bank = await self._banks.require(request.bank_id, "vector", "keyword", tenant=tenant)
        _check(request, bank)
        items = await self._items(request, tenant=tenant)
        if request.WhichOneof("source") != "reembed":
            _check_items(items, bank)
        digest = _digest(request)
        ttl = request.ttl_seconds if request.HasField("ttl_seconds") else None
        expires_at = None if ttl is None else now() + ttl * SECOND
        async with self._database.write() as connection:
            answer = await requests.recall(connection, request, tenant=tenant, answer=v1.CreateIngestionJobResponse)
            if answer is None:
                job = await self._jobs.create(connection, bank, request, items, digest=digest, expires_at=expires_at)
                answer = v1.CreateIngestionJobResponse(job=job_message(job))
                await requests.remember(connection, request, tenant=tenant, answer=answer, bank=bank.number)
        self._jobs.signals.tell(0)
        return answer

    async def GetIngestionJob(
        self, request: v1.GetIngestionJobRequest, context: RpcContext
    ) -> v1.GetIngestionJobResponse:
        """Return one."""
        return v1.GetIngestionJobResponse(job=job_message(await self._job(request.job_id)))

    async def ListIngestionJobs(
        self, request: v1.ListIngestionJobsRequest, context: RpcContext
    ) -> v1.ListIngestionJobsResponse:
        """List, newest first."""
        size, tenant = page_size(request), current_tenant()
        statuses = sorted(set(request.statuses))
        scope = f"ListIngestionJobs {request.bank_id} {statuses}"
        token = decode_token(request.page_token, scope=scope)
        bank = await self._banks.get(request.bank_id, tenant=tenant) if request.bank_id else None
        rows = await self._jobs.page(
            tenant=tenant,
            bank=bank.number if bank else None,
            statuses=statuses,
            before=int(token) if token else None,
            limit=size + 1,
        )
        next_token = encode_token(str(rows[size - 1]["number"]), scope=scope) if len(rows) > size else ""
        return v1.ListIngestionJobsResponse(data=[job_message(row) for row in rows[:size]], next_page_token=next_token)

    async def CancelIngestionJob(
        self, request: v1.CancelIngestionJobRequest, context: RpcContext
    ) -> v1.CancelIngestionJobResponse:
        """Ask for its end."""
        _required(request.job_id)
        job = await self._jobs.cancel(request.job_id, tenant=current_tenant())
        return v1.CancelIngestionJobResponse(job=job_message(job))

    # A coroutine that writes, not a generator: `EventWriter` sends heartbeats beside it.
    async def WatchIngestionJob(self, request: v1.WatchIngestionJobRequest, context: RpcContext) -> None:
        """Replay a job's events and follow it."""
        job, after = await self._job(request.job_id), request.resume_after_sequence
        if after > job["last_sequence"]:
            message = f"resume_after_sequence is {after}; the job's last event has {job['last_sequence']}"
            raise OutOfRangeError(message, field="resume_after_sequence")
        writer = EventWriter(
            context,
            v1.WatchIngestionJobResponse,
            draining=self._job_draining,
            grace_seconds=self._job_grace,
            last_sequence=after,
        )
        await writer.run(self._follow(job, writer, after=after))

    async def _follow(self, job: JobRow, writer: EventWriter[v1.WatchIngestionJobResponse], *, after: int) -> None:
        if job["status"] in ENDED:
            after = min(after, job["last_sequence"] - 1)  # each stream ends with the terminal event, also a late one
        last = terminal_events(v1.WatchIngestionJobResponse.DESCRIPTOR)
        with self._jobs.signals.listening(job["number"]) as changed:
            while True:
                changed.clear()
                events = await self._jobs.events(job["number"], after=after)
                if events and events[0].sequence != after + 1:
                    oldest = events[0].sequence
                    message = f"the events up to {oldest - 1} are no longer kept; watch again after {oldest - 1}"
                    raise OutOfRangeError(message, metadata={"oldest_sequence": str(oldest)})
                for event in events:
                    await writer.forward(event)
                    after = event.sequence
                    if event.WhichOneof("event") in last:
                        return
                if not events:
                    await wait(changed, seconds=POLL_SECONDS)

    async def _job(self, job_id: str) -> JobRow:
        _required(job_id)
        return await self._jobs.get(job_id, tenant=current_tenant())

    async def _items(self, request: v1.CreateIngestionJobRequest, *, tenant: str) -> list[Item]:
        """The documents of a job.

        Raises:
            InvalidArgumentError: If one of them is incomplete.
            NotFoundError: If a file does not exist.
        """
        match request.WhichOneof("source"):
            case "documents":
                return [_document(one, place) for place, one in enumerate(request.documents.documents)]
            case "files":
                files = enumerate(_files(request.files))
                return [await self._file(one, place, field=field, tenant=tenant) for place, (one, field) in files]
            case "urls":
                return [_url(url, request.urls, place) for place, url in enumerate(request.urls.urls)]
        return []

    async def _file(self, file: v1.IngestionFile, place: int, *, field: str, tenant: str) -> Item:
        await self._job_files.get(file.file_id, tenant=tenant, field=field)
        document_id = file.document_id or file.file_id
        check_printable(document_id, most=MAX_DOCUMENT_ID, field=f"{field}.document_id")
        document = v1.RAGDocument(document_id=document_id, metadata=file.metadata)
        return Item(place=place, document_id=document_id, file_id=file.file_id, source=file.source, document=document)


def _files(files: v1.IngestionFiles) -> list[tuple[v1.IngestionFile, str]]:
    """The files of a job with their names in the request.

    Raises:
        InvalidArgumentError: If both forms are given.
    """
    if files.file_ids and files.files:
        raise InvalidArgumentError("files: give file_ids or files, not both", field="files.file_ids")
    if files.file_ids:
        return [
            (v1.IngestionFile(file_id=file_id, metadata=files.metadata), f"files.file_ids[{place}]")
            for place, file_id in enumerate(files.file_ids)
        ]
    result = []
    for place, one in enumerate(files.files):
        merged = v1.IngestionFile(file_id=one.file_id, document_id=one.document_id, source=one.source)
        merged.metadata.CopyFrom(files.metadata)
        merged.metadata.MergeFrom(one.metadata)
        result.append((merged, f"files.files[{place}]"))
    return result


def document_id_of(url: str) -> str:
    """Identifier of a document that is known by its URL: the URL, or a hash of a long one."""
    if is_data(url) or len(url) > MAX_DOCUMENT_ID:
        return f"url-{hashlib.sha256(url.encode()).hexdigest()[:32]}"
    return url


def _document(document: v1.RAGDocument, place: int) -> Item:
    source = source_of(document, field=f"documents.documents[{place}]")
    return Item(place=place, document_id=source.document_id, file_id="", document=document)


def _url(url: v1.URL, urls: v1.IngestionUrls, place: int) -> Item:
    if not url.uri:
        field = f"urls.urls[{place}].uri"
        raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
    document_id = document_id_of(url.uri)
    document = v1.RAGDocument(document_id=document_id, content=v1.ContentOrUrl(url=url), metadata=urls.metadata)
    return Item(place=place, document_id=document_id, file_id="", document=document)


def _check(request: v1.CreateIngestionJobRequest, bank: Bank) -> None:
    """Refuse what no job can be.

    Raises:
        InvalidArgumentError: If a value is missing or out of range.
        FailedPreconditionError: If the bank is of another kind.
    """
    source = request.WhichOneof("source")
    if source is None:
        message = "give documents, files, urls or reembed"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field="source")
    if source == "reembed" and bank.kind != "vector":
        message = f"memory bank {bank.identifier!r} is of kind {bank.kind} and has no embeddings"
        raise FailedPreconditionError(message)
    check_printable(request.job_id, most=MAX_NAME, field="job_id")
    if request.HasField("ttl_seconds") and not request.ttl_seconds:
        message = "ttl_seconds is 0; give at least 1, or leave it out for ever"
        raise InvalidArgumentError(message, field="ttl_seconds")
    if request.HasField("chunking_strategy"):
        if source == "reembed":
            message = "chunking_strategy: embedding anew cuts nothing; ingest the documents again"
            raise InvalidArgumentError(message, field="chunking_strategy")
        cutting = cutting_of(request.chunking_strategy, bank, window=ANY_WINDOW)
        if cutting.context_prompt:
            check_prompt(cutting.context_prompt)


def _check_items(items: Sequence[Item], bank: Bank) -> None:
    """Refuse none or too many documents, one given twice, or metadata that break the bank's declarations."""
    if not 1 <= len(items) <= MAX_ITEMS:
        raise InvalidArgumentError(f"{len(items)} documents are given; allowed: 1 to {MAX_ITEMS}", field="source")
    seen: set[str] = set()
    for item in items:
        if item.document_id in seen:
            message = f"document {item.document_id!r} is given twice: which one is to stay cannot be known"
            raise InvalidArgumentError(message, field="source")
        seen.add(item.document_id)
        metadata = metadata_of(item.document.metadata, field=f"metadata of {item.document_id!r}")
        facts_of(metadata, fields=bank.fields, field="metadata")


def _digest(request: v1.CreateIngestionJobRequest) -> str:
    content = v1.CreateIngestionJobRequest()
    content.CopyFrom(request)
    content.ClearField("request_id")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).hexdigest()


def _required(job_id: str) -> None:
    if not job_id:
        raise InvalidArgumentError("job_id is empty", reason="MISSING_FIELD", field="job_id")

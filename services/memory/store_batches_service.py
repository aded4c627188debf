"""Calls of vector stores about batches of files."""

import sqlalchemy as sa

from llamastack import v1
from services.memory import requests
from services.memory.bank import Bank
from services.memory.store_files import IN_PROGRESS, Attachment, attachment_of, file_message
from services.memory.store_parts import StoreParts, file_page, once
from services.memory.store_progress import BatchRow
from services.memory.tables import batch_files
from services.runtime.background import wait
from services.runtime.calls import current_tenant
from services.runtime.pages import decode_token, encode_token, page_size
from services.runtime.stream import EventWriter, RpcContext
from stack_client.calls import terminal_events
from stack_client.errors import InvalidArgumentError, OutOfRangeError

MAX_BATCH = 2000
POLL_SECONDS = 0.5
"""How often a watcher looks for what jobs did."""


class StoreBatchCalls:
    """Part of `VectorStoresService`."""

    _parts: StoreParts

    async def CreateVectorStoreFileBatch(
        self, request: v1.CreateVectorStoreFileBatchRequest, context: RpcContext
    ) -> v1.CreateVectorStoreFileBatchResponse:
        """Attach many files and begin to load them."""
        parts, tenant = self._parts, current_tenant()
        bank = await parts.stores.alive(request.vector_store_id, tenant=tenant)
        wanted = _attachments(request, bank)
        field = "file_ids" if request.file_ids else "files"
        await parts.progress.advance(bank.number)
        await parts.files.check_uploaded([one.file_id for one in wanted], tenant=tenant, field=field)
        async with parts.database.write() as connection:
            await once(connection, parts.database, request)
            answer = await requests.recall(
                connection, request, tenant=tenant, answer=v1.CreateVectorStoreFileBatchResponse
            )
            if answer is None:
                batch = await parts.progress.create_batch(connection, bank, wanted)
                (message,) = await parts.progress.batch_messages(bank, [batch], connection=connection)
                answer = v1.CreateVectorStoreFileBatchResponse(vector_store_file_batch=message)
                await requests.remember(connection, request, tenant=tenant, answer=answer, bank=bank.number)
        parts.jobs.signals.tell(0)
        return answer

    async def GetVectorStoreFileBatch(
        self, request: v1.GetVectorStoreFileBatchRequest, context: RpcContext
    ) -> v1.GetVectorStoreFileBatchResponse:
        """Return one."""
        bank, batch = await self._batch(request.vector_store_id, request.batch_id)
        (message,) = await self._parts.progress.batch_messages(bank, [batch])
        return v1.GetVectorStoreFileBatchResponse(vector_store_file_batch=message)

    async def ListVectorStoreFileBatches(
        self, request: v1.ListVectorStoreFileBatchesRequest, context: RpcContext
    ) -> v1.ListVectorStoreFileBatchesResponse:
        """List, newest first."""
        parts, size = self._parts, page_size(request)
        bank = await parts.stores.get(request.vector_store_id, tenant=current_tenant())
        scope = f"ListVectorStoreFileBatches {bank.number}"
        token = decode_token(request.page_token, scope=scope)
        await parts.progress.advance(bank.number)
        rows = await parts.progress.batch_page(bank, before=int(token) if token else None, limit=size + 1)
        next_token = encode_token(str(rows[size - 1]["number"]), scope=scope) if len(rows) > size else ""
        data = await parts.progress.batch_messages(bank, rows[:size])
        return v1.ListVectorStoreFileBatchesResponse(data=data, next_page_token=next_token)

    async def CancelVectorStoreFileBatch(
        self, request: v1.CancelVectorStoreFileBatchRequest, context: RpcContext
    ) -> v1.CancelVectorStoreFileBatchResponse:
        """Ask for its end."""
        parts = self._parts
        bank, _batch = await self._batch(request.vector_store_id, request.batch_id)
        batch = await parts.progress.cancel_batch(bank, request.batch_id)
        (message,) = await parts.progress.batch_messages(bank, [batch])
        return v1.CancelVectorStoreFileBatchResponse(vector_store_file_batch=message)

    async def ListVectorStoreFileBatchFiles(
        self, request: v1.ListVectorStoreFileBatchFilesRequest, context: RpcContext
    ) -> v1.ListVectorStoreFileBatchFilesResponse:
        """List the files of a batch that are attached."""
        bank, batch = await self._batch(request.vector_store_id, request.batch_id)
        scope = f"ListVectorStoreFileBatchFiles {batch['number']}"
        only = sa.select(batch_files.c.file_id).where(batch_files.c.batch == batch["number"])
        page, token = await file_page(self._parts, bank, request, scope=scope, only=only)
        data = [file_message(bank, row) for row in page]
        return v1.ListVectorStoreFileBatchFilesResponse(data=data, next_page_token=token)

    # A coroutine that writes, not a generator: `EventWriter` sends heartbeats beside it.
    async def WatchVectorStoreFileBatch(
        self, request: v1.WatchVectorStoreFileBatchRequest, context: RpcContext
    ) -> None:
        """Replay a batch's events and follow it."""
        parts, after = self._parts, request.resume_after_sequence
        bank, batch = await self._batch(request.vector_store_id, request.batch_id)
        if after > batch["last_sequence"]:
            message = f"resume_after_sequence is {after}; the batch's last event has {batch['last_sequence']}"
            raise OutOfRangeError(message, field="resume_after_sequence")
        writer = EventWriter(
            context,
            v1.WatchVectorStoreFileBatchResponse,
            draining=parts.draining,
            grace_seconds=parts.grace_seconds,
            last_sequence=after,
        )
        await writer.run(self._follow_batch(bank, batch, writer, after=after))

    async def _follow_batch(
        self, bank: Bank, batch: BatchRow, writer: EventWriter[v1.WatchVectorStoreFileBatchResponse], *, after: int
    ) -> None:
        parts, number = self._parts, batch["number"]
        if batch["status"] != IN_PROGRESS:
            after = min(after, batch["last_sequence"] - 1)  # each stream ends with the terminal event, also a late one
        last = terminal_events(v1.WatchVectorStoreFileBatchResponse.DESCRIPTOR)
        with parts.jobs.signals.listening(0) as changed:  # told of every change of a job in this process
            while True:
                changed.clear()
                await parts.progress.advance(bank.number)
                events = await parts.progress.events(number, after=after)
                for event in events:
                    await writer.forward(event)
                    after = event.sequence
                    if event.WhichOneof("event") in last:
                        return
                if not events:
                    await parts.progress.batch(bank, batch["batch_id"])  # the store may have been deleted
                    await wait(changed, seconds=POLL_SECONDS)

    async def _batch(self, store_id: str, batch_id: str) -> tuple[Bank, BatchRow]:
        """A batch and its store, with everything that its jobs have reported."""
        parts = self._parts
        bank = await parts.stores.get(store_id, tenant=current_tenant())
        if not batch_id:
            raise InvalidArgumentError("batch_id is empty", reason="MISSING_FIELD", field="batch_id")
        await parts.progress.advance(bank.number)
        return bank, await parts.progress.batch(bank, batch_id)


def _attachments(request: v1.CreateVectorStoreFileBatchRequest, bank: Bank) -> list[Attachment]:
    """The files of a batch, checked.

    Raises:
        InvalidArgumentError: If there are none or too many, both forms, or a file is given twice or wrong.
    """
    if bool(request.file_ids) == bool(request.files):
        message = "give file_ids or files, one of them"
        raise InvalidArgumentError(message, reason="" if request.files else "MISSING_FIELD", field="file_ids")
    if request.files and (request.HasField("attributes") or request.HasField("chunking_strategy")):
        message = "attributes and chunking_strategy belong to file_ids; with files, give each its own"
        field = "attributes" if request.HasField("attributes") else "chunking_strategy"
        raise InvalidArgumentError(message, field=field)
    if request.file_ids:
        given = [(file_id, request.attributes, request.chunking_strategy, "") for file_id in request.file_ids]
    else:
        given = [
            (one.file_id, one.attributes, one.chunking_strategy, f"files[{place}].")
            for place, one in enumerate(request.files)
        ]
    if len(given) > MAX_BATCH:
        message = f"the batch has {len(given)} files; at most {MAX_BATCH} are allowed: send several"
        raise InvalidArgumentError(message, field="file_ids" if request.file_ids else "files")
    wanted = [
        attachment_of(bank, file_id, attributes, strategy, field=field)
        for file_id, attributes, strategy, field in given
    ]
    names = [one.file_id for one in wanted]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        message = f"file {twice!r} is given twice; which settings are to count cannot be known"
        raise InvalidArgumentError(message, field="file_ids" if request.file_ids else "files")
    return wanted

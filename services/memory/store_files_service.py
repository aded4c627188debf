"""Calls of vector stores about single files."""

import numpy as np

from llamastack import v1
from services.memory import requests
from services.memory.bank import Bank
from services.memory.hits import chunk_metadata, metadata_of
from services.memory.store_files import COMPLETED, attachment_of, check_attributes, file_message
from services.memory.store_parts import StoreParts, file_page, once
from services.runtime.calls import current_tenant
from services.runtime.pages import decode_token, encode_token, page_size
from services.runtime.stream import RpcContext
from stack_client.content import struct
from stack_client.errors import FailedPreconditionError, InvalidArgumentError


class StoreFileCalls:
    """Part of `VectorStoresService`."""

    _parts: StoreParts

    async def CreateVectorStoreFile(
        self, request: v1.CreateVectorStoreFileRequest, context: RpcContext
    ) -> v1.CreateVectorStoreFileResponse:
        """Attach a file and begin to load it."""
        parts, tenant = self._parts, current_tenant()
        bank = await parts.stores.alive(request.vector_store_id, tenant=tenant)
        wanted = attachment_of(bank, request.file_id, request.attributes, request.chunking_strategy)
        await parts.progress.advance(bank.number)
        await parts.files.check_uploaded([request.file_id], tenant=tenant, field="file_id")
        async with parts.database.write() as connection:
            await once(connection, parts.database, request)
            answer = await requests.recall(connection, request, tenant=tenant, answer=v1.CreateVectorStoreFileResponse)
            if answer is None:
                rows = await parts.files.attach(connection, bank, [wanted])
                message = file_message(bank, rows[request.file_id])
                answer = v1.CreateVectorStoreFileResponse(vector_store_file=message)
                await requests.remember(connection, request, tenant=tenant, answer=answer, bank=bank.number)
        parts.jobs.signals.tell(0)
        return answer

    async def ListVectorStoreFiles(
        self, request: v1.ListVectorStoreFilesRequest, context: RpcContext
    ) -> v1.ListVectorStoreFilesResponse:
        """List by time of attachment."""
        bank = await self._current(request.vector_store_id)
        page, token = await file_page(self._parts, bank, request, scope=f"ListVectorStoreFiles {bank.number}")
        return v1.ListVectorStoreFilesResponse(data=[file_message(bank, row) for row in page], next_page_token=token)

    async def GetVectorStoreFile(
        self, request: v1.GetVectorStoreFileRequest, context: RpcContext
    ) -> v1.GetVectorStoreFileResponse:
        """Return one."""
        bank = await self._current(request.vector_store_id)
        row = await self._parts.files.get(bank, _required(request.file_id))
        return v1.GetVectorStoreFileResponse(vector_store_file=file_message(bank, row))

    async def UpdateVectorStoreFile(
        self, request: v1.UpdateVectorStoreFileRequest, context: RpcContext
    ) -> v1.UpdateVectorStoreFileResponse:
        """Replace attributes."""
        parts = self._parts
        bank = await parts.stores.alive(request.vector_store_id, tenant=current_tenant())
        await parts.progress.advance(bank.number)
        attributes = check_attributes(request.attributes, bank, field="attributes")
        row = await parts.files.set_attributes(bank, _required(request.file_id), attributes)
        return v1.UpdateVectorStoreFileResponse(vector_store_file=file_message(bank, row))

    async def DeleteVectorStoreFile(
        self, request: v1.DeleteVectorStoreFileRequest, context: RpcContext
    ) -> v1.DeleteVectorStoreFileResponse:
        """Detach a file and delete its chunks."""
        bank = await self._current(request.vector_store_id)
        await self._parts.files.detach(bank, _required(request.file_id))
        await self._parts.progress.advance(bank.number)
        return v1.DeleteVectorStoreFileResponse(id=request.file_id, deleted=True)

    async def ListVectorStoreFileContent(
        self, request: v1.ListVectorStoreFileContentRequest, context: RpcContext
    ) -> v1.ListVectorStoreFileContentResponse:
        """List the chunks of a file."""
        parts, bank = self._parts, await self._current(request.vector_store_id)
        size, file_id = page_size(request), _required(request.file_id)
        row = await parts.files.get(bank, file_id)
        if row["status"] != COMPLETED:
            message = f"file {file_id!r} is not loaded; its status and last_error say why"
            raise FailedPreconditionError(message, field="file_id")
        scope = f"ListVectorStoreFileContent {bank.number} {row['number']}"
        after = decode_token(request.page_token, scope=scope)
        document = (await parts.documents.get(bank, [file_id])).get(file_id)
        found = await parts.documents.chunks_of(bank, file_id, after=int(after or -1), limit=size + 1)
        token = encode_token(str(found[size - 1]["place"]), scope=scope) if len(found) > size else ""
        answer = v1.ListVectorStoreFileContentResponse(
            next_page_token=token, file_id=file_id, attributes=struct(row["attributes"])
        )
        if document is not None:
            answer.filename = document["source"]
        for chunk in found[:size]:
            content = answer.data.add(text=chunk["text"])
            if request.include_embeddings and chunk["embedding"] is not None:
                content.embedding.extend(np.frombuffer(chunk["embedding"], "<f4").tolist())
            if request.include_metadata and document is not None:
                named = {**chunk, "document_id": file_id, "source": document["source"]}
                content.chunk_metadata.CopyFrom(chunk_metadata(bank, named))
                facts = metadata_of(chunk)
                if facts is not None:
                    content.metadata.CopyFrom(facts)
        return answer

    async def _current(self, store_id: str) -> Bank:
        """A store, with everything that its jobs have reported."""
        bank = await self._parts.stores.get(store_id, tenant=current_tenant())
        await self._parts.progress.advance(bank.number)
        return bank


def _required(file_id: str) -> str:
    if not file_id:
        raise InvalidArgumentError("file_id is empty", reason="MISSING_FIELD", field="file_id")
    return file_id

"""Document calls of the memory service: insert, update, get, list, delete."""

from typing import Any

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.database import Database
from services.memory.documents import DocumentRow, DocumentStore, Stored, etag
from services.memory.filters import parse
from services.memory.ingestor import Ingestor, Refused
from services.memory.requests import recall, remember
from services.memory.text import DraftDocument
from services.runtime.calls import current_tenant
from services.runtime.moments import SECOND, now, stamp
from services.runtime.pages import decode_token, encode_token, page_size
from services.runtime.stream import RpcContext
from stack_client.content import content, struct
from stack_client.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    StackError,
    UnsupportedError,
    to_error_message,
)

MAX_DOCUMENTS = 1000
KINDS = ("vector", "keyword")


class DocumentCalls:
    """Part of `MemoryBanksService`.

    Args:
        rest: Of the other parts.
        documents: What is in banks.
        ingestor: Reads and stores what callers send.
        named: Of the other parts.
    """

    _database: Database
    _banks: BankStore

    def __init__(
        self,
        *rest: Any,  # noqa: ANN401 (of the other parts)
        documents: DocumentStore,
        ingestor: Ingestor,
        **named: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*rest, **named)
        self._documents = documents
        self._ingestor = ingestor

    async def InsertDocuments(
        self, request: v1.InsertDocumentsRequest, context: RpcContext
    ) -> v1.InsertDocumentsResponse:
        """Store documents, each in a transaction of its own."""
        tenant = current_tenant()
        _check_count(len(request.documents), field="documents")
        expires_at = expiry(request.ttl_seconds if request.HasField("ttl_seconds") else None)
        async with self._database.read() as connection:
            before = await recall(connection, request, tenant=tenant, answer=v1.InsertDocumentsResponse)
        if before is not None:
            return before
        bank = await self._banks.require(request.bank_id, *KINDS, tenant=tenant)
        answer = v1.InsertDocumentsResponse()
        for outcome in await self._ingestor.put_all(bank, request.documents, expires_at=expires_at, refused=own_fault):
            if isinstance(outcome, Refused):
                if len(request.documents) == 1:
                    raise outcome.error
                error = to_error_message(outcome.error)
                answer.failures.append(v1.DocumentFailure(document_id=outcome.document_id, error=error))
            else:
                count(answer, outcome)
        async with self._database.write() as connection:
            await remember(connection, request, tenant=tenant, answer=answer, bank=bank.number)
        return answer

    async def UpdateDocuments(
        self, request: v1.UpdateDocumentsRequest, context: RpcContext
    ) -> v1.UpdateDocumentsResponse:
        """Change documents that exist, all or none."""
        tenant = current_tenant()
        _check_count(len(request.documents), field="documents")
        async with self._database.read() as connection:
            before = await recall(connection, request, tenant=tenant, answer=v1.UpdateDocumentsResponse)
        if before is not None:
            return before
        bank = await self._banks.require(request.bank_id, *KINDS, tenant=tenant)
        ids = [change.document_id for change in request.documents]
        if len(set(ids)) < len(ids):
            raise InvalidArgumentError("documents: one document is named twice", field="documents")
        stored = await self._documents.get(bank, ids)
        drafts = [await self._changed(bank, change, stored.get(change.document_id)) for change in request.documents]
        await self._documents.put_all(
            bank, drafts, etags={change.document_id: change.etag for change in request.documents}
        )
        now_stored = await self._documents.get(bank, ids)
        answer = v1.UpdateDocumentsResponse(documents=[document_message(now_stored[one]) for one in ids])
        async with self._database.write() as connection:
            await remember(connection, request, tenant=tenant, answer=answer, bank=bank.number)
        return answer

    async def GetDocuments(self, request: v1.GetDocumentsRequest, context: RpcContext) -> v1.GetDocumentsResponse:
        """Return documents with their content."""
        _check_count(len(request.document_ids), field="document_ids")
        bank = await self._banks.require(request.bank_id, *KINDS, tenant=current_tenant())
        found = await self._documents.get(bank, request.document_ids)
        missing = [one for one in dict.fromkeys(request.document_ids) if one not in found]
        data = []
        for document_id in dict.fromkeys(request.document_ids):
            if document_id in found:
                message = document_message(found[document_id])
                text = found[document_id]["content"] or await self._joined(bank, document_id)
                message.content.CopyFrom(content(text))
                data.append(message)
        return v1.GetDocumentsResponse(documents=data, missing_document_ids=missing)

    async def ListDocuments(self, request: v1.ListDocumentsRequest, context: RpcContext) -> v1.ListDocumentsResponse:
        """List documents without their content."""
        bank = await self._banks.require(request.bank_id, *KINDS, tenant=current_tenant())
        where = parse(request.filter, fields=bank.fields, field="filter")
        scope = f"ListDocuments {bank.number} {where!r}"
        after = int(decode_token(request.page_token, scope=scope) or 0)
        size = page_size(request)
        rows = await self._documents.page(bank, where=where, after=after, limit=size + 1)
        token = encode_token(str(rows[size - 1]["number"]), scope=scope) if len(rows) > size else ""
        return v1.ListDocumentsResponse(data=[document_message(row) for row in rows[:size]], next_page_token=token)

    async def DeleteDocuments(
        self, request: v1.DeleteDocumentsRequest, context: RpcContext
    ) -> v1.DeleteDocumentsResponse:
        """Delete documents by id or by filter."""
        bank = await self._banks.require(request.bank_id, *KINDS, tenant=current_tenant())
        where = parse(request.filter, fields=bank.fields, field="filter")
        if not request.document_ids and where is None:
            message = "give document_ids or a filter; to delete everything, unregister the bank"
            raise InvalidArgumentError(message, field="document_ids")
        if len(request.document_ids) > MAX_DOCUMENTS:
            message = f"document_ids has {len(request.document_ids)}; at most {MAX_DOCUMENTS} are allowed"
            raise InvalidArgumentError(message, field="document_ids")
        gone = await self._documents.delete(bank, document_ids=request.document_ids, where=where)
        return v1.DeleteDocumentsResponse(document_ids=gone[:MAX_DOCUMENTS], deleted_count=len(gone))

    async def _changed(self, bank: Bank, change: v1.DocumentChange, row: DocumentRow | None) -> DraftDocument:
        if row is None:
            raise NotFoundError(f"no document {change.document_id!r} in bank {bank.identifier!r}; nothing was changed")
        document = v1.RAGDocument(document_id=change.document_id, metadata=struct(row["metadata"]))
        if change.HasField("metadata"):
            document.metadata.CopyFrom(change.metadata)
        if change.HasField("mime_type") or row["mime_type"]:
            document.mime_type = change.mime_type if change.HasField("mime_type") else row["mime_type"]
        if change.content.WhichOneof("form") is not None:
            document.content.CopyFrom(change.content)
        else:
            document.content.content.CopyFrom(content(row["content"] or await self._joined(bank, change.document_id)))
        return await self._ingestor.draft(bank, document, expires_at=row["expires_at"])

    async def _joined(self, bank: Bank, document_id: str) -> str:
        """The text of a document that came as chunks."""
        return "\n".join(row["text"] for row in await self._documents.chunks_of(bank, document_id))


def own_fault(error: StackError) -> bool:
    """Whether an error is the fault of one document, so that the others can be stored."""
    if isinstance(error, ResourceExhaustedError):
        return error.reason == "MESSAGE_TOO_LARGE"
    return isinstance(error, InvalidArgumentError | PermissionDeniedError | UnsupportedError)


def count(answer: v1.InsertDocumentsResponse, stored: Stored) -> None:
    """Add a document to an answer."""
    setattr(answer, stored.status, getattr(answer, stored.status) + 1)
    answer.chunks += stored.chunks


def document_message(row: DocumentRow) -> v1.StoredDocument:
    """A document as callers see it, without its content."""
    return v1.StoredDocument(
        document_id=row["document_id"],
        mime_type=row["mime_type"],
        metadata=struct(row["metadata"]) if row["metadata"] else None,
        chunk_count=row["chunk_count"],
        token_count=row["token_count"],
        content_hash=row["content_hash"],
        etag=etag(row),
        created_at=stamp(row["created_at"]),
        updated_at=stamp(row["updated_at"]),
        expires_at=stamp(row["expires_at"]),
        source=row["source"],
        file_id=row["file_id"],
        source_hash=row["source_hash"],
    )


def expiry(ttl_seconds: int | None) -> int | None:
    """When a life of some seconds ends.

    Raises:
        InvalidArgumentError: If it is 0.
    """
    if ttl_seconds is None:
        return None
    if ttl_seconds < 1:
        message = "ttl_seconds is 0; give at least 1, or leave it out for ever"
        raise InvalidArgumentError(message, field="ttl_seconds")
    return now() + ttl_seconds * SECOND


def _check_count(count_: int, *, field: str) -> None:
    if not 1 <= count_ <= MAX_DOCUMENTS:
        reason = "" if count_ else "MISSING_FIELD"
        message = f"{field} has {count_}; allowed: 1 to {MAX_DOCUMENTS}"
        raise InvalidArgumentError(message, reason=reason, field=field)

"""The RPC edge of the files."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from llamastack import v1
from services.memory import requests
from services.memory.database import Database
from services.memory.files import FileFacts, FileRow, FileStore, Upload, file_message, too_large
from services.runtime.calls import current_tenant
from services.runtime.pages import decode_token, encode_token, page_size
from services.runtime.stream import EventWriter, RpcContext
from stack_client.errors import InvalidArgumentError, StackError

PIECE = 256 * 1024
MAX_NAME = 255
DRAIN_SECONDS = 1.0
EXPIRY_SECONDS = (3600, 2_592_000)
# What batches give is written by the gateway; whether a user may say so is the matter of its HTTP side.
_UPLOADS = (*range(v1.FILE_PURPOSE_ASSISTANTS, v1.FILE_PURPOSE_EVALS + 1), v1.FILE_PURPOSE_BATCH_OUTPUT)


class FilesService(v1.FilesServiceServicer):
    """`llamastack.v1.FilesService`.

    Args:
        database: Where files are.
        files: Those that there are.
        draining: Set when the service is about to shut down.
        grace_seconds: How long streams may go on then.
    """

    def __init__(
        self, database: Database, files: FileStore, *, draining: asyncio.Event, grace_seconds: float = 0.0
    ) -> None:
        self._database = database
        self._files = files
        self._draining = draining
        self._grace = grace_seconds

    async def UploadFile(
        self, request_iterator: AsyncIterator[v1.UploadFileRequest], context: RpcContext
    ) -> v1.UploadFileResponse:
        """Take a file."""
        try:
            return await self._upload(request_iterator)
        except StackError:
            await _drain(request_iterator)
            raise

    async def _upload(self, request_iterator: AsyncIterator[v1.UploadFileRequest]) -> v1.UploadFileResponse:
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgumentError("the first message of an upload is its header", field="header")
        header, tenant = first.header, current_tenant()
        facts = _facts(header, tenant=tenant)
        if header.bytes > self._files.max_bytes:
            raise too_large(header.bytes, self._files.max_bytes)
        async with self._files.upload() as upload:
            await _receive(request_iterator, upload, header)
            await upload.finish()
            async with self._database.write() as connection:
                answer = await requests.recall(connection, header, tenant=tenant, answer=v1.UploadFileResponse)
                if answer is not None and answer.file.sha256 != upload.sha256:
                    message = f"request_id {header.request_id!r} was used before with another file; choose a new one"
                    raise InvalidArgumentError(message, reason="REQUEST_ID_REUSED", field="header.request_id")
                if answer is None:
                    answer = v1.UploadFileResponse(file=await upload.commit(connection, facts))
                    await requests.remember(connection, header, tenant=tenant, answer=answer, bank=None)
        return answer

    async def ListFiles(self, request: v1.ListFilesRequest, context: RpcContext) -> v1.ListFilesResponse:
        """List by time of upload."""
        size, tenant = page_size(request), current_tenant()
        if bool(request.page_token) + bool(request.after) + bool(request.before) > 1:
            message = "give only one of page_token, after and before"
            raise InvalidArgumentError(message, field="page_token")
        scope = f"ListFiles {request.purpose} {request.order}"
        token = decode_token(request.page_token, scope=scope)
        after = int(token) if token else await self._number(request.after, tenant=tenant, field="after")
        before = await self._number(request.before, tenant=tenant, field="before")
        descending = request.order != v1.SORT_ORDER_ASC
        rows = await self._files.page(
            tenant=tenant,
            purpose=request.purpose,
            after=after,
            before=before,
            descending=descending,
            limit=size if before is not None else size + 1,
        )
        # A page that ends before a file has at least that file behind it.
        more = bool(rows) if before is not None else len(rows) > size
        rows = rows[:size]
        next_token = encode_token(str(rows[-1]["number"]), scope=scope) if more else ""
        return v1.ListFilesResponse(data=[file_message(row) for row in rows], next_page_token=next_token)

    async def GetFile(self, request: v1.GetFileRequest, context: RpcContext) -> v1.GetFileResponse:
        """Return what is known of a file."""
        return v1.GetFileResponse(file=file_message(await self._file(request.file_id)))

    async def DeleteFile(self, request: v1.DeleteFileRequest, context: RpcContext) -> v1.DeleteFileResponse:
        """Delete a file."""
        await self._file(request.file_id)
        await self._files.delete(request.file_id, tenant=current_tenant())
        return v1.DeleteFileResponse(id=request.file_id, deleted=True)

    # A coroutine that writes, not a generator: `EventWriter` sends heartbeats beside it.
    async def DownloadFile(  # type: ignore[override]
        self, request: v1.DownloadFileRequest, context: RpcContext
    ) -> None:
        """Send the content from an offset on."""
        file = await self._file(request.file_id)
        if request.offset > file["bytes"]:
            message = f"offset is {request.offset}; the file has {file['bytes']} bytes"
            raise InvalidArgumentError(message, field="offset")
        writer = EventWriter(context, v1.DownloadFileResponse, draining=self._draining, grace_seconds=self._grace)
        await writer.run(self._send(file, writer, offset=request.offset))

    async def _send(self, file: FileRow, writer: EventWriter[v1.DownloadFileResponse], *, offset: int) -> None:
        await writer.write(file=file_message(file))
        at = 0
        async for part in self._files.parts(file):  # also those before the offset: the hash is of them all
            start = max(offset - at, 0)
            for piece in range(start, len(part), PIECE):
                await writer.write(data=part[piece : piece + PIECE])
            at += len(part)
        await writer.write(completed=v1.FileDownloadEnd(sha256=file["sha256"]))

    async def _file(self, file_id: str) -> FileRow:
        if not file_id:
            raise InvalidArgumentError("file_id is empty", reason="MISSING_FIELD", field="file_id")
        return await self._files.get(file_id, tenant=current_tenant())

    async def _number(self, file_id: str, *, tenant: str, field: str) -> int | None:
        if not file_id:
            return None
        return int((await self._files.get(file_id, tenant=tenant, field=field))["number"])


async def _drain(pieces: AsyncIterator[v1.UploadFileRequest]) -> None:
    """Read what is still coming, for a moment: a client whose writing fails first never learns why it was refused."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in pieces:
                pass


async def _receive(pieces: AsyncIterator[v1.UploadFileRequest], upload: Upload, header: v1.FileUploadHeader) -> None:
    """Take all pieces up to the end.

    Raises:
        InvalidArgumentError: If something else comes, or size or hash differ.
        ResourceExhaustedError: If there are too many.
    """
    async for piece in pieces:
        match piece.WhichOneof("part"):
            case "data" if piece.data:
                await upload.write(piece.data)
            case "data":
                raise InvalidArgumentError("a piece of the file is empty; send at least one byte", field="data")
            case "end":
                if header.HasField("bytes") and upload.bytes != header.bytes:
                    message = f"the header says {header.bytes} bytes; {upload.bytes} came"
                    raise InvalidArgumentError(message, field="header.bytes")
                if piece.end.sha256 and piece.end.sha256.lower() != upload.sha256:
                    message = f"the end says SHA-256 {piece.end.sha256[:64]}; what came has {upload.sha256}"
                    raise InvalidArgumentError(message, field="end.sha256")
                return await _nothing_more(pieces)
            case _:
                raise InvalidArgumentError("after the header come data and one end", field="part")
    raise InvalidArgumentError("the upload ended without its end: nothing was kept; send it again", field="end")


async def _nothing_more(pieces: AsyncIterator[v1.UploadFileRequest]) -> None:
    """Refuse what follows the end; a client that keeps its side open for longer than a moment is not waited for.

    Raises:
        InvalidArgumentError: If another message comes.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for piece in pieces:
                message = (
                    f"{piece.WhichOneof('part') or 'an empty message'} came after the end, which is the last message"
                )
                raise InvalidArgumentError(message, field="part")


def _facts(header: v1.FileUploadHeader, *, tenant: str) -> FileFacts:
    """What a header says.

    Raises:
        InvalidArgumentError: If it is incomplete or out of range.
    """
    name = header.filename
    if not name:
        raise InvalidArgumentError("header.filename is empty", reason="MISSING_FIELD", field="header.filename")
    if len(name) > MAX_NAME or not name.isprintable() or "/" in name or "\\" in name or name in {".", ".."}:
        message = f"header.filename {name[:40]!r}: give a name of at most {MAX_NAME} characters, without folders"
        raise InvalidArgumentError(message, field="header.filename")
    if header.purpose == v1.FILE_PURPOSE_UNSPECIFIED:
        message = "header.purpose is not given; assistants suits documents"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field="header.purpose")
    if header.purpose not in _UPLOADS:
        raise InvalidArgumentError("header.purpose: files of this purpose are not uploaded", field="header.purpose")
    seconds = None
    if header.HasField("expires_after"):
        seconds = header.expires_after.seconds
        low, high = EXPIRY_SECONDS
        if header.expires_after.anchor != "created_at" or not low <= seconds <= high:
            message = f"header.expires_after: give anchor created_at and {low} to {high} seconds"
            raise InvalidArgumentError(message, field="header.expires_after")
    return FileFacts(
        tenant=tenant,
        filename=name,
        purpose=header.purpose,
        mime_type=header.mime_type[:200],
        expires_seconds=seconds,
    )

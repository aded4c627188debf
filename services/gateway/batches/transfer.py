"""The files of batches: the input read piece by piece, outputs written as their lines are read from the database."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

import grpc
import orjson

from llamastack import v1
from services.gateway.batches.execute import tenant_metadata
from services.gateway.batches.rows import Lease, request_id_of
from services.gateway.batches.steps import Done, Steps
from stack_client.calls import EventStream, unary

FILE_SECONDS = 30.0
"""For a question about a file."""
UPLOAD_SECONDS = 3600.0
PIECE = 256 * 1024
"""Bytes sent at a time."""
UNRUN: Mapping[int, tuple[str, str]] = {
    v1.BATCH_STATUS_CANCELLED: ("batch_cancelled", "the batch was cancelled before this request could run"),
    v1.BATCH_STATUS_EXPIRED: ("batch_expired", "the batch's window ended before this request could run"),
}
"""Code and message of requests that never ran, by what became of the batch."""


class Transfer:
    """Files of the memory service, as the tenant of the current call.

    Args:
        channel: To the memory service.
        steps: The lines.
    """

    def __init__(self, channel: grpc.aio.Channel, steps: Steps) -> None:
        self._stub = v1.FilesServiceStub(channel)
        self._steps = steps

    async def get(self, file_id: str) -> v1.File:
        """What is known of a file.

        Raises:
            NotFoundError: If the tenant has none of that id.
        """
        call = self._stub.GetFile(v1.GetFileRequest(file_id=file_id), timeout=FILE_SECONDS, metadata=tenant_metadata())
        response: v1.GetFileResponse = await unary(call)
        return response.file

    async def read(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """The content of a file, in pieces.

        Raises:
            StackError: If it cannot be read.
        """
        call = self._stub.DownloadFile(v1.DownloadFileRequest(file_id=file_id), metadata=tenant_metadata())
        async with EventStream(call) as stream:
            async for event in stream:
                if event.data:
                    yield event.data

    async def write(self, lease: Lease, *, part: str, ending: int) -> str:
        """Write the file of answers or that of errors, once however often it is tried; returns its identifier.

        Args:
            lease: Of the batch.
            part: `output` or `error`.
            ending: What becomes of the batch.

        Raises:
            StackError: If the memory service refuses.
        """
        header = v1.FileUploadHeader(
            filename=f"{lease.batch_id}_{part}.jsonl",
            purpose=v1.FILE_PURPOSE_BATCH_OUTPUT,
            mime_type="application/jsonl",
            request_id=request_id_of(lease.batch_id, part),
        )
        pieces = self._pieces(lease, header, wants_success=part == "output", ending=ending)
        call = self._stub.UploadFile(pieces, timeout=UPLOAD_SECONDS, metadata=tenant_metadata())
        response: v1.UploadFileResponse = await unary(call)
        return response.file.id

    async def _pieces(
        self, lease: Lease, header: v1.FileUploadHeader, *, wants_success: bool, ending: int
    ) -> AsyncIterator[v1.UploadFileRequest]:
        yield v1.UploadFileRequest(header=header)
        digest, buffer = hashlib.sha256(), bytearray()
        async for done in self._steps.outcomes(lease):
            if succeeded(done) is wants_success:
                buffer += output_line(lease.batch_id, done, ending=ending)
            while len(buffer) >= PIECE:
                piece = bytes(buffer[:PIECE])
                del buffer[:PIECE]
                digest.update(piece)
                yield v1.UploadFileRequest(data=piece)
        if buffer:
            digest.update(buffer)
            yield v1.UploadFileRequest(data=bytes(buffer))
        yield v1.UploadFileRequest(end=v1.FileUploadEnd(sha256=digest.hexdigest()))


def succeeded(done: Done) -> bool:
    """Whether a line belongs into the file of answers."""
    return done.status_code is not None and 200 <= done.status_code < 300


def output_line(batch_id: str, done: Done, *, ending: int) -> bytes:
    """A line of an output file, with its end."""
    request_id = request_id_of(batch_id, done.place)
    response = error = None
    if done.status_code is None:
        code, message = UNRUN[ending]
        error = {"code": code, "message": message}
    else:
        body = orjson.Fragment(done.answer)
        response = {"status_code": done.status_code, "request_id": request_id, "body": body}
    name = f"batch_req_{request_id.replace('-', '')}"
    line = {"id": name, "custom_id": done.custom_id, "response": response, "error": error}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

"""`client.files`: files that the stack keeps."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, EventStream, every_page, unary
from stack_client.errors import InvalidArgumentError

PIECE = 1 << 18
"""Bytes sent at a time."""


class Files:
    """Calls of `FilesService`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.FilesServiceStub(channel)

    async def upload(
        self,
        source: Path | str | bytes,
        *,
        filename: str = "",
        purpose: str = "assistants",
        mime_type: str = "",
        expires_seconds: int | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.File:
        """Store a file; the service checks that every byte arrived.

        Args:
            source: A path, or the content itself as bytes.
            filename: Its name; empty means the path's last part.
            purpose: `assistants`, `batch`, `fine-tune`, `vision`, `user_data` or `evals`.
            mime_type: Media type; empty means found by content.
            expires_seconds: When it is deleted, counted from now, 3600 to 2592000; None means never.
            timeout: Seconds until the call gives up.

        Raises:
            StackError: If the call fails.
        """
        name = filename or ("" if isinstance(source, bytes) else Path(source).name)
        if not name:
            raise InvalidArgumentError("bytes have no name; give filename", field="filename")
        expires = v1.FileExpiration(anchor="created_at", seconds=expires_seconds) if expires_seconds else None
        header = v1.FileUploadHeader(
            filename=name, purpose=_purpose(purpose), mime_type=mime_type, expires_after=expires
        )
        response: v1.UploadFileResponse = await unary(self._stub.UploadFile(_pieces(source, header), timeout=timeout))
        return response.file

    async def list(self, *, purpose: str = "", timeout: float = DEFAULT_TIMEOUT) -> list[v1.File]:
        """All files, newest first.

        Raises:
            StackError: If the call fails.
        """
        request = v1.ListFilesRequest(purpose=_purpose(purpose) if purpose else v1.FILE_PURPOSE_UNSPECIFIED)
        return await every_page(self._stub.ListFiles, request, timeout=timeout)

    async def get(self, file_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.File:
        """One file.

        Raises:
            NotFoundError: If there is none of that identifier.
        """
        response: v1.GetFileResponse = await unary(
            self._stub.GetFile(v1.GetFileRequest(file_id=file_id), timeout=timeout)
        )
        return response.file

    async def delete(self, file_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Delete a file; what was made of it stays.

        Raises:
            NotFoundError: If there is none of that identifier.
        """
        await unary(self._stub.DeleteFile(v1.DeleteFileRequest(file_id=file_id), timeout=timeout))

    async def download(self, file_id: str, *, timeout: float | None = None) -> bytes:
        """A file's content.

        Raises:
            NotFoundError: If there is none of that identifier.
            StackError: If the call fails.
        """
        request = v1.DownloadFileRequest(file_id=file_id)
        async with EventStream(self._stub.DownloadFile(request, timeout=timeout)) as stream:
            return b"".join([event.data async for event in stream])


def _purpose(name: str) -> "v1.FilePurpose.ValueType":
    known = {one.removeprefix("FILE_PURPOSE_").lower(): one for one in v1.FilePurpose.keys()}  # noqa: SIM118 (an enum)
    found = known.get(name.replace("-", "_"))
    if found is None or name == "unspecified":
        names = ", ".join(sorted(set(known) - {"unspecified"}))
        raise InvalidArgumentError(f"no purpose {name!r}; there are {names}", field="purpose")
    return v1.FilePurpose.Value(found)


async def _pieces(source: Path | str | bytes, header: v1.FileUploadHeader) -> AsyncIterator[v1.UploadFileRequest]:
    yield v1.UploadFileRequest(header=header)
    digest = hashlib.sha256()
    if isinstance(source, bytes):
        for start in range(0, len(source), PIECE):
            piece = source[start : start + PIECE]
            digest.update(piece)
            yield v1.UploadFileRequest(data=piece)
    else:
        with Path(source).open("rb") as file:  # noqa: ASYNC230 (pieces of a quarter megabyte)
            while piece := file.read(PIECE):
                digest.update(piece)
                yield v1.UploadFileRequest(data=piece)
    yield v1.UploadFileRequest(end=v1.FileUploadEnd(sha256=digest.hexdigest()))

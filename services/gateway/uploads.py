"""Multipart forms with one file: read as they come into a spool, bounded in size and time.

A form's parts come in any order, and what is said of a file may stand behind it; so the file is spooled, past a
megabyte on disk, and goes on to its service once everything is known.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from services.gateway.body import UnknownEncodingError, next_piece, too_large
from services.gateway.request import Request
from stack_client.errors import InvalidArgumentError

_PART_BYTES = 64 * 1024
_MOST_FIELDS = 32
_AROUND_FILE = 256 * 1024
"""Bytes of a body that may be there beside the file."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form that was read."""

    file: UploadFile
    """Rewound; deleted when the form is left."""
    filename: str
    """Its last part, without folders."""
    mime_type: str
    """As the client says; empty where it says nothing of use."""
    size: int
    """Bytes of the file."""
    fields: Mapping[str, str]
    """The other parts."""


@asynccontextmanager
async def form_with_file(request: Request, *, most: int, seconds: float) -> AsyncIterator[Form]:
    """Read the form of a request whose route is raw.

    Args:
        request: With ASGI's `receive`.
        most: Largest file in bytes.
        seconds: Time that the client has for each piece.

    Raises:
        InvalidArgumentError: It is no form, ends too early, or has not exactly one `file`.
        ResourceExhaustedError: It is larger than allowed.
        SlowClientError: A piece did not come in time.
        CancelledError: The client went away.
    """
    data = await _parse(request, most=most, seconds=seconds)
    try:
        form = _checked(data)
        if form.size > most:
            raise too_large(most)
        yield form
    finally:
        await data.close()


async def _parse(request: Request, *, most: int, seconds: float) -> FormData:
    headers = request.headers
    if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidArgumentError("content-type: send the file as multipart/form-data", field="content-type")
    if headers.get("content-encoding", "identity").lower() not in {"", "identity"}:
        raise UnknownEncodingError("content-encoding: uploads are not unpacked; send the file as it is")
    announced = headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > most + _AROUND_FILE:
        raise too_large(most)
    parser = _Parser(
        Headers(dict(headers)),
        _body(request, most=most + _AROUND_FILE, seconds=seconds),
        max_files=1,
        max_fields=_MOST_FIELDS,
        max_part_size=_PART_BYTES,
    )
    try:
        data = await parser.parse()
    except MultiPartException as error:
        raise InvalidArgumentError(f"the body is no valid multipart form: {error.message}") from None
    if not parser.ended:
        await parser.discard()
        raise InvalidArgumentError("the form ends before its last boundary: nothing was kept; send it again")
    return data


class _Parser(MultiPartParser):
    """Knows whether the form was whole."""

    ended = False

    def on_end(self) -> None:
        self.ended = True

    async def discard(self) -> None:
        """Let go of a file whose form is not whole, also where its part never ended."""
        for file in self._files_to_close_on_error:
            file.close()


async def _body(request: Request, *, most: int, seconds: float) -> AsyncGenerator[bytes, None]:
    receive = request.receive
    assert receive is not None
    size, more = 0, True
    while more:
        piece, more = await next_piece(receive, seconds)
        size += len(piece)
        if size > most:
            raise too_large(most)
        yield piece


def _checked(data: FormData) -> Form:
    fields: dict[str, str] = {}
    found: UploadFile | None = None
    for name, value in data.multi_items():
        if name == "file":
            if not isinstance(value, UploadFile):
                raise InvalidArgumentError("file: this part has no filename, so it is no file", field="file")
            found = value
        elif isinstance(value, UploadFile):
            raise InvalidArgumentError(f"{name}: only the part `file` may be a file", field=name)
        elif name in fields:
            raise InvalidArgumentError(f"{name}: comes twice", field=name)
        else:
            fields[name] = value
    if found is None:
        raise InvalidArgumentError("file: missing", field="file", reason="MISSING_FIELD")
    filename = (found.filename or "").replace("\\", "/").rpartition("/")[2]
    if not filename:
        raise InvalidArgumentError("file: its part has an empty filename", field="file", reason="MISSING_FIELD")
    mime_type = (found.content_type or "").partition(";")[0].strip().lower()
    return Form(
        file=found,
        filename=filename,
        mime_type="" if mime_type == "application/octet-stream" else mime_type,
        size=found.size or 0,
        fields=fields,
    )

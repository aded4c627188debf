"""Files: taking them in as forms, listing, and giving them out."""

from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import orjson
from google.protobuf.message import Message

from llamastack import v1
from services.gateway.edge import Edge, whole_number
from services.gateway.request import EmptyReply, JsonReply, Reply, Request, StreamReply
from services.gateway.routes.pages import page_query, paged_list
from services.gateway.routing import OPENAI, Route
from services.gateway.uploads import Form, form_with_file
from services.gateway.upstream import Events, Rpc
from stack_client.errors import InvalidArgumentError, StackError

UPLOAD = Rpc("FilesService.UploadFile")
LIST = Rpc("FilesService.ListFiles")
DOWNLOAD = Rpc("FilesService.DownloadFile")
PIECE = 256 * 1024
MOST = 10_000
_FIELDS = ("purpose", "expires_after", "expires_after[anchor]", "expires_after[seconds]")
_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""What clients upload for; files of other purposes are written by services."""
_SAFE_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_. ()+,")


def routes(edge: Edge) -> list[Route]:
    """The rows."""

    async def upload(request: Request) -> Reply:
        edge.require(UPLOAD)
        config = edge.config
        async with form_with_file(request, most=config.max_upload_bytes, seconds=config.read_seconds) as form:
            header = _header(edge, form, request)
            try:
                response = await edge.upstream.send(UPLOAD, _messages(form, header), request=request)
            except StackError as error:  # clients know no header
                field = error.field.removeprefix("header.")
                error.field = "file" if field == "filename" else field
                error.message = error.message.removeprefix("header.")
                raise
        return JsonReply(value=edge.encode(response.file))

    async def listed(request: Request) -> Reply:
        return await paged_list(edge, LIST, request, write=edge.encode, default=MOST, most=MOST)

    async def content(request: Request) -> Reply:
        edge.require(DOWNLOAD)
        return await _content(edge, request)

    def deleted(response: Any, _request: Request) -> Reply:  # noqa: ANN401
        return JsonReply(value={"id": response.id, "object": "file", "deleted": True})

    one = "/files/{file_id}"
    query = page_query("purpose", most=MOST, default=MOST)
    shared: dict[str, Any] = {"api": "files", "mounts": OPENAI}
    show = edge.unary("FilesService.GetFile", edge.member("file"))
    delete = edge.unary("FilesService.DeleteFile", deleted)
    return [
        Route(method="POST", path="/files", handler=upload, summary="Upload a file", scope="files", raw=True,
              response=v1.File, **shared),
        Route(method="GET", path="/files", handler=listed, summary="List files", query=query, **shared),
        Route(method="GET", path=one, handler=show, summary="Show a file", response=v1.File, **shared),
        Route(method="DELETE", path=one, handler=delete, summary="Delete a file", scope="files", **shared),
        Route(method="GET", path=f"{one}/content", handler=content, summary="Download a file", scope="files", **shared),
    ]  # fmt: skip


def _header(edge: Edge, form: Form, request: Request) -> v1.FileUploadHeader:
    for name in form.fields:
        if name not in _FIELDS:
            known = ", ".join(("file", *_FIELDS))
            raise InvalidArgumentError(f"{name}: no such part here; there are: {known}", field=name)
    given: dict[str, Any] = {"purpose": form.fields.get("purpose") or None}
    if given["purpose"] is None:
        raise InvalidArgumentError("purpose: missing", field="purpose", reason="MISSING_FIELD")
    if given["purpose"] not in _PURPOSES:
        known = ", ".join(_PURPOSES)
        raise InvalidArgumentError(f"purpose: {given['purpose'][:40]!r} is none of {known}", field="purpose")
    expires = _expiry(form.fields)
    if expires is not None:
        given["expires_after"] = expires
    header = edge.codec.decode(v1.FileUploadHeader, given)
    header.filename, header.mime_type, header.bytes = form.filename, form.mime_type, form.size
    header.request_id = request.headers.get("idempotency-key", "")
    return header


def _expiry(fields: Mapping[str, str]) -> Any:  # noqa: ANN401
    """`expires_after` of a form, which writes it as one part of JSON or as a part for each member."""
    whole = fields.get("expires_after")
    if whole:
        try:
            return orjson.loads(whole)
        except orjson.JSONDecodeError:
            raise InvalidArgumentError("expires_after: must be a JSON object", field="expires_after") from None
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    number = whole_number(seconds, "expires_after[seconds]", default=0)
    return {"anchor": anchor or "created_at", "seconds": number}


async def _messages(form: Form, header: v1.FileUploadHeader) -> AsyncIterator[Message]:
    yield v1.UploadFileRequest(header=header)
    while piece := await form.file.read(PIECE):
        yield v1.UploadFileRequest(data=piece)
    yield v1.UploadFileRequest(end=v1.FileUploadEnd())


async def _content(edge: Edge, request: Request) -> Reply:
    message = edge.read(DOWNLOAD, request)
    events = edge.upstream.stream(DOWNLOAD, message, request=request)
    try:
        file = (await anext(events)).file
    except BaseException:
        await events.aclose()
        raise
    headers = {
        "content-disposition": disposition(file.filename),
        "content-length": str(file.bytes),
        "x-content-type-options": "nosniff",
    }
    if request.method == "HEAD":
        await events.aclose()
        return EmptyReply(status=200, headers={**headers, "content-type": "application/octet-stream"})
    return StreamReply(pieces=_pieces(events), content_type="application/octet-stream", headers=headers)


async def _pieces(events: Events) -> AsyncIterator[bytes]:
    async with events:
        async for event in events:
            if event.data:  # else a heartbeat, or the end
                yield event.data


def disposition(filename: str) -> str:
    """A header that has a file saved under its name (RFC 6266, RFC 8187)."""
    plain = "".join(letter if letter in _SAFE_NAME else "_" for letter in filename)
    extended = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{extended}'

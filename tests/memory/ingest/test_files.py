"""Files: uploaded whole or not at all, listed, sent back, gone when their time is over."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory.database import Database
from services.memory.files import FileFacts, FileStore
from services.memory.tables import file_parts, files
from services.runtime.moments import SECOND, now
from stack_client.calls import EventStream, unary
from stack_client.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    StackError,
)
from tests.memory.mesh import MemoryMesh

HEADER = {"filename": "notes.txt", "purpose": v1.FILE_PURPOSE_ASSISTANTS}
BIG = bytes(range(256)) * 12_000  # three parts


def stub(mesh: MemoryMesh) -> Any:
    return mesh.stub(v1.FilesServiceStub)


def pieces(data: bytes, *, size: int = 700_000, sha256: str = "", **header: Any) -> list[v1.UploadFileRequest]:
    return [
        v1.UploadFileRequest(header=v1.FileUploadHeader(**{**HEADER, **header})),
        *(v1.UploadFileRequest(data=data[at : at + size]) for at in range(0, len(data), size)),
        v1.UploadFileRequest(end=v1.FileUploadEnd(sha256=sha256)),
    ]


async def upload(mesh: MemoryMesh, data: bytes, **options: Any) -> v1.File:
    response: Any = await unary(stub(mesh).UploadFile(_sent(pieces(data, **options))))
    file: v1.File = response.file
    return file


async def _sent(messages: list[v1.UploadFileRequest]) -> AsyncIterator[v1.UploadFileRequest]:
    for message in messages:
        yield message


async def refused(mesh: MemoryMesh, messages: list[v1.UploadFileRequest]) -> StackError:
    with pytest.raises(StackError) as failure:
        await unary(stub(mesh).UploadFile(_sent(messages)))
    return failure.value


async def download(mesh: MemoryMesh, file_id: str, *, offset: int = 0) -> bytes:
    call = stub(mesh).DownloadFile(v1.DownloadFileRequest(file_id=file_id, offset=offset))
    events = [event async for event in EventStream[Any](call)]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].file.id == file_id
    data = b"".join(event.data for event in events)
    assert all(len(event.data) <= 256 * 1024 for event in events)
    if not offset:
        assert events[-1].completed.sha256 == hashlib.sha256(data).hexdigest()
    return data


async def parts(mesh: MemoryMesh) -> set[str]:
    async with mesh.node._database.read() as connection:
        return set((await connection.execute(sa.select(file_parts.c.upload))).scalars())


async def test_a_file_comes_back_as_it_was_sent(either: MemoryMesh) -> None:
    digest = hashlib.sha256(BIG).hexdigest()
    file = await upload(either, BIG, sha256=digest, bytes=len(BIG))
    assert (file.bytes, file.sha256, file.mime_type, file.status) == (
        len(BIG), digest, "text/plain" if b"\0" not in BIG else file.mime_type, v1.FILE_STATUS_UPLOADED
    )  # fmt: skip
    assert await download(either, file.id) == BIG
    assert await download(either, file.id, offset=1_500_000) == BIG[1_500_000:]
    assert await download(either, file.id, offset=len(BIG)) == b""
    response = await unary(stub(either).GetFile(v1.GetFileRequest(file_id=file.id)))
    assert response.file == file


async def test_an_empty_file_is_a_file(either: MemoryMesh) -> None:
    file = await upload(either, b"")
    assert await download(either, file.id) == b""


async def test_a_broken_upload_leaves_nothing(either: MemoryMesh) -> None:
    before = await parts(either)
    whole = pieces(BIG)
    error = await refused(either, whole[:-1])
    assert isinstance(error, InvalidArgumentError)
    assert "without its end" in error.message
    for messages, what in [
        (pieces(BIG, sha256="0" * 64), "SHA-256"),
        (pieces(BIG, bytes=17), "17 bytes"),
        (whole[1:], "header"),
        ([*whole[:-1], whole[0]], "one end"),
        ([whole[0], v1.UploadFileRequest(data=b""), whole[-1]], "empty"),
        ([*whole, v1.UploadFileRequest(data=b"more")], "data came after the end"),
        ([*whole, whole[-1]], "end came after the end"),
    ]:
        error = await refused(either, messages)
        assert isinstance(error, InvalidArgumentError)
        assert what in error.message
    assert await parts(either) == before


@pytest.mark.parametrize(
    "header",
    [
        {"filename": ""},
        {"filename": "../etc/passwd"},
        {"filename": "a\nb"},
        {"purpose": v1.FILE_PURPOSE_UNSPECIFIED},
        {"purpose": v1.FILE_PURPOSE_ASSISTANTS_OUTPUT},
        {"expires_after": v1.FileExpiration(anchor="created_at", seconds=60)},
        {"expires_after": v1.FileExpiration(anchor="last_active_at", seconds=3600)},
    ],
)
async def test_headers_that_make_no_sense_are_refused(mesh: MemoryMesh, header: dict[str, Any]) -> None:
    error = await refused(mesh, pieces(b"x", **header))
    assert isinstance(error, InvalidArgumentError)
    assert error.field.startswith("header.")


async def test_a_file_over_the_limit_is_refused_by_its_header_and_by_its_content(
    either: MemoryMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(either.node.ingestion.files, "max_bytes", 1_000_000)
    before = await parts(either)
    for messages in (pieces(BIG, bytes=len(BIG)), pieces(BIG)):
        error = await refused(either, messages)
        assert isinstance(error, ResourceExhaustedError)
        assert error.reason == "MESSAGE_TOO_LARGE"
    assert await parts(either) == before


async def test_a_repeat_with_the_same_request_id_is_the_same_file(either: MemoryMesh, name: Callable[[], str]) -> None:
    key = name()
    first = await upload(either, BIG, request_id=key)
    before = await parts(either)
    assert await upload(either, BIG, request_id=key) == first
    assert await parts(either) == before
    for options in ({"data": BIG[:-1]}, {"data": BIG, "filename": "other.txt"}):
        data = options.pop("data")
        error = await refused(either, pieces(data, request_id=key, **options))  # type: ignore[arg-type]
        assert error.reason == "REQUEST_ID_REUSED"


async def test_files_are_listed_in_pages_in_both_orders_and_around_a_file(either: MemoryMesh) -> None:
    made = [(await upload(either, b"x", purpose=v1.FILE_PURPOSE_EVALS)).id for _ in range(5)]

    async def listed(**options: Any) -> tuple[list[str], str]:
        request = v1.ListFilesRequest(purpose=v1.FILE_PURPOSE_EVALS, **options)
        response = await unary(stub(either).ListFiles(request))
        return [file.id for file in response.data], response.next_page_token

    assert (await listed())[0][:5] == made[::-1]
    first, token = await listed(page_size=2)
    second, _ = await listed(page_size=2, page_token=token)
    assert first + second == made[:0:-1]
    ascending, _ = await listed(order=v1.SORT_ORDER_ASC, after=made[1])
    assert ascending == made[2:]
    before, token = await listed(order=v1.SORT_ORDER_ASC, before=made[3], page_size=2)
    assert before == made[1:3]
    assert (await listed(order=v1.SORT_ORDER_ASC, page_token=token, page_size=1))[0] == [made[3]]
    assert (await listed(after=made[2]))[0][:2] == [made[1], made[0]]
    with pytest.raises(NotFoundError, match="file-none"):
        await listed(after="file-none")
    with pytest.raises(InvalidArgumentError, match="page_token"):
        await unary(stub(either).ListFiles(v1.ListFilesRequest(page_token=token)))
    with pytest.raises(InvalidArgumentError, match="only one"):
        await listed(after=made[0], before=made[1])


async def test_a_deleted_file_is_gone_with_its_parts(either: MemoryMesh) -> None:
    before = await parts(either)
    file = await upload(either, BIG)
    response = await unary(stub(either).DeleteFile(v1.DeleteFileRequest(file_id=file.id)))
    assert (response.id, response.deleted) == (file.id, True)
    assert await parts(either) == before
    with pytest.raises(NotFoundError, match=file.id):
        await unary(stub(either).DeleteFile(v1.DeleteFileRequest(file_id=file.id)))
    with pytest.raises(NotFoundError, match=file.id):
        await download(either, file.id)


async def test_an_expired_file_is_not_found_and_is_swept(either: MemoryMesh) -> None:
    before = await parts(either)
    file = await upload(either, BIG, expires_after=v1.FileExpiration(anchor="created_at", seconds=3600))
    assert file.expires_at.seconds - file.created_at.seconds == 3600
    async with either.node._database.write() as connection:
        change = sa.update(files).where(files.c.file_id == file.id).values(expires_at=now() - SECOND)
        await connection.execute(change)
    with pytest.raises(NotFoundError, match="expired"):
        await unary(stub(either).GetFile(v1.GetFileRequest(file_id=file.id)))
    assert await either.node.ingestion.files.sweep() == 1
    async with either.node._database.write() as connection:
        await connection.execute(sa.update(file_parts).values(created_at=0))
    await either.node.ingestion.files.sweep()
    assert await parts(either) == before


async def test_a_damaged_file_is_not_sent_as_if_it_were_whole(either: MemoryMesh) -> None:
    file = await upload(either, BIG)
    async with either.node._database.write() as connection:
        mine = sa.select(files.c.upload).where(files.c.file_id == file.id).scalar_subquery()
        change = sa.update(file_parts).where(file_parts.c.upload == mine, file_parts.c.place == 2)
        await connection.execute(change.values(data=b"x" * (len(BIG) - 2 * (1 << 20))))
    with pytest.raises(DataLossError, match=file.id):
        await download(either, file.id)


async def test_an_offset_beyond_the_end_is_refused(mesh: MemoryMesh) -> None:
    file = await upload(mesh, b"abc")
    with pytest.raises(InvalidArgumentError, match="3 bytes"):
        await download(mesh, file.id, offset=4)


class CutOff(Database):
    """Its next transaction is committed, but whoever waits for that is cancelled."""

    cut = False

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        async with super().write() as connection:
            yield connection
        if self.cut:
            self.cut = False
            raise asyncio.CancelledError


async def test_an_upload_that_is_cancelled_while_it_is_committed_loses_no_bytes_of_its_file(tmp_path: Path) -> None:
    async with CutOff(f"sqlite:///{tmp_path}/memory.db") as database:
        store = FileStore(database, max_bytes=1000)
        facts = FileFacts(
            tenant="", filename="a.txt", purpose=v1.FILE_PURPOSE_ASSISTANTS, mime_type="", expires_seconds=None
        )

        async def upload() -> None:
            async with store.upload() as upload:
                await upload.write(b"text")
                await upload.finish()
                database.cut = True
                async with database.write() as connection:
                    await upload.commit(connection, facts)

        with pytest.raises(asyncio.CancelledError):
            await upload()
        (row,) = await store.page(tenant="", purpose=0, after=None, before=None, descending=True, limit=2)
        assert await store.read(row) == b"text"

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import httpx
import pytest

from services.gateway.body import SlowClientError
from services.gateway.request import Request
from services.gateway.uploads import form_with_file
from tests.gateway.conftest import LARGEST_UPLOAD

PREFIXES = ["/v1", "/v1/openai/v1"]
BOUNDARY = "between-the-parts"


async def upload(http: httpx.AsyncClient, content: bytes, *, name: str = "a.txt", **fields: str) -> httpx.Response:
    data = {"purpose": "assistants", **fields}
    return await http.post("/v1/files", files={"file": (name, content)}, data=data)


def part(name: str, value: bytes, *, filename: str | None = None) -> bytes:
    of_file = f'; filename="{filename}"' if filename is not None else ""
    lines = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{of_file}\r\n\r\n'
    return lines.encode() + value + b"\r\n"


async def connect(http: httpx.AsyncClient) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(http.base_url.host, http.base_url.port)


def head(length: int) -> bytes:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    return f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nContent-Type: {kind}\r\n\r\n".encode()


END = f"--{BOUNDARY}--\r\n".encode()


async def send(http: httpx.AsyncClient, body: bytes) -> httpx.Response:
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return await http.post("/v1/files", content=body, headers=headers)


async def names(http: httpx.AsyncClient) -> list[str]:
    return [one["filename"] for one in (await http.get("/v1/files")).json()["data"]]


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_a_file_is_uploaded_shown_downloaded_and_deleted(http: httpx.AsyncClient, prefix: str) -> None:
    content = bytes(range(256)) * 8192  # two mebibytes: over what is kept in memory
    files = {"file": ("all bytes.bin", content)}
    made = (await http.post(f"{prefix}/files", files=files, data={"purpose": "user_data"})).json()
    assert made["object"] == "file"
    assert made["bytes"] == len(content)
    assert (made["filename"], made["purpose"], made["status"]) == ("all bytes.bin", "user_data", "uploaded")
    assert made["expires_at"] is None
    assert isinstance(made["created_at"], int)
    path = f"{prefix}/files/{made['id']}"
    assert (await http.get(path)).json() == made
    got = await http.get(f"{path}/content")
    assert got.content == content
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["content-disposition"] == 'attachment; filename="all bytes.bin"'
    shown = await http.head(f"{path}/content")
    assert (shown.status_code, shown.content, shown.headers["content-length"]) == (200, b"", str(len(content)))
    assert (await http.delete(path)).json() == {"id": made["id"], "object": "file", "deleted": True}
    assert (await http.get(path)).status_code == 404
    assert (await http.get(f"{path}/content")).status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
        {"expires_after": '{"anchor": "created_at", "seconds": 3600}'},
    ],
)
async def test_a_file_expires_when_its_form_says_so(http: httpx.AsyncClient, fields: dict[str, str]) -> None:
    made = (await upload(http, b"x", **fields)).json()
    assert made["expires_at"] == made["created_at"] + 3600


async def test_parts_may_stand_behind_the_file_that_they_are_about(http: httpx.AsyncClient) -> None:
    body = part("file", b"first", filename="first.txt") + part("purpose", b"batch") + END
    made = (await send(http, body)).json()
    assert (made["purpose"], made["bytes"]) == ("batch", 5)


async def test_an_empty_file_is_a_file(http: httpx.AsyncClient) -> None:
    made = (await upload(http, b"")).json()
    assert made["bytes"] == 0
    assert (await http.get(f"/v1/files/{made['id']}/content")).content == b""


async def test_a_name_is_kept_without_folders_and_given_out_quoted(http: httpx.AsyncClient) -> None:
    made = (await upload(http, b"x", name="C:\\docs/Ärger; 50%.txt")).json()
    assert made["filename"] == "Ärger; 50%.txt"
    got = await http.get(f"/v1/files/{made['id']}/content")
    expected = "attachment; filename=\"_rger_ 50_.txt\"; filename*=UTF-8''%C3%84rger%3B%2050%25.txt"
    assert got.headers["content-disposition"] == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (part("purpose", b"batch") + END, "file"),
        (part("file", b"x", filename="a") + END, "purpose"),
        (part("file", b"x", filename="a") + part("purpose", b"fun") + END, "purpose"),
        (part("file", b"x", filename="a") + part("purpose", b"batch_output") + END, "purpose"),
        (part("file", b"x", filename="") + part("purpose", b"batch") + END, "file"),
        (part("file", b"x") + part("purpose", b"batch") + END, "file"),
        (part("file", b"x", filename="..") + part("purpose", b"batch") + END, "file"),
        (part("file", b"x", filename="a") + part("purpose", b"batch") + part("size", b"1") + END, "size"),
        (part("file", b"x", filename="a") + part("purpose", b"batch") + part("purpose", b"batch") + END, "purpose"),
        (
            part("file", b"x", filename="a") + part("purpose", b"batch") + part("expires_after[seconds]", b"1") + END,
            "expires_after",
        ),
        (
            part("file", b"x", filename="a") + part("purpose", b"batch") + part("expires_after", b"{") + END,
            "expires_after",
        ),
    ],
)
async def test_what_is_wrong_in_a_form_is_named(http: httpx.AsyncClient, body: bytes, param: str) -> None:
    answer = await send(http, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_a_form_that_ends_too_early_leaves_no_file(http: httpx.AsyncClient) -> None:
    body = part("purpose", b"batch") + part("file", b"half of it", filename="truncated.txt")
    for cut in (body, body[:-8], body + END[:-6]):
        answer = await send(http, cut)
        assert answer.status_code == 400
    assert "truncated.txt" not in await names(http)


@pytest.mark.parametrize(
    "body", [b"", b"no form at all", b"--between-the-parts\r\n\r\n", b"--between-the-parts\r\nX: y\r\n\r\nz"]
)
async def test_what_is_no_form_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    assert (await send(http, body)).status_code == 400


async def test_json_and_packed_uploads_are_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/files", json={"purpose": "batch"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "content-type")
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}", "content-encoding": "gzip"}
    assert (await http.post("/v1/files", content=b"x", headers=headers)).status_code == 415


async def test_a_file_over_the_limit_is_refused_while_it_comes(http: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield part("purpose", b"batch") + part("file", b"", filename="large.bin")[:-2]
        for _ in range(LARGEST_UPLOAD // 65536 + 8):
            yield bytes(65536)
        yield b"\r\n" + END

    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    answer = await http.post("/v1/files", content=body(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "message_too_large"
    assert "large.bin" not in await names(http)


async def test_a_file_that_is_announced_too_large_is_refused_before_it_comes(http: httpx.AsyncClient) -> None:
    reader, writer = await connect(http)
    writer.write(head(LARGEST_UPLOAD * 2))
    assert b" 413 " in await reader.readline()
    writer.close()


async def test_a_client_that_sends_nothing_more_is_not_waited_for() -> None:
    async def receive() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    request = Request(method="POST", path="/v1/files", headers=headers, receive=receive)
    with pytest.raises(SlowClientError):
        async with form_with_file(request, most=1000, seconds=0.01):
            pass


async def test_a_client_that_leaves_in_the_middle_leaves_no_file(http: httpx.AsyncClient) -> None:
    _reader, writer = await connect(http)
    writer.write(head(100_000) + part("purpose", b"batch") + part("file", b"x" * 50, filename="left.txt"))
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await upload(http, b"x")).status_code == 200
    assert "left.txt" not in await names(http)


async def test_files_are_listed_by_purpose_in_pages_that_meet(http: httpx.AsyncClient) -> None:
    made = [(await upload(http, b"x", name=f"{number}.txt", purpose="evals")).json()["id"] for number in range(5)]
    first = (await http.get("/v1/files", params={"purpose": "evals", "limit": 2, "order": "asc"})).json()
    assert [one["id"] for one in first["data"]] == made[:2]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (made[0], made[1], True)
    query = {"purpose": "evals", "limit": 10, "order": "asc", "after": first["last_id"]}
    rest = (await http.get("/v1/files", params=query)).json()
    assert [one["id"] for one in rest["data"]] == made[2:]
    assert rest["has_more"] is False
    assert (await http.get("/v1/files", params={"limit": 0})).json()["error"]["param"] == "limit"
    assert (await http.get("/v1/files", params={"after": "file-nobody"})).status_code == 404
    assert (await http.get("/v1/files", params={"purpose": "fun"})).json()["error"]["param"] == "purpose"

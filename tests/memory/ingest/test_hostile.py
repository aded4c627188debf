"""Damaged, huge and hostile documents end in an error of their own; the parser goes on."""

import contextlib
import io
import os
import re
import signal
import struct
import sys
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from services.memory.parse.extract import Limits
from services.memory.parse.pool import ParserPool
from services.memory.parse.warm import pdf
from stack_client.errors import InvalidArgumentError, ResourceExhaustedError, StackError
from tests.memory.ingest.test_parsing import slides, word

LIMITS = Limits(seconds=10, memory_bytes=256 << 20, characters=200_000, pages=50, inflated_bytes=32 << 20)
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def changed(data: bytes, part: str, change: Callable[[bytes], bytes]) -> bytes:
    """A zipped document with a part changed."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name == part else old.read(name))
    return target.getvalue()


def bomb() -> bytes:
    return changed(word(), "word/document.xml", lambda xml: xml.replace(b"<w:body>", b"<w:body>" + b" " * (64 << 20)))


def lying_bomb() -> bytes:
    """Its directory says that it is small."""
    data = bytearray(bomb())
    for match in list(re.finditer(rb"word/document\.xml", data)):
        for head, offset in ((b"PK\x01\x02", 46), (b"PK\x03\x04", 30)):
            at = match.start() - offset
            if data[at : at + 4] == head:
                struct.pack_into("<I", data, at + (24 if offset == 46 else 22), 1000)
    return bytes(data)


def entities(*, utf16: bool = False) -> bytes:
    def change(xml: bytes) -> bytes:
        lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
        text = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">{lol}]><x>&l11;</x>'
        return text.encode("utf-16") if utf16 else text.encode()

    return changed(word(), "word/document.xml", change)


def external() -> bytes:
    text = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'
    return changed(word(), "word/document.xml", lambda _: text)


def encrypted_zip() -> bytes:
    data = bytearray(word())
    for match in list(re.finditer(rb"PK\x01\x02", data)):
        data[match.start() + 8] |= 1
    return bytes(data)


def encrypted_pdf() -> bytes:
    """Its trailer asks for a password that nobody has."""
    owner = "<" + "41" * 32 + ">"
    head = f"<</Encrypt<</Filter/Standard/V 1/R 2/P -4/O{owner}/U{owner}>>/ID[<00><00>]"
    return pdf(["Secret"]).replace(b"trailer\n<<", b"trailer\n" + head.encode())


def many_pages() -> bytes:
    """Its tree of pages says that there are a million."""
    return pdf(["Page"]).replace(b"/Count 1", b"/Count 1000000")


def shared_pages(count: int) -> bytes:
    """One page, many times."""
    return pdf(["Page"]).replace(b"/Kids[4 0 R]/Count 1", b"/Kids[" + b"4 0 R " * count + b"]/Count %d" % count)


def nested_word(depth: int) -> bytes:
    deep = b"<w:sdt><w:sdtContent>" * depth + b"</w:sdtContent></w:sdt>" * depth
    return changed(word(), "word/document.xml", lambda xml: xml.replace(b"<w:body>", b"<w:body>" + deep))


def zipped(**parts: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name.replace("__", "/").replace("_xml", ".xml"), data)
    return target.getvalue()


def flate_pdf() -> bytes:
    """A page whose content inflates without end."""
    stream = zlib.compress(b"(A) Tj " * 30_000_000, 9)
    body = b"<</Filter/FlateDecode/Length %d>>stream\n%b\nendstream" % (len(stream), stream)
    return re.sub(rb"<</Length \d+>>stream.*?endstream", lambda _: body, pdf(["x"]), flags=re.DOTALL)


CORPUS: dict[str, tuple[Callable[[], bytes], type[StackError], str]] = {
    "nothing": (lambda: b"", InvalidArgumentError, "empty"),
    "only space": (lambda: b" \n\t\r\n", InvalidArgumentError, "empty"),
    "only NULs": (lambda: b"\0" * 10_000, InvalidArgumentError, "empty"),
    "NULs in a text": (lambda: b"some text\0 and more of it " * 40, InvalidArgumentError, "NUL|no text"),
    "random bytes": (lambda: os.urandom(50_000), InvalidArgumentError, "no text|cannot be read"),
    "surrogates": (lambda: "ab\ud800c".encode("utf-8", "surrogatepass"), InvalidArgumentError, "surrogate"),
    "broken UTF-16": (lambda: b"\xff\xfea\0b", InvalidArgumentError, "utf-16"),
    "image": (lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 100, InvalidArgumentError, "PNG image"),
    "program": (lambda: b"\x7fELF\2\1\1" + b"\0" * 100, InvalidArgumentError, "program"),
    "old Office": (lambda: OLE + b"\0" * 1000, InvalidArgumentError, "old Office"),
    "encrypted Office": (
        lambda: OLE + "EncryptedPackage".encode("utf-16-le") + b"\0" * 1000,
        InvalidArgumentError,
        "password",
    ),
    "zip archive": (lambda: zipped(a=b"x"), InvalidArgumentError, "zip archive"),
    "archive in archive": (lambda: zipped(a=zipped(b=zipped(c=b"x"))), InvalidArgumentError, "zip archive"),
    "Excel": (lambda: zipped(xl__workbook_xml=b"x"), InvalidArgumentError, "CSV"),
    "truncated Word": (lambda: word()[:-500], InvalidArgumentError, "damaged"),
    "Word without its body": (lambda: zipped(word__document_xml=b"<x/>"), InvalidArgumentError, "damaged"),
    "Word with damaged XML": (
        lambda: changed(word(), "word/document.xml", lambda xml: xml[:300]),
        InvalidArgumentError,
        "damaged",
    ),
    "encrypted Word": (encrypted_zip, InvalidArgumentError, "encrypted"),
    "zip bomb": (bomb, ResourceExhaustedError, "at most"),
    "lying zip bomb": (lying_bomb, InvalidArgumentError, "damaged"),
    "XML entities": (entities, InvalidArgumentError, "entities"),
    "XML entities in UTF-16": (lambda: entities(utf16=True), InvalidArgumentError, "entities"),
    "external XML entity": (external, InvalidArgumentError, "entities"),
    "nested Word": (lambda: nested_word(5000), InvalidArgumentError, "damaged|deep"),
    "truncated slides": (lambda: slides()[:5000], InvalidArgumentError, "damaged"),
    "encrypted PDF": (encrypted_pdf, InvalidArgumentError, "password"),
    "PDF of rubbish": (lambda: b"%PDF-1.7\n" + os.urandom(5000), InvalidArgumentError, "damaged"),
    "PDF of a million pages": (many_pages, StackError, "pages|damaged"),
    "PDF of many pages": (lambda: shared_pages(5000), ResourceExhaustedError, "5000 pages"),
    "PDF without text": (lambda: pdf(["", ""]), InvalidArgumentError, "OCR"),
    "PDF that inflates": (flate_pdf, StackError, "characters|memory|not read within|computing|died|no text"),
    "deep HTML": (lambda: b"<html>" + b"<div>" * 200_000 + b"x", InvalidArgumentError, "deep"),
    "HTML without text": (lambda: b"<html><script>x()</script></html>", InvalidArgumentError, "no text"),
    "deep JSON": (lambda: b"[" * 500_000 + b"]" * 500_000, InvalidArgumentError, "deep"),
    "rather deep JSON": (lambda: b'{"a":' * 500 + b"1" + b"}" * 500, InvalidArgumentError, "deep"),
    "long number": (lambda: b"[" + b"9" * 100_000 + b"]", StackError, "read|JSON|characters"),
    "damaged JSONL": (lambda: b'{"a": 1}\n{"b": 2}\n{"c"', InvalidArgumentError, "line 3"),
    "CSV without rows": (lambda: b"a,b,c\n", InvalidArgumentError, "no rows"),
    "much text": (lambda: b"word " * 100_000, ResourceExhaustedError, "characters"),
}
NAMES = {"long number": "a.json", "damaged JSONL": "a.jsonl", "CSV without rows": "a.csv"}


@pytest.fixture(scope="module")
async def parser() -> AsyncIterator[ParserPool]:
    async with ParserPool(children=1, limits=LIMITS) as pool:
        yield pool


@pytest.mark.parametrize("case", CORPUS)
async def test_a_hostile_document_fails_alone(parser: ParserPool, case: str) -> None:
    make, kind, words = CORPUS[case]
    with pytest.raises(kind) as failure:
        await parser.parse(make(), name=NAMES.get(case, case))
    assert isinstance(failure.value, InvalidArgumentError | ResourceExhaustedError)
    assert re.search(words, failure.value.message), failure.value.message
    assert NAMES.get(case, case) in failure.value.message
    assert (await parser.parse(b"All is well.", name="a.txt")).text == "All is well."


async def test_damage_at_any_place_never_ends_the_parser(parser: ParserPool) -> None:
    for data in (pdf(["One", "Two"]), word(), slides()):
        for place in range(0, len(data), max(len(data) // 12, 1)):
            for broken in (data[:place], data[:place] + b"\xff" * 9 + data[place + 9 :]):
                with contextlib.suppress(InvalidArgumentError, ResourceExhaustedError):
                    await parser.parse(broken, name="damaged")
    assert (await parser.parse(b"All is well.", name="a.txt")).text == "All is well."


async def test_a_child_that_dies_is_replaced(parser: ParserPool) -> None:
    await parser.parse(b"Start.", name="a.txt")
    [child] = parser._idle
    os.kill(child.process.pid, signal.SIGKILL)
    await child.process.wait()
    with pytest.raises(InvalidArgumentError, match="died"):
        await parser.parse(b"On a dead child.", name="a.txt")
    assert (await parser.parse(b"On a new one.", name="a.txt")).text == "On a new one."


async def test_a_document_that_takes_too_long_is_given_up() -> None:
    async with ParserPool(children=1, limits=Limits(seconds=0.05)) as pool:
        with pytest.raises(ResourceExhaustedError, match=r"within|computing"):
            await pool.parse(b'[{"a": 1}, ' * 3_000_000, name="a.json")
        assert pool._idle == []


async def test_no_child_sees_documents_of_two_tenants() -> None:
    async with ParserPool(children=1) as pool:
        await pool.parse(b"One.", name="a.txt", tenant="one")
        [first] = pool._idle
        await pool.parse(b"Also one.", name="a.txt", tenant="one")
        assert pool._idle == [first]
        await pool.parse(b"Two.", name="a.txt", tenant="two")
        [second] = pool._idle
        assert second is not first
        assert first.process.returncode is not None


PROBE = """
import ctypes, json, os, socket, sys
from services.runtime import sandbox
sandbox.limit(memory_bytes=1 << 30, cpu_seconds=5)
filtered = sandbox.filter_calls()
def tried(work):
    try:
        work()
    except (OSError, MemoryError, RuntimeError) as error:
        return type(error).__name__
    return "done"
print(json.dumps({
    "filtered": filtered,
    "read a file": tried(lambda: open("/etc/hostname")),
    "write a file": tried(lambda: open("/tmp/hostile", "w")),
    "socket": tried(lambda: socket.socket()),
    "fork": tried(lambda: os._exit(0) if os.fork() == 0 else None),
    "run": tried(lambda: os.execv("/bin/true", ["true"])),
    "kill": tried(lambda: os.kill(1, 0)),
    "memory": tried(lambda: bytearray(2 << 30)),
}), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the filter of calls is Linux's")
async def test_a_child_can_neither_open_files_nor_sockets_nor_start_anything() -> None:
    import asyncio  # noqa: PLC0415
    import json  # noqa: PLC0415

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROBE, stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    said, _ = await process.communicate()
    probe: dict[str, Any] = json.loads(said)
    assert probe.pop("filtered")
    assert "done" not in probe.values(), probe

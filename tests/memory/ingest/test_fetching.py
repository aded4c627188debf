"""Fetching: what is checked is what is connected to; redirects, sizes, encodings, times."""

import asyncio
import gzip
import ipaddress
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from services.memory.fetch import Fetcher, FetchRules, forms, is_public
from stack_client.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
)

Answer = Callable[[str], bytes]


class Server:
    """Answers each request with bytes, and keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.heads: list[str] = []
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            writer.write(self.answer(head.split(" ")[1]))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: Answer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(answer)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=tls)
    async with listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server


def response(body: bytes = b"", *, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def names(**addresses: str | Sequence[str]) -> Callable[[str, int], object]:
    """A resolver that knows some names; a list is answered one after the other."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        known = addresses[host.replace(".", "_")]
        if isinstance(known, str):
            return [known]
        assert isinstance(known, list)
        return [known.pop(0)]

    return resolve


def fetcher(resolve: object = None, **rules: object) -> Fetcher:
    chosen = FetchRules(**{"allow": ("127.0.0.0/8",), "seconds": 10.0, **rules})  # type: ignore[arg-type]
    return Fetcher(chosen, resolve) if resolve else Fetcher(chosen)  # type: ignore[arg-type]


async def test_a_page_is_fetched_with_its_type_and_the_name_in_its_host_header() -> None:
    async with serving(lambda _: response(b"Hello", Content_Type="text/html; charset=utf-8")) as server:
        fetched = await fetcher(names(docs_test="127.0.0.1")).fetch(f"http://docs.test:{server.port}/a?b=c#d")
    assert (fetched.data, fetched.mime_type) == (b"Hello", "text/html; charset=utf-8")
    assert server.heads[0].startswith("GET /a?b=c HTTP/1.1\r\n")
    assert f"Host: docs.test:{server.port}\r\n" in server.heads[0]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "0x7f.1", "2130706433", "0177.0.0.1", "127.1", "localhost", "0.0.0.0", "10.1.2.3", "192.168.0.1",
        "172.16.5.5", "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1", "[::1]", "[::]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::a00:1]", "[2002:7f00:1::]",
        "[2001:0:0:0:0:0:80ff:fffe]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[::127.0.0.1]",
        "[fec0::1]", "[feff::1]", "192.88.99.1", "[2002:c058:6301::1]",
    ],
)  # fmt: skip
async def test_places_that_are_not_public_are_refused_in_every_spelling(host: str) -> None:
    async with serving(lambda _: response(b"secret")) as server:
        with pytest.raises(PermissionDeniedError, match="not public"):
            await Fetcher(FetchRules(seconds=10)).fetch(f"http://{host}:{server.port}/")
    assert server.heads == []


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_by_itself(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    for outer in (
        ipaddress.IPv6Address((0xFFFF << 32) | number),
        ipaddress.IPv6Address((0x0064FF9B << 96) | number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
        ipaddress.IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF)),
    ):
        assert forms(outer)[1] == inner
        assert is_public(outer) == is_public(inner)


async def test_a_name_that_leads_inside_is_refused_also_beside_a_public_address() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["93.184.216.34", "10.0.0.1"]

    with pytest.raises(PermissionDeniedError, match=r"10\.0\.0\.1"):
        await Fetcher(FetchRules(), resolve).fetch("http://mixed.test/")


async def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to() -> None:
    answers = ["127.0.0.1", "10.9.9.9"]
    async with serving(lambda _: response(b"Hello")) as server:
        fetched = await fetcher(names(rebind_test=answers)).fetch(f"http://rebind.test:{server.port}/")
    assert fetched.data == b"Hello"
    assert answers == ["10.9.9.9"], "asked once"


async def test_a_host_may_be_allowed_by_name() -> None:
    async with serving(lambda _: response(b"Hello")) as server:
        resolve = names(docs_internal="127.0.0.1", other_internal="127.0.0.1")
        inside = fetcher(resolve, allow=("docs.internal",))
        assert (await inside.fetch(f"http://DOCS.internal:{server.port}/")).data == b"Hello"
        with pytest.raises(PermissionDeniedError, match=r"other\.internal"):
            await inside.fetch(f"http://other.internal:{server.port}/")


async def test_redirects_are_followed_and_each_is_checked() -> None:
    targets = {
        "/1": "/2",
        "/2": "http://second.test:{port}/end",
        "/evil": "http://127.0.0.2:{port}/",
        "/in": "http://0x7f.2/",
    }

    def answer(path: str) -> bytes:
        if path == "/end":
            return response(b"Arrived")
        if path.startswith("/round"):
            return response(status="302 Found", Location="/round")
        return response(status="301 Moved", Location=targets[path].format(port=server.port))

    async with serving(answer) as server:
        resolve = names(
            first_test="127.0.0.1", second_test="127.0.0.1", **{"127_0_0_2": "127.0.0.2", "0x7f_2": "127.0.0.2"}
        )
        chosen = fetcher(resolve, allow=("127.0.0.1/32",))
        at = f"http://first.test:{server.port}"
        assert (await chosen.fetch(f"{at}/1")).data == b"Arrived"
        assert "Host: second.test" in server.heads[-1]
        for path in ("/evil", "/in"):
            with pytest.raises(PermissionDeniedError, match="not public"):
                await chosen.fetch(at + path)
        with pytest.raises(InvalidArgumentError, match="more than 5 times"):
            await chosen.fetch(f"{at}/round")


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://x.test/", "data:text/plain,x", "gopher://x.test"])
async def test_a_redirect_to_another_scheme_is_refused(location: str) -> None:
    async with serving(lambda _: response(status="302 Found", Location=location)) as server:
        with pytest.raises(PermissionDeniedError, match="refused"):
            await fetcher(folders=("/",)).fetch(f"http://127.0.0.1:{server.port}/")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compressed_answers_are_read_and_bombs_are_not(encoding: str) -> None:
    def packed(data: bytes) -> bytes:
        return gzip.compress(data) if encoding == "gzip" else zlib.compress(data)

    bodies = {"/text": packed(b"Hello " * 1000), "/bomb": packed(b"\0" * 50_000_000), "/broken": b"no such thing"}
    async with serving(lambda path: response(bodies[path], Content_Encoding=encoding)) as server:
        chosen, at = fetcher(max_bytes=1_000_000), f"http://127.0.0.1:{server.port}"
        assert (await chosen.fetch(f"{at}/text")).data == b"Hello " * 1000
        with pytest.raises(ResourceExhaustedError, match="1000000 bytes"):
            await chosen.fetch(f"{at}/bomb")
        with pytest.raises(InvalidArgumentError, match="damaged"):
            await chosen.fetch(f"{at}/broken")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (response(b"x" * 2_000_000), ResourceExhaustedError, "larger"),
        (response(b"x", Content_Type="image/png"), InvalidArgumentError, "image/png"),
        (response(b"x", status="404 Not Found"), InvalidArgumentError, "404"),
        (response(b"x", status="503 Busy"), UnavailableError, "503"),
        (response(b"x", Content_Encoding="br"), InvalidArgumentError, "br"),
        (response(b"x", Content_Length="100"), UnavailableError, "fetched now"),
        (b"no HTTP at all\r\n\r\n", UnavailableError, "fetched now"),
        (b"", UnavailableError, "fetched now"),
    ],
)
async def test_answers_that_are_no_documents_are_errors_of_their_own(
    answer: bytes, kind: type[StackError], words: str
) -> None:
    async with serving(lambda _: answer) as server:
        with pytest.raises(kind, match=words):
            await fetcher(max_bytes=1_000_000).fetch(f"http://127.0.0.1:{server.port}/")


async def test_a_server_that_never_answers_is_given_up() -> None:
    gone = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(UnavailableError, match=r"within 0\.2 s"):
            await fetcher(seconds=0.2).fetch(f"http://127.0.0.1:{port}/")
        gone.set()


async def test_nobody_listening_is_unavailable() -> None:
    async with serving(lambda _: b"") as server:
        port = server.port
    with pytest.raises(UnavailableError, match="fetched now"):
        await fetcher().fetch(f"http://127.0.0.1:{port}/")


async def test_certificates_are_checked_against_the_name_although_the_address_is_pinned(tmp_path: Path) -> None:
    good, trust = certificate(tmp_path, "docs.test")
    async with serving(lambda _: response(b"Hello"), tls=good) as server:
        chosen = fetcher(names(docs_test="127.0.0.1", other_test="127.0.0.1"))
        chosen.tls = trust
        assert (await chosen.fetch(f"https://docs.test:{server.port}/")).data == b"Hello"
        with pytest.raises(UnavailableError, match="certificate"):
            await chosen.fetch(f"https://other.test:{server.port}/")


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with serving(lambda _: response(b"Hello")) as server:
        assert (await fetcher().fetch(f"http://127.0.0.1:{server.port}/")).data == b"Hello"


@pytest.mark.parametrize(
    "url",
    [
        "", "nothing", "http://", "http:///path", "ftp://host.test/x", "http://user:secret@host.test/", "javascript:x",
        "http://host.test:99999/", "http://host.test\\@127.0.0.1/", "http://ho st.test/", "http://a.test/\r\nX: y",
        "data:text/plain", "data:;base64,!", "http://[::1/",
    ],
)  # fmt: skip
async def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await fetcher().fetch(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [("", "the URL is empty"), ("nothing", "nothing is no URL: it has no scheme"),
     ("http://user:secret@host.test/x", r"^http://host\.test/x: the URL has a user's name, a password")],
)  # fmt: skip
async def test_an_error_says_what_is_wrong_with_a_url_and_not_its_password(url: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said) as caught:
        await fetcher().fetch(url)
    assert "secret" not in caught.value.message


async def test_the_scheme_of_a_data_url_has_no_case() -> None:
    assert (await fetcher().fetch("DATA:text/plain,upper case")).data == b"upper case"


async def test_data_urls_hold_their_content() -> None:
    chosen = fetcher(max_bytes=100)
    plain = await chosen.fetch("data:text/plain;charset=utf-8,Gr%C3%BC%C3%9Fe")
    assert (plain.data.decode(), plain.mime_type) == ("Grüße", "text/plain;charset=utf-8")
    assert (await chosen.fetch("data:text/html;base64,SGVsbG8=")).data == b"Hello"
    assert (await chosen.fetch("data:,x")).mime_type == "text/plain;charset=US-ASCII"
    with pytest.raises(ResourceExhaustedError):
        await chosen.fetch("data:," + "x" * 101)


async def test_files_are_read_only_in_the_folders_that_the_operator_named(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a b.txt").write_text("Text")
    (inside / "link.txt").symlink_to(outside / "a b.txt")
    chosen = fetcher(folders=(str(inside),))
    assert (await chosen.fetch(f"file://{inside}/a%20b.txt")).data == b"Text"
    for path in (f"{outside}/a%20b.txt", f"{inside}/../outside/a%20b.txt", f"{inside}/link.txt"):
        with pytest.raises(PermissionDeniedError, match="fetch_folders"):
            await chosen.fetch(f"file://{path}")
        with pytest.raises(PermissionDeniedError):
            await fetcher().fetch(f"file://{path}")
    with pytest.raises(InvalidArgumentError):
        await chosen.fetch(f"file://{inside}")


def test_an_allow_list_that_makes_no_sense_is_refused() -> None:
    for entry in ("10.0.0.0/99", "", "host:80", "10.0.0.1/8"):
        with pytest.raises(InvalidArgumentError, match="fetch_allow"):
            Fetcher(FetchRules(allow=(entry,)))


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server of that name, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.now(UTC) - timedelta(hours=1)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(begin).not_valid_after(begin + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(secret + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())

"""Fetching URLs that callers name, without becoming their way into our network (server-side request forgery).

The name is resolved once, and the connection goes to the address that was checked; TLS and the Host header keep the
name. Redirects are followed here, each checked like the first. Proxies of the environment are not used.
"""

import asyncio
import base64
import binascii
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urljoin, urlsplit

import httpcore

from services.runtime.egress import CheckedBackend, Egress, Resolve, forms, is_public, system_resolve
from stack_client.errors import InvalidArgumentError, PermissionDeniedError, ResourceExhaustedError, UnavailableError

__all__ = ["FetchRules", "Fetched", "Fetcher", "Resolve", "forms", "is_data", "is_public", "system_resolve"]

REDIRECTS = 5
PIECE = 64 * 1024
AGENT = b"llama-stack-mesh"
_MOVED = {301, 302, 303, 307, 308}
_LATER = {408, 425, 429, 500, 502, 503, 504}
_NO_TEXT = ("image/", "audio/", "video/", "font/")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Fetched:
    """What a URL gave."""

    data: bytes
    mime_type: str
    """As the server says, with its charset; empty = it does not."""


@dataclass(frozen=True, kw_only=True)
class FetchRules:
    """What may be fetched."""

    allow: Sequence[str] = ()
    """Hosts (`docs.internal`) and networks (`10.1.0.0/16`) that may be reached although they are not public."""
    folders: Sequence[str] = ()
    """Folders whose files `file:` URLs may name."""
    max_bytes: int = 64 << 20
    """Of one answer, also after decompression."""
    seconds: float = 30.0
    """From the first connection to the last byte, redirects included."""


@dataclass
class Fetcher:
    """Fetches documents.

    Attributes:
        rules: What may be fetched.
        resolve: Finds addresses of hosts.
        tls: Context of https connections; None means the usual authorities.
    """

    rules: FetchRules = field(default_factory=FetchRules)
    resolve: Resolve = system_resolve
    tls: Any = None

    def __post_init__(self) -> None:
        self._egress = Egress(self.rules.allow, setting="memory.fetch_allow", resolve=self.resolve)

    async def fetch(self, url: str) -> Fetched:
        """The content of a URL.

        Raises:
            InvalidArgumentError: If it cannot be fetched, or its content has no text.
            PermissionDeniedError: If it leads where nobody may go.
            ResourceExhaustedError: If it is too large.
            UnavailableError: If the server does not answer now.
        """
        parts = _split(url)
        match parts.scheme:
            case "http" | "https":
                return await self._web(parts)
            case "data":
                return self._data(url)
            case "":
                raise InvalidArgumentError(f"{_short(url)} is no URL: it has no scheme such as https:", field="url")
            case "file":
                return await asyncio.to_thread(self._file, parts)
        message = f"{_short(url)}: scheme {parts.scheme!r} is not supported; use https, http or data"
        raise InvalidArgumentError(message, field="url")

    async def _web(self, parts: SplitResult) -> Fetched:
        first = parts.geturl()
        try:
            async with asyncio.timeout(self.rules.seconds):
                for _ in range(REDIRECTS + 1):
                    answer = await self._once(parts)
                    if isinstance(answer, Fetched):
                        return answer
                    target = _split(urljoin(parts.geturl(), answer))
                    if target.scheme not in _PORTS or (parts.scheme == "https" and target.scheme == "http"):
                        message = f"{_short(first)} leads to {_short(answer)}: refused; from https only to https"
                        raise PermissionDeniedError(message)
                    parts = target
        except TimeoutError:
            message = f"{_short(first)} was not fetched within {self.rules.seconds:g} s; try again, or upload the file"
            raise UnavailableError(message) from None
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as error:
            message = f"{_short(first)} cannot be fetched now: {error or type(error).__name__}"
            raise UnavailableError(message) from error
        raise InvalidArgumentError(
            f"{_short(first)} leads from place to place more than {REDIRECTS} times", field="url"
        )

    async def _once(self, parts: SplitResult) -> Fetched | str:
        """The content, or where else it is."""
        host, port = _host(parts), _port(parts)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        url = httpcore.URL(scheme=parts.scheme.encode(), host=host.encode(), port=port, target=_quoted(target))
        literal = f"[{host}]" if ":" in host else host
        shown = literal if port == _PORTS[parts.scheme] else f"{literal}:{port}"
        headers = [(b"Host", shown.encode()), (b"User-Agent", AGENT), (b"Accept", b"*/*")]
        headers.append((b"Accept-Encoding", b"gzip, deflate"))
        backend = CheckedBackend(self._egress)
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self.tls, network_backend=backend, retries=0) as pool,
            pool.stream("GET", url, headers=headers) as response,
        ):
            fields = {name.lower(): value for name, value in response.headers}
            if response.status in _MOVED and b"location" in fields:
                return fields[b"location"].decode("latin-1")
            _check_status(response.status, parts.geturl())
            mime_type = fields.get(b"content-type", b"").decode("latin-1")
            if mime_type.strip().lower().startswith(_NO_TEXT):
                message = f"{_short(parts.geturl())} is {mime_type.partition(';')[0]}: give something with text"
                raise InvalidArgumentError(message, field="url")
            encoding = fields.get(b"content-encoding", b"").decode("latin-1").strip().lower()
            data = await self._body(response, encoding, url=parts.geturl())
            return Fetched(data, mime_type)

    async def _body(self, response: httpcore.Response, encoding: str, *, url: str) -> bytes:
        inflate = _inflater(encoding, url=url)
        pieces, size, raw = [], 0, 0
        async for piece in response.aiter_stream():
            raw += len(piece)
            try:
                for part in inflate(piece):
                    pieces.append(part)
                    size += len(part)
                    self._check_size(max(size, raw), url=url)
            except zlib.error as error:
                raise InvalidArgumentError(f"{_short(url)}: its {encoding} content is damaged ({error})") from error
        return b"".join(pieces)

    def _data(self, url: str) -> Fetched:
        head, comma, body = url[len("data:") :].partition(",")
        if not comma:
            raise InvalidArgumentError(f"{_short(url)}: a data: URL has a comma before its content", field="url")
        self._check_size(len(body) * 3 // 4 if head.endswith(";base64") else 0, url=url)
        if head.lower().endswith(";base64"):
            try:
                packed = unquote(body).translate(_NO_SPACE).rstrip("=")
                data = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
            except (binascii.Error, ValueError) as error:
                raise InvalidArgumentError(f"{_short(url)}: its base64 is damaged ({error})", field="url") from error
            head = head[: -len(";base64")]
        else:
            data = unquote_to_bytes(body)
        self._check_size(len(data), url=url)
        return Fetched(data, head or "text/plain;charset=US-ASCII")

    def _file(self, parts: SplitResult) -> Fetched:
        if parts.netloc not in {"", "localhost"}:
            raise InvalidArgumentError(f"file: URL of another machine, {parts.netloc!r}", field="url")
        path = Path(unquote(parts.path)).resolve()
        if not any(path.is_relative_to(Path(folder).resolve()) for folder in self.rules.folders):
            message = f"{_short(parts.geturl())} is in no folder of memory.fetch_folders: upload the file instead"
            raise PermissionDeniedError(message)
        try:
            if not path.is_file():
                raise InvalidArgumentError(f"{_short(parts.geturl())} is no file", field="url")
            self._check_size(path.stat().st_size, url=parts.geturl())
            with path.open("rb") as file:
                data = file.read(self.rules.max_bytes + 1)
        except OSError as error:
            raise InvalidArgumentError(f"{_short(parts.geturl())}: {error.strerror}", field="url") from error
        self._check_size(len(data), url=parts.geturl())
        return Fetched(data, "")

    def _check_size(self, size: int, *, url: str) -> None:
        if size > self.rules.max_bytes:
            message = f"{_short(url)} is larger than {self.rules.max_bytes} bytes, the limit (memory.fetch_max_bytes)"
            raise ResourceExhaustedError(message, reason="MESSAGE_TOO_LARGE")


_NO_SPACE = {ord(space): None for space in " \t\r\n"}


def is_data(url: str) -> bool:
    """Whether a URL holds its content itself (RFC 2397); schemes have no case."""
    return url[:5].lower() == "data:"


def _split(url: str) -> SplitResult:
    if not url:
        raise InvalidArgumentError("the URL is empty", reason="MISSING_FIELD", field="url")
    if any(ord(letter) <= 32 or ord(letter) == 127 for letter in url) and not is_data(url):
        raise InvalidArgumentError(f"{_short(url)}: a URL has no spaces or control characters", field="url")
    try:
        parts = urlsplit(url) if not is_data(url) else SplitResult("data", "", "", "", "")
        _ = parts.port
    except ValueError as error:
        raise InvalidArgumentError(f"{_short(url)} is no URL: {error}", field="url") from error
    if parts.scheme in _PORTS and (parts.username is not None or parts.password is not None or "\\" in url):
        shown = _short(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")  # not the password
        message = f"{shown}: the URL has a user's name, a password or a backslash, which are refused: leave it out"
        raise InvalidArgumentError(message, field="url")
    if parts.scheme in _PORTS and not parts.hostname:
        raise InvalidArgumentError(f"{_short(url)} names no host", field="url")
    return parts


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError as error:
        raise InvalidArgumentError(f"{host!r} is no name of a host ({error})", field="url") from error


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS[parts.scheme]


def _quoted(target: str) -> bytes:
    return "".join(
        letter if letter.isascii() else "".join(f"%{byte:02X}" for byte in letter.encode()) for letter in target
    ).encode()


def _check_status(status: int, url: str) -> None:
    if status in _LATER:
        raise UnavailableError(f"{_short(url)}: the server answered {status}; try again later")
    if status != 200:
        raise InvalidArgumentError(f"{_short(url)}: the server answered {status}; check the address", field="url")


def _inflater(encoding: str, *, url: str) -> Callable[[bytes], Iterable[bytes]]:
    if encoding in {"", "identity"}:
        return lambda piece: [piece]
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise InvalidArgumentError(f"{_short(url)}: the server sent {encoding!r}, which was not asked for", field="url")
    machine = zlib.decompressobj(wbits=47)  # gzip or zlib, found by its head

    def inflate(piece: bytes) -> Iterable[bytes]:
        while piece:
            yield machine.decompress(piece, PIECE)
            piece = machine.unconsumed_tail

    return inflate


def _short(url: str) -> str:
    return url if len(url) <= 120 else f"{url[:117]}..."

"""HTTP for providers: to the hosts of the group alone, over checked connections, without cookies and proxies."""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx

from services.runtime.egress import CheckedBackend, Egress, Resolve, system_resolve
from services.tools.config import ToolsConfig
from services.tools.hosts import host_matches
from services.tools.provider import Access, ProviderContext
from stack_client.errors import InternalError, InvalidArgumentError, PermissionDeniedError, UnavailableError

REDIRECTS = 5
MAX_BYTES = 4 << 20
"""Of an answer, where the caller does not say."""
CONNECT_SECONDS = 10.0
AGENT = "llama-stack-mesh"
_MOVED = {301, 302, 303, 307, 308}
_SAFE = {"GET", "HEAD"}
_KEPT_ACROSS = {"accept", "user-agent", "accept-encoding"}


class ExchangeError(InternalError):
    """A request was sent, and no complete answer came: whether it took effect is not known."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server answered."""

    status: int
    """HTTP status."""
    headers: Mapping[str, str]
    """By lower-case name."""
    data: bytes = field(repr=False)
    """The body, or its beginning."""
    cut: bool
    """Whether the body was longer than allowed."""

    @property
    def media_type(self) -> str:
        """Without parameters, lower case; empty means not said."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def text(self) -> str:
        """The body as text, in the charset that the server names; what does not fit is replaced."""
        charset = (
            httpx.Headers(dict(self.headers)).get("content-type", "").rpartition("charset=")[2].strip(' "').lower()
        )
        try:
            return self.data.decode(charset or "utf-8", "replace")
        except LookupError:
            return self.data.decode("utf-8", "replace")


class Outgoing:
    """Sends requests. Use `async with`.

    Args:
        context: Of the provider.
        resolve: Finds addresses of hosts.
        tls: Context of https connections; None means the usual authorities.
    """

    def __init__(
        self, context: ProviderContext, *, resolve: Resolve = system_resolve, tls: ssl.SSLContext | None = None
    ) -> None:
        config = context.service.section(ToolsConfig)
        self._secrets = config.secrets
        self._egress = Egress(config.egress_allow, setting="tools.egress_allow", resolve=resolve)
        self._tls = tls
        self._transport: _Transport | None = None

    async def __aenter__(self) -> Self:
        """Nothing is connected yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._transport is not None:
            await self._transport.aclose()

    async def send(
        self,
        method: str,
        url: str,
        *,
        hosts: Sequence[str],
        access: Access,
        secrets_ref: str = "",
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> Answer:
        """Send a request; redirects of GET and HEAD are followed, other answers are as they come.

        Args:
            method: GET, POST and so on.
            url: With its query.
            hosts: Those that may be reached, see `host_matches`.
            access: Whose secrets the request may carry.
            secrets_ref: Name of that secret, whose own list of hosts applies as well.
            headers: Of the request.
            content: Its body.
            max_bytes: Of the answer; more is cut off.

        Raises:
            InvalidArgumentError: If the URL is none.
            PermissionDeniedError: If it leads to where the group may not go.
            UnavailableError: If no connection could be made, so that nothing happened.
            ExchangeError: If the connection broke after the request was sent.
        """
        bound = self._secrets[secrets_ref].hosts if secrets_ref in self._secrets else ()
        request = _request(method, url, headers or {}, content)
        for _ in range(REDIRECTS + 1):
            self._check(request.url, hosts=hosts, bound=bound, secret=bool(access.secret or access.authorization))
            answer = await self._once(request, max_bytes=max_bytes)
            location = answer.headers.get("location")
            if answer.status not in _MOVED or location is None or request.method not in _SAFE:
                return answer
            request = _redirected(request, location)
        raise PermissionDeniedError(f"{_shown(request.url)}: leads from place to place more than {REDIRECTS} times")

    def _check(self, url: httpx.URL, *, hosts: Sequence[str], bound: Sequence[str], secret: bool) -> None:
        port = url.port or (443 if url.scheme == "https" else 80)
        for allowed, whose in ((hosts, "the group's egress_hosts"), (bound or hosts, "the secret's hosts")):
            if not host_matches(url.host, allowed, port=port):
                known = ", ".join(allowed) or "none"
                message = f"{_shown(url)}: the host {url.host} is not of {whose} ({known}): refused"
                raise PermissionDeniedError(message)
        if secret and url.scheme == "http" and not self._egress.is_allowed(url.host):
            raise PermissionDeniedError(f"{_shown(url)}: a secret is not sent without TLS; use https")

    async def _once(self, request: httpx.Request, *, max_bytes: int) -> Answer:
        if self._tls is None:  # reading the authorities takes a while
            self._tls = await asyncio.to_thread(httpx.create_ssl_context, trust_env=False)
        if self._transport is None:
            self._transport = _Transport(self._egress, self._tls)
        try:
            response = await self._transport.handle_async_request(request)
            try:
                return await _read(response, request, max_bytes)
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            message = f"{_shown(request.url)} cannot be reached now: {error or type(error).__name__}"
            raise UnavailableError(message) from error
        except httpx.HTTPError as error:
            message = f"{_shown(request.url)}: the connection broke off: {error or type(error).__name__}"
            raise ExchangeError(message) from error


class _Transport(httpx.AsyncHTTPTransport):
    """Connects to addresses that were checked."""

    def __init__(self, egress: Egress, tls: ssl.SSLContext) -> None:
        super().__init__(verify=tls, trust_env=False)
        self._pool: Any = httpcore.AsyncConnectionPool(
            ssl_context=tls, network_backend=CheckedBackend(egress), retries=0, max_keepalive_connections=20
        )


async def _read(response: httpx.Response, request: httpx.Request, most: int) -> Answer:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise ExchangeError(f"{_shown(request.url)}: the server sent {encoding!r}, which was not asked for")
    pieces, size = [], 0
    assert isinstance(response.stream, httpx.AsyncByteStream)
    async for piece in response.stream:
        pieces.append(piece[: most - size])
        size += len(piece)
        if size > most:
            break
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(status=response.status_code, headers=headers, data=b"".join(pieces), cut=size > most)


def _request(method: str, url: str, headers: Mapping[str, str], content: bytes | None) -> httpx.Request:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidArgumentError(f"{url[:120]!r} is no URL: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise InvalidArgumentError(f"{_shown(parsed)}: give an http or https URL with a host")
    if parsed.userinfo:
        raise InvalidArgumentError(f"{_shown(parsed)}: the URL has a user's name or password; use a secret")
    timeout = {"connect": CONNECT_SECONDS, "pool": CONNECT_SECONDS, "read": None, "write": None}
    # A compressed answer could be a thousand times as large as it looks.
    fields = {"User-Agent": AGENT, "Accept": "*/*", **headers, "Accept-Encoding": "identity"}
    try:
        return httpx.Request(method, parsed, headers=fields, content=content, extensions={"timeout": timeout})
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"{_shown(parsed)}: a header cannot be sent: {type(error).__name__}") from error


def _redirected(request: httpx.Request, location: str) -> httpx.Request:
    """The next request; headers, among which may be secrets, go to another place only where they say nothing."""
    try:
        target = request.url.join(location)
    except httpx.InvalidURL as error:
        raise PermissionDeniedError(f"{_shown(request.url)} leads to no URL: refused") from error
    if request.url.scheme == "https" and target.scheme != "https":
        raise PermissionDeniedError(f"{_shown(request.url)} leads from https to {target.scheme}: refused")
    same = (target.scheme, target.host, target.port) == (request.url.scheme, request.url.host, request.url.port)
    headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
    kept = headers if same else {name: value for name, value in headers.items() if name.lower() in _KEPT_ACROSS}
    return _request(request.method, str(target), kept, None)


def _shown(url: httpx.URL) -> str:
    """A URL for messages, without its query, in which may be secrets."""
    return f"{url.scheme}://{url.host}{f':{url.port}' if url.port else ''}{url.path}"[:200]

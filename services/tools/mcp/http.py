"""The way of HTTP requests to MCP servers: checked addresses, and faults that belong to their request.

The SDK's transport turns every failure into a few words and lets a refused connection end the session with all that
runs in it. Here each request is known by the context it runs in; what went wrong is noted there, and the SDK gets an
ordinary answer with a status.
"""

import ssl
from collections.abc import AsyncIterator, Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import httpcore2
import httpx2
from mcp.client.auth import OAuthFlowError, OAuthTokenError
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from services.tools.mcp.endpoint import Addresses, Endpoint
from services.tools.mcp.exchange import Exchange
from stack_client.errors import AuthenticationError, PermissionDeniedError, StackError

CURRENT: ContextVar[Exchange | None] = ContextVar("mcp_exchange", default=None)
"""The exchange on whose behalf the running task talks to the server; the SDK hands the context on to its own tasks."""

CONNECT_SECONDS = 10.0
READ_SECONDS = 3700.0  # between two bytes; the longest call is an hour, and each request has a bound of its own
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
_FAULT_STATUS = 503


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that were checked, and to nothing else."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore2's interface)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve, check, connect to the first address that answers."""
        addresses = await self._addresses(host, port)
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 (httpcore2's interface)
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore2.AsyncNetworkStream:
        """Refuse: nothing on this machine is an MCP server by its path."""
        raise PermissionDeniedError(f"unix sockets are not reached: {path}")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)


class NotingTransport(httpx2.AsyncBaseTransport):
    """Sends requests over checked connections and notes in the current exchange how they went."""

    def __init__(self, endpoint: Endpoint, addresses: Addresses, tls: ssl.SSLContext, *, most: int) -> None:
        self._endpoint = endpoint
        self._most = most
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls,
            network_backend=_CheckedBackend(addresses),
            keepalive_expiry=30.0,
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._pool.__aexit__(exc_type, exc_value, traceback)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; what fails on the way is noted and answered with a status."""
        exchange = CURRENT.get() or Exchange()
        exchange.begin()
        try:
            # Tokens may be fetched from another host than the server's.
            port = request.url.port or (443 if request.url.scheme == "https" else 80)
            self._endpoint.check_host(request.url.host, port)
            response = await self._send(request)
        except StackError as error:  # the address is refused, or unknown
            exchange.fault, exchange.sent = error, False
            return httpx2.Response(_FAULT_STATUS, request=request)
        except (httpx2.TransportError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
            exchange.fault, exchange.sent = error, not isinstance(error, _UNSENT)
            return httpx2.Response(_FAULT_STATUS, request=request)
        exchange.note(response.status_code, response.headers.get("www-authenticate", ""))
        return response

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        wire = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            answer = await self._pool.handle_async_request(wire)
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            raise httpx2.ConnectError(str(error) or type(error).__name__, request=request) from error
        except httpcore2.PoolTimeout as error:
            raise httpx2.PoolTimeout("no connection was free", request=request) from error
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError) as error:
            raise httpx2.ReadError(str(error) or type(error).__name__, request=request) from error
        return httpx2.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Body(answer, most=self._most),
            extensions=answer.extensions,
        )


class _Body(httpx2.AsyncByteStream):
    """The body of an answer, with the faults that the SDK expects; a stream of events may go on for ever."""

    def __init__(self, answer: httpcore2.Response, *, most: int) -> None:
        self._answer = answer
        kind = next((value for name, value in answer.headers if name.lower() == b"content-type"), b"")
        self._most = None if kind.lower().startswith(b"text/event-stream") else most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for part in self._answer.aiter_stream():
                size += len(part)
                if self._most is not None and size > self._most:
                    raise httpcore2.ReadError(f"the answer is larger than {self._most} bytes (max_answer_bytes)")
                yield part
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError) as error:
            exchange = CURRENT.get()
            if exchange is not None:
                exchange.fault, exchange.sent = error, True
            raise httpx2.StreamError(str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Tokens:
    """Tokens of one connection; they live as long as it does."""

    def __init__(self) -> None:
        self._tokens: OAuthToken | None = None
        self._client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        """The tokens."""
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Keep tokens."""
        self._tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """The client's registration."""
        return self._client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Keep the client's registration."""
        self._client = client_info


class _NotedOAuth(ClientCredentialsOAuthProvider):
    """Client credentials whose failure is the request's, not the connection's."""

    async def _auth_flow(self, request: httpx2.Request) -> Any:  # noqa: ANN401 (httpx2's generator)
        flow = super()._auth_flow(request)
        try:
            outgoing = await flow.__anext__()
            while True:
                response = yield outgoing
                outgoing = await flow.asend(response)
        except StopAsyncIteration:
            return
        except (OAuthFlowError, OAuthTokenError) as error:
            exchange = CURRENT.get()
            if exchange is not None:
                exchange.fault = AuthenticationError(f"no access token for {request.url.host}: {error}")
                exchange.sent = False
                exchange.frozen = True
            yield request  # the server refuses it without a token
        finally:
            await flow.aclose()


def http_client(endpoint: Endpoint, addresses: Addresses, tls: ssl.SSLContext, *, most: int) -> httpx2.AsyncClient:
    """A client for one server and credential."""
    auth: httpx2.Auth | None = None
    if endpoint.oauth is not None:
        auth = _NotedOAuth(
            server_url=endpoint.uri,
            storage=_Tokens(),
            client_id=endpoint.oauth.client_id,
            client_secret=endpoint.oauth.client_secret,
            scope=endpoint.oauth.scope or None,
            issuer=endpoint.oauth.issuer,
        )
    return httpx2.AsyncClient(
        headers=dict(endpoint.headers),
        auth=auth,
        transport=NotingTransport(endpoint, addresses, tls, most=most),
        timeout=httpx2.Timeout(CONNECT_SECONDS, read=READ_SECONDS, pool=CONNECT_SECONDS),
        trust_env=False,
    )

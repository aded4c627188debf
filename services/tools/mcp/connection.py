"""One connection to one server for one tenant and credential, owned by one task from opening to closing.

Entering a transport in one task and leaving it in another breaks the cancel scopes inside; so nobody but `run` touches
the session. Requests come through a queue, each runs in a task of the owner's group, and a caller that goes away
cancels its own request only.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import httpx2
import mcp_types as types
from mcp import Client, StdioServerParameters
from mcp.client.session import ClientRequestContext, ClientSession, IncomingMessage
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost, listen
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from services.runtime.background import wait
from services.tools.mcp.config import McpConfig
from services.tools.mcp.endpoint import Addresses, Endpoint
from services.tools.mcp.exchange import ConnectionLostError, Exchange, Question, understand
from services.tools.mcp.http import CURRENT, http_client
from services.tools.mcp.watched import Watched
from stack_client.errors import StackError, UnavailableError
from stack_client.version import version

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[ClientSession], Awaitable[T]]

LOG_LEVEL: types.LoggingLevel = "info"
LISTEN_SECONDS = 5.0  # for the server to agree to tell of changes; without it lists are made anew now and then
CLOSING = "the connection is closing"
_OLD_SERVER = {404, 405}


class Request(Generic[T]):
    """A request that waits, runs or has ended."""

    def __init__(self, work: Work[T], exchange: Exchange) -> None:
        self.work = work
        self.exchange = exchange
        self.done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self.done.add_done_callback(_retrieve)

    async def cancel(self) -> None:
        """Stop it and wait until it has told the server."""
        self.done.cancel()
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])


class Connection:
    """A connection; `run` is its life.

    Args:
        endpoint: The server and the credential.
        config: Bounds.
        addresses: Checks where requests go.
    """

    def __init__(self, endpoint: Endpoint, *, config: McpConfig, addresses: Addresses) -> None:
        self.endpoint = endpoint
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.opened.add_done_callback(_retrieve)
        self.closing = False
        self.version = ""
        """The revision that was agreed on."""
        self.capabilities = types.ServerCapabilities()
        self.list_changes = 0
        """How often the server told that its tools changed."""
        self.watched = False
        """Whether the server tells of changes of its tools."""
        self._config = config
        self._addresses = addresses
        self._queue: asyncio.Queue[Request[Any] | None] = asyncio.Queue()
        self._tls: ssl.SSLContext | None = None
        self._running: set[Request[Any]] = set()

    @property
    def modern(self) -> bool:
        """Whether the server speaks the revision without sessions."""
        return self.version in MODERN_PROTOCOL_VERSIONS

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        return bool(self._running) or not self._queue.empty()

    def start(self, work: Work[T], exchange: Exchange) -> Request[T]:
        """Have a request run.

        Raises:
            ConnectionLostError: If the connection ends.
        """
        if self.closing:
            raise ConnectionLostError(CLOSING, sent=False)
        request = Request(work, exchange)
        self._queue.put_nowait(request)
        return request

    def close(self) -> None:
        """End it; what runs is cancelled."""
        self.closing = True
        self._queue.put_nowait(None)

    async def run(self) -> None:
        """Open, serve until idle, closed or broken, close."""
        exchange = Exchange()
        CURRENT.set(exchange)
        try:
            await self._open_and_serve(exchange)
        except Exception as error:  # noqa: BLE001 (the top of its task: what the SDK raises ends this connection only)
            self._fail(_cause(error), exchange)
        finally:
            self.closing = True
            self._fail(ConnectionLostError(CLOSING, sent=False), exchange)
            while not self._queue.empty():
                request = self._queue.get_nowait()
                if request is not None and not request.done.done():
                    request.done.set_exception(ConnectionLostError(CLOSING, sent=False))

    def _fail(self, error: BaseException, exchange: Exchange) -> None:
        if self.opened.done():
            if not isinstance(error, ConnectionLostError):
                logger.info("MCP connection broke", extra={"endpoint": self.endpoint.label, "error": str(error)})
            return
        if isinstance(error, MCPError):
            error = understand(error, exchange, self.endpoint)
        if not isinstance(error, StackError):
            words = str(error) or type(error).__name__
            error = UnavailableError(f"{self.endpoint.label}: the MCP server does not answer: {words}")
        self.opened.set_exception(error)

    async def _open_and_serve(self, exchange: Exchange) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                client = await self._open(stack, sse=False)
                await self._serve(client.session)
                return
        except MCPError:
            # Servers of the first revision have the older transport at the same address.
            if self.opened.done() or self.endpoint.stdio or exchange.status not in _OLD_SERVER:
                raise
        async with contextlib.AsyncExitStack() as stack:
            client = await self._open(stack, sse=True)
            await self._serve(client.session)

    async def _open(self, stack: contextlib.AsyncExitStack, *, sse: bool) -> Client:
        async with asyncio.timeout(self._config.open_seconds):
            if not self.endpoint.stdio and self._tls is None:  # reading the authorities takes a while
                self._tls = await asyncio.to_thread(httpx2.create_ssl_context, trust_env=False)
            if self.endpoint.stdio:
                transport = self._program()
            elif sse:
                transport = sse_client(
                    self.endpoint.uri,
                    httpx_client_factory=self._sse_http,
                )
            else:
                client = await stack.enter_async_context(self._http())
                transport = streamable_http_client(
                    self.endpoint.uri, http_client=client, max_sse_event_size=self._config.max_answer_bytes
                )
            return await stack.enter_async_context(
                Client(
                    transport,
                    mode="legacy" if sse else "auto",
                    cache=None,
                    read_timeout_seconds=self._config.request_seconds,
                    client_info=types.Implementation(name="llama-stack-mesh", version=version()),
                    log_level=LOG_LEVEL,
                    logging_callback=self._log,
                    message_handler=self._message,
                    elicitation_callback=self._elicit,
                )
            )

    def _sse_http(
        self,
        headers: dict[str, str] | None = None,  # noqa: ARG002 (the SDK's interface; ours has them all)
        timeout: httpx2.Timeout | None = None,  # noqa: ARG002
        auth: httpx2.Auth | None = None,  # noqa: ARG002
    ) -> httpx2.AsyncClient:
        return self._http()

    def _http(self) -> httpx2.AsyncClient:
        assert self._tls is not None
        return http_client(self.endpoint, self._addresses, self._tls, most=self._config.max_answer_bytes)

    @contextlib.asynccontextmanager
    async def _program(self) -> AsyncIterator[Any]:
        server = self._config.stdio[self.endpoint.stdio]
        parameters = StdioServerParameters(
            command=server.command, args=list(server.args), env={**server.env, **self.endpoint.env}, cwd=server.cwd
        )
        async with stdio_client(parameters) as (read, write):
            yield Watched(read, self.close), write

    async def _serve(self, session: ClientSession) -> None:
        self.version = session.protocol_version or ""
        self.capabilities = session.server_capabilities or self.capabilities
        listener: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as group:
            if self.capabilities.tools is not None and self.capabilities.tools.list_changed:
                self.watched = not self.modern
                if self.modern:
                    heard = asyncio.Event()
                    listener = group.create_task(self._listen(session, heard))
                    await wait(heard, seconds=LISTEN_SECONDS)  # what is listed from now on has its changes told
            self.opened.set_result(None)
            while (request := await self._next()) is not None:
                if not request.done.done():
                    self._running.add(request)
                    request.task = group.create_task(self._answer(request, session))
            self.closing = True
            for task in (listener, *(request.task for request in self._running)):
                if task is not None:
                    task.cancel()

    async def _next(self) -> Request[Any] | None:
        while True:
            try:
                async with asyncio.timeout(self._config.idle_seconds):
                    return await self._queue.get()
            except TimeoutError:
                if not self.busy:
                    return None

    async def _answer(self, request: Request[T], session: ClientSession) -> None:
        CURRENT.set(request.exchange)
        try:
            result = await request.work(session)
        except asyncio.CancelledError:
            if not request.done.done():  # the connection closes
                request.done.set_exception(ConnectionLostError(CLOSING, sent=True))
            raise
        except MCPError as error:
            self._give(request, understand(error, request.exchange, self.endpoint))
        except Exception as error:  # noqa: BLE001 (handed to whoever waits for the request)
            self._give(request, error)
        else:
            if not request.done.done():
                request.done.set_result(result)
        finally:
            self._running.discard(request)

    @staticmethod
    def _give(request: Request[Any], error: Exception) -> None:
        if not request.done.done():
            request.done.set_exception(error)

    async def _listen(self, session: ClientSession, heard: asyncio.Event) -> None:
        """Hear of changes in the revision without sessions, until the server ends it."""
        CURRENT.set(Exchange())
        try:
            async with listen(session, tools_list_changed=True) as changes:
                self.watched = bool(changes.honored.tools_list_changed)
                heard.set()
                async for _ in changes:
                    self.list_changes += 1
        except (MCPError, SubscriptionLost, ListenNotSupportedError, TimeoutError, ValidationError) as error:
            logger.info("MCP server tells no changes", extra={"endpoint": self.endpoint.label, "error": str(error)})
        finally:
            self.watched = False
            self.list_changes += 1
            heard.set()

    async def _message(self, message: IncomingMessage) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self.list_changes += 1

    async def _log(self, params: types.LoggingMessageNotificationParams) -> None:
        exchange = self._whose()
        if exchange is not None and exchange.report is not None:
            text = params.data if isinstance(params.data, str) else str(params.data)
            exchange.report.output(params.logger or "log", text)

    async def _elicit(
        self,
        context: ClientRequestContext,  # noqa: ARG002 (the SDK's interface)
        params: types.ElicitRequestParams,
    ) -> types.ElicitResult | types.ErrorData:
        """Put a session's question to the call that it belongs to, and wait for the answer."""
        exchange = self._whose()
        if exchange is None or exchange.report is None:
            return types.ElicitResult(action="cancel")  # no call, or nobody knows which
        question = Question(params, asyncio.get_running_loop().create_future())
        exchange.questions.put_nowait(question)
        try:
            async with asyncio.timeout(self._config.hold_seconds):
                return await question.answer
        except TimeoutError:
            return types.ElicitResult(action="cancel")

    def _whose(self) -> Exchange | None:
        """The exchange to which something the server sends belongs: by its context, else the only call that runs."""
        current = CURRENT.get()
        if current is not None and current.report is not None:
            return current
        calls = [request.exchange for request in self._running if request.exchange.report is not None]
        return calls[0] if len(calls) == 1 else None


def _cause(error: BaseException) -> BaseException:
    """What is wrong, out of the groups that task groups make of it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _retrieve(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()

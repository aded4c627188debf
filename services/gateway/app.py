"""The ASGI application: lets a request in, finds its route, and writes what the handler answers."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from starlette.types import Message, Receive, Scope, Send

from services.gateway import errors
from services.gateway.body import read_body
from services.gateway.config import GatewayConfig
from services.gateway.principal import Principal
from services.gateway.request import OPENAI_PREFIX, EmptyReply, JsonReply, Reply, Request, StreamReply
from services.gateway.routing import Route, Router
from services.runtime.calls import Call, Trace
from services.runtime.telemetry import Telemetry
from stack_client.errors import (
    CancelledError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    StackError,
)

logger = logging.getLogger(__name__)

HEARTBEAT = b": keep-alive\n\n"
_ID_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")
_NO_TENANT = Principal()
_OPENAI_NAMES = {"model_id": "model", "output_dimension": "dimensions", "contents": "input"}
_OF_MESSAGE = re.compile(r"^(messages\[\d+\])\.(?:user|system|tool|assistant)(?=\.)")


class Gate(Protocol):
    """Who may come in and how often."""

    async def enter(self, authorization: str) -> Principal:
        """Who bears this header.

        Raises:
            AuthenticationError: Nobody that is known.
            ResourceExhaustedError: The bearer's rate is used up.
        """

    async def spend(self, principal: Principal, tokens: int) -> None:
        """Note what a request cost its bearer."""


class OpenGate:
    """Lets everybody in."""

    async def enter(self, authorization: str) -> Principal:  # noqa: ARG002
        """Nobody in particular."""
        return _NO_TENANT

    async def spend(self, principal: Principal, tokens: int) -> None:
        """Nothing to note."""


@dataclass(kw_only=True)
class _Exchange:
    """One request while it is answered."""

    send: Send
    id: str
    trace: Trace
    started: bool = False
    left: bool = False
    """The client went away."""
    slow: bool = False
    """The client did not take what it was sent."""
    last_sent: float = 0.0
    sending: bool = False
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def start(self, status: int, headers: Mapping[str, str], content_type: str | None) -> None:
        self.started, self.status = True, status
        pairs = [
            (b"x-request-id", self.id.encode()),
            (b"x-trace-id", self.trace.trace_id.encode()),
            *((name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()),
        ]
        if content_type:
            pairs.append((b"content-type", content_type.encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})

    async def piece(self, data: bytes, *, more: bool) -> None:
        self.sending, self.last_sent = True, time.monotonic()
        try:
            await self.send({"type": "http.response.body", "body": data, "more_body": more})
        finally:
            self.sending, self.last_sent = False, time.monotonic()


class App:
    """Serves the routes.

    Args:
        router: The table.
        config: Bounds.
        gate: Who may come in.
        telemetry: Records a span per request.
    """

    def __init__(
        self,
        router: Router,
        *,
        config: GatewayConfig,
        gate: Gate | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.router = router
        self.gate: Gate = gate or OpenGate()
        self._config = config
        self._telemetry = telemetry
        self.in_flight = 0
        """Requests that are handled now."""
        self.ended: Callable[[Request, Route | None, int, float], None] = _log
        """Called after each request with its status and seconds."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        trace = Trace.from_headers(traceparent=headers.get("traceparent", ""), tracestate=headers.get("tracestate", ""))
        exchange = _Exchange(send=send, id=_request_id(headers.get("x-request-id", "")), trace=trace)
        request = Request(
            method=scope["method"],
            path=scope["path"],
            query_string=scope["query_string"],
            headers=headers,
            request_id=exchange.id,
            trace=trace,
            scope=scope,
            receive=receive,
        )
        began = time.monotonic()
        route: Route | None = None
        # Before the first outgoing call: the span's id and whether it is recorded go down with the trace.
        call = Call(method=f"/{scope['method']} unknown", request_id=exchange.id, trace=trace)
        end_span = self._telemetry.start_span(call) if self._telemetry else None
        self.in_flight += 1
        try:
            route = self._find(request)
            await self._admitted(request, route, exchange, receive)
        except StackError as error:
            call.reason = error.reason
            await self._fail(_renamed(error, route), exchange)
        except asyncio.CancelledError:
            if not exchange.left and not exchange.slow:
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            exchange.status = exchange.status or 499
        except Exception:
            logger.exception("a request failed inside the gateway", extra={"request_id": exchange.id})
            await self._fail(InternalError("the gateway failed; its log has the request id"), exchange)
        finally:
            self.in_flight -= 1
            if end_span is not None:
                call.method = f"/{scope['method']} {route.path if route else 'unknown'}"
                call.tenant = request.principal.tenant
                call.facts["http.response.status_code"] = exchange.status
                end_span(call, cancelled=exchange.left)
            self.ended(request, route, exchange.status, time.monotonic() - began)

    async def execute(
        self, endpoint: str, body: dict[str, Any], *, tenant: str, request_id: str
    ) -> tuple[int, dict[str, Any]]:
        """Run a request of a batch, without HTTP and without rates.

        A stored response is made under the request's id: where the gateway died meanwhile, the next try finds it
        instead of making a second one.

        Raises:
            StackError: As the handler raised it.
        """
        trace = Trace.from_headers(traceparent="", tracestate="")
        found_again = endpoint.endswith("/responses") and body.get("store") is not False
        request = Request(
            method="POST",
            headers={"idempotency-key": request_id} if found_again else {},
            path=endpoint,
            parsed=body,
            principal=Principal(tenant=tenant),
            request_id=request_id,
            trace=trace,
        )
        reply = await self._find(request).handler(request)
        if not isinstance(reply, JsonReply):
            raise InvalidArgumentError("a request of a batch cannot be streamed", field="stream")
        return reply.status, reply.value

    def _find(self, request: Request) -> Route:
        method = "GET" if request.method == "HEAD" else request.method
        path = request.path
        route, params, allowed = self.router.find(method, path)
        if route is None and len(path) > 1 and path.endswith("/"):  # some clients add a slash
            route, params, allowed = self.router.find(method, path.rstrip("/"))
        if route is not None:
            request.params = params
            return route
        if allowed:
            raise _MethodNotAllowedError(f"{path} has no {request.method}; it has: {', '.join(allowed)}", allowed)
        raise NotFoundError(f"nothing is at {path}; /v1/inspect/routes and /openapi.json list what there is")

    async def _admitted(self, request: Request, route: Route, exchange: _Exchange, receive: Receive) -> None:
        if self.in_flight > self._config.max_requests and route.scope:
            raise ResourceExhaustedError(
                f"{self._config.max_requests} requests are being handled already; come back in a second",
                retry_after=1.0,
            )
        if route.scope:
            principal = await self.gate.enter(request.headers.get("authorization", ""))
            if not principal.may(route.scope):
                raise PermissionDeniedError(
                    f"this key may not do that: it lacks the scope `{route.scope}`", metadata={"scope": route.scope}
                )
            request.principal = principal
        if not route.raw:
            request.body = await read_body(
                request.headers, receive, most=self._config.max_body_bytes, seconds=self._config.read_seconds
            )
        try:
            async with self._watched(exchange, receive, raw=route.raw):
                reply = await route.handler(request)
                await self._answer(reply, exchange, request)
        finally:  # what was used is counted, whether or not the client took it
            if request.tokens:
                await self.gate.spend(request.principal, request.tokens)

    @asynccontextmanager
    async def _watched(self, exchange: _Exchange, receive: Receive, *, raw: bool) -> AsyncIterator[None]:
        """Cancel the work when its client goes away or does not read."""
        work = asyncio.current_task()
        assert work is not None
        watch = asyncio.ensure_future(self._watch(exchange, receive, work)) if not raw else None
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()

    async def _watch(self, exchange: _Exchange, receive: Receive, work: "asyncio.Task[Any]") -> None:
        with suppress(asyncio.CancelledError):
            message: Message = {"type": ""}
            while message["type"] != "http.disconnect":
                message = await receive()
            exchange.left = True
            work.cancel()

    async def _answer(self, reply: Reply, exchange: _Exchange, request: Request) -> None:
        headers = dict(reply.headers)
        if request.ignored:
            headers["x-ignored-fields"] = _header_text(", ".join(request.ignored[:20]))
        if isinstance(reply, JsonReply):
            body = orjson.dumps(reply.value, option=orjson.OPT_NON_STR_KEYS)
            headers["content-length"] = str(len(body))
            await exchange.start(reply.status, headers, "application/json")
            await exchange.piece(b"" if request.method == "HEAD" else body, more=False)
        elif isinstance(reply, EmptyReply):
            await exchange.start(reply.status, headers, None)
            await exchange.piece(b"", more=False)
        else:
            await self._stream(reply, exchange, headers)

    async def _stream(self, reply: StreamReply, exchange: _Exchange, headers: dict[str, str]) -> None:
        events = reply.content_type == "text/event-stream"
        if events:
            headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
        pieces = reply.pieces
        keeper: asyncio.Future[None] | None = None
        try:
            # What fails before the first piece keeps its HTTP status.
            first = await anext(pieces, None)
            content_type = "text/event-stream; charset=utf-8" if events else reply.content_type
            await exchange.start(200, headers, content_type)
            work = asyncio.current_task()
            assert work is not None
            keeper = asyncio.ensure_future(self._keep(exchange, work, events=events))
            if first is not None:
                await exchange.piece(first, more=True)
                async for piece in pieces:
                    await exchange.piece(piece, more=True)
            await exchange.piece(b"", more=False)
        finally:
            if keeper is not None:
                keeper.cancel()
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()

    async def _keep(self, exchange: _Exchange, work: "asyncio.Task[Any]", *, events: bool) -> None:
        """Say that a silent stream is alive; cut off a client that does not read."""
        pause = min(self._config.heartbeat_seconds, self._config.write_seconds)
        with suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(pause - min(pause / 2, time.monotonic() - exchange.last_sent))
                silent = time.monotonic() - exchange.last_sent
                if exchange.sending:
                    if silent >= self._config.write_seconds:
                        exchange.slow = True
                        work.cancel()
                        return
                elif events and silent >= self._config.heartbeat_seconds:
                    await exchange.piece(HEARTBEAT, more=True)

    async def _fail(self, error: StackError, exchange: _Exchange) -> None:
        if exchange.started:  # only what comes after the first byte; streams of events end with an event of their own
            logger.warning("an answer broke off", extra={"request_id": exchange.id, "reason": error.reason})
            raise error
        status = 405 if isinstance(error, _MethodNotAllowedError) else errors.status_of(error)
        headers = dict(errors.error_headers(error, status=status))
        if isinstance(error, _MethodNotAllowedError):
            headers["allow"] = ", ".join(error.allowed)
        if isinstance(error, CancelledError):
            status = 499
        body = orjson.dumps(errors.error_body(error, status=status))
        headers["content-length"] = str(len(body))
        await exchange.start(status, headers, "application/json")
        await exchange.piece(body, more=False)


class _MethodNotAllowedError(NotFoundError):
    def __init__(self, message: str, allowed: Any) -> None:  # noqa: ANN401
        super().__init__(message)
        self.allowed = list(allowed)


def _header_text(text: str) -> str:
    """The text as a header can carry it: on one line, in ASCII, not long."""
    return text.encode("unicode_escape").decode()[:1000]


def _renamed(error: StackError, route: Route | None) -> StackError:
    """The error with its field named as the clients of this route do."""
    # A message is a union and its content a list of items; in JSON both stand in the object itself.
    place = _OF_MESSAGE.sub(r"\1", error.field).replace(".content.items[", ".content[")
    if place != error.field:
        error.message, error.field = error.message.replace(error.field, place), place
    if route is not None and OPENAI_PREFIX in route.mounts and error.field:
        name = error.field.removeprefix("sampling_params.")
        first = re.split(r"[.\[]", name, maxsplit=1)[0]
        name = _OPENAI_NAMES.get(first, first) + name[len(first) :]
        if error.message.startswith(error.field):
            error.message = name + error.message[len(error.field) :]
        error.field = name
    return error


def _request_id(given: str) -> str:
    """The caller's id where it is plain and short, else a new one."""
    if 0 < len(given) <= 128 and _ID_CHARS.issuperset(given):
        return given
    return f"req_{secrets.token_hex(12)}"


def _log(request: Request, route: Route | None, status: int, seconds: float) -> None:
    level = logging.DEBUG if status < 500 else logging.WARNING
    if logger.isEnabledFor(level):
        extra = {
            "http.request.method": request.method,
            "url.path": request.path,
            "http.route": route.path if route else "",
            "http.response.status_code": status,
            "seconds": round(seconds, 6),
            "request_id": request.request_id,
            "trace_id": request.trace.trace_id,
        }
        logger.log(level, "request answered", extra=extra)

"""One OpenAI-compatible endpoint over HTTP: requests, server-sent events, and its errors as ours."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from typing import Any, NoReturn, Self

import httpx

from services.inference.config import EndpointConfig
from services.inference.provider import Report
from stack_client.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    StackError,
    UnavailableError,
    UnsupportedError,
)

Json = dict[str, Any]

BUSY_SECONDS = 1.0
"""Told to callers that are refused and to whom the endpoint gave no time."""
_DATA = "data:"
_DONE = "[DONE]"
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error", "maximum context length", "context size")


class Endpoint:
    """An endpoint's connections; `async with` opens and closes them."""

    def __init__(self, name: str, config: EndpointConfig) -> None:
        self.name = name
        self.config = config
        self.in_flight = 0
        """Requests that the endpoint is answering now."""
        self._base = config.base_url.rstrip("/")
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        """Make the client; it connects with the first request."""
        config = self.config
        key = os.environ.get(config.api_key_env, "") if config.api_key_env else ""
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(config.read_seconds, connect=config.connect_seconds),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=config.max_in_flight),
            trust_env=False,  # the endpoint is what the configuration says, not what proxy variables make of it
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def get(self, path: str) -> Json:
        """The JSON answer to a GET.

        Raises:
            StackError: If the endpoint is away or refuses.
        """
        return await self._exchange("GET", path)

    async def post(self, path: str, body: Mapping[str, Any]) -> Json:
        """The JSON answer to a POST; `path` below the endpoint's base, or below its host when it begins with `/`.

        Raises:
            StackError: If the endpoint is away or refuses.
        """
        with self._one_more():
            return await self._exchange("POST", path, body)

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[Json]]:
        """Post and yield the events of the answer, once the endpoint has accepted; leaving closes the connection.

        Raises:
            StackError: If the endpoint is away, refuses, or breaks off: the events end with `[DONE]` or not well.
        """
        with self._one_more(), self._failures():
            async with self._http.stream("POST", self._url(path), json=body) as response:
                if response.status_code != HTTPStatus.OK:
                    await response.aread()
                    self.refuse(response.status_code, response.text, response.headers)
                async with aclosing(self._events(response)) as events:
                    yield events

    async def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        with self._failures():
            response = await self._http.request(method, self._url(path), json=body)
        if response.status_code != HTTPStatus.OK:
            self.refuse(response.status_code, response.text, response.headers)
        return self._object(response.text)

    async def _events(self, response: httpx.Response) -> AsyncGenerator[Json, None]:
        """Server-sent events as JSON; every server here sends one line of data per event."""
        async for line in response.aiter_lines():
            if not line.startswith((_DATA, "error:")):
                continue  # comments keep the connection alive, blank lines separate
            kind, _, data = line.partition(":")
            data = data.strip()
            if data == _DONE:
                return
            event = self._object(data)
            if kind == "error" or event.get("error"):
                error = event.get("error", event)
                code = error.get("code") if isinstance(error, dict) else None
                self.refuse(code if isinstance(code, int) else HTTPStatus.INTERNAL_SERVER_ERROR, data, {})
            yield event
        raise UnavailableError(f"{self._named} broke off its answer; ask again")

    @property
    def _http(self) -> httpx.AsyncClient:
        assert self._client is not None
        return self._client

    @property
    def _named(self) -> str:
        return f"endpoint {self.name!r} ({self.config.base_url})"

    def _url(self, path: str) -> str:
        return self._base.removesuffix("/v1") + path if path.startswith("/") else f"{self._base}/{path}"

    def _object(self, text: str) -> Json:
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise UnavailableError(f"{self._named} answered with something that is no JSON object: {text[:200]!r}")
        return parsed

    @contextlib.contextmanager
    def _one_more(self) -> Iterator[None]:
        """Count a request in and out."""
        if self.in_flight >= self.config.max_in_flight:
            message = f"{self.in_flight} requests are in flight at {self._named}; ask again in a second"
            raise ResourceExhaustedError(message, retry_after=BUSY_SECONDS)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise what goes wrong on the way as our errors."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            message = f"{self._named} cannot be reached ({error or 'timeout'}); is its server running?"
            raise UnavailableError(message, retry_after=BUSY_SECONDS) from error
        except httpx.TimeoutException as error:
            message = (
                f"{self._named} sent nothing for {self.config.read_seconds:g} s; ask for less or raise read_seconds"
            )
            raise DeadlineExceededError(message) from error
        except httpx.RequestError as error:
            raise UnavailableError(f"{self._named} broke off its answer ({error}); ask again") from error

    def refuse(self, status: int, body: str, headers: Mapping[str, str]) -> NoReturn:
        """Raise the endpoint's refusal."""
        raise _error(status, f"{self._named}: {_message(body) or f'HTTP {status}'}", body, headers, self.config)


def _error(status: int, said: str, body: str, headers: Mapping[str, str], config: EndpointConfig) -> StackError:
    retry = _retry_after(headers)
    error: StackError
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            # Not UNAUTHENTICATED: it is the node's key that was refused, and no credential of the caller's would help.
            where = f"the variable {config.api_key_env}" if config.api_key_env else "api_key_env"
            error = FailedPreconditionError(f"{said}; the node's key for it is refused: check {where}")
        case HTTPStatus.NOT_FOUND:
            error = NotFoundError(said, reason="MODEL_NOT_FOUND")
        case HTTPStatus.REQUEST_TIMEOUT | HTTPStatus.GATEWAY_TIMEOUT:
            error = DeadlineExceededError(said)
        case HTTPStatus.TOO_MANY_REQUESTS:
            error = ResourceExhaustedError(said, retry_after=BUSY_SECONDS if retry is None else retry)
        case _ if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            too_long = any(words in body for words in _TOO_LONG)
            error = InvalidArgumentError(said, reason="CONTEXT_LENGTH_EXCEEDED" if too_long else "")
        case _ if status == HTTPStatus.NOT_IMPLEMENTED or "not supported" in said:  # llama.cpp says 500 to images
            error = UnsupportedError(said, field="model_id")
        case _:
            error = UnavailableError(f"{said}; see the log of its server, or ask again", retry_after=retry)
    return error


def _message(body: str) -> str:
    """What an error's body says; servers put it under `error`, `message` or `detail`."""
    try:
        found = json.loads(body)
    except ValueError:
        return body[:500].strip()
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return found if isinstance(found, str) else json.dumps(found)[:500]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header; a date is left to the caller's own pace."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None


async def wait_for(endpoint: Endpoint, *, path: str, on_wait: Report) -> Json:
    """The answer to a GET, asked again while the endpoint starts, for at most its `wait_seconds`.

    Raises:
        StackError: As the last attempt failed.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + endpoint.config.wait_seconds
    while True:
        try:
            return await endpoint.get(path)
        except UnavailableError as error:
            if loop.time() >= until:
                raise
            on_wait(error.message)
        await asyncio.sleep(BUSY_SECONDS)

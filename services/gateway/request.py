"""A request as handlers see it, and what they answer."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope

from services.gateway.jsonmap import Reading
from services.gateway.principal import Principal
from services.gateway.provider_data import packed
from services.runtime.calls import PROVIDER_DATA as PROVIDER_DATA_KEY
from services.runtime.calls import REQUEST_ID, TENANT, TRACEPARENT, TRACESTATE, Trace
from stack_client.errors import InvalidArgumentError

OPENAI_PREFIX = "/v1/openai/v1"
PROVIDER_DATA = ("x-llamastack-provider-data", "x-llamastack-providerdata", "x-ogx-provider-data")
CLIENT_VERSION = ("x-llamastack-client-version", "x-ogx-client-version")
_VERSION = re.compile(r"^(\d+)\.(\d+)")


@dataclass(kw_only=True)
class Request:
    """One request.

    Attributes are set by the application before a handler runs.
    """

    method: str
    """`GET`, `POST` and so on."""
    path: str
    """The whole path, unquoted."""
    params: Mapping[str, str] = field(default_factory=dict)
    """What the route's placeholders stand for."""
    query_string: bytes = b""
    """As it came."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case name."""
    principal: Principal = field(default_factory=Principal)
    """Who asks."""
    request_id: str = ""
    """Of the caller, or made here."""
    trace: Trace = field(default_factory=lambda: Trace.from_headers(traceparent="", tracestate=""))
    """The trace that the work belongs to."""
    body: bytes = b""
    """The whole body, unpacked; empty for routes that read it themselves."""
    parsed: Any = None
    """The body where it came as a value, as in batches."""
    scope: Scope | None = None
    """ASGI's, for routes that read the body themselves."""
    receive: Receive | None = None
    """ASGI's, for the same."""
    tokens: int = 0
    """Tokens of prompt and answer, noted by handlers for the bearer's rate."""
    mcp_headers: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    """Headers for MCP servers, by address, that came in the body: secrets, which go the way of those in the header."""
    _keys: str | None = field(default=None, repr=False)
    ignored: list[str] = field(default_factory=list)
    """Paths of fields that were not understood and passed over; told in a header."""

    @property
    def openai_mount(self) -> bool:
        """Whether the client came by the prefix of 0.2 for OpenAI's routes."""
        return self.path.startswith(OPENAI_PREFIX)

    @property
    def client_version(self) -> tuple[int, int] | None:
        """Major and minor version of a Llama Stack or OGX client; None for all others."""
        for name in CLIENT_VERSION:
            match = _VERSION.match(self.headers.get(name, ""))
            if match:
                return int(match[1]), int(match[2])
        return None

    @property
    def wants_done(self) -> bool:
        """Whether a stream of OpenAI's ends with `[DONE]`: clients of 0.2 fail on it, many others wait for it."""
        if self.openai_mount:
            return False
        if "x-llamastack-client-version" in self.headers:
            version = self.client_version
            return version is not None and version >= (0, 7)
        return True

    def metadata(self, *, keys: bool) -> list[tuple[str, str]]:
        """What calls of services carry.

        Args:
            keys: Whether the service runs tools, so that it gets the keys of providers that the caller brings.

        Raises:
            InvalidArgumentError: The header with keys of providers is no JSON object, too long, or has another shape.
        """
        pairs = [(REQUEST_ID, self.request_id), (TRACEPARENT, self.trace.traceparent)]
        if self.principal.tenant:
            pairs.append((TENANT, self.principal.tenant))
        if self.trace.state:
            pairs.append((TRACESTATE, self.trace.state))
        data = self._packed_provider_data()
        if data and keys:
            pairs.append((PROVIDER_DATA_KEY, data))
        return pairs

    def json(self) -> dict[str, Any]:
        """The body as an object; an empty one is an empty object.

        Raises:
            InvalidArgumentError: It is no JSON, or no object.
        """
        value = self.parsed
        if value is None:
            if not self.body:
                return {}
            try:
                value = orjson.loads(self.body)
            except orjson.JSONDecodeError as error:
                value = _form(self) or _lenient(self.body, error)
        if not isinstance(value, dict):
            raise InvalidArgumentError("the body must be a JSON object")
        return value

    def query(self) -> dict[str, Any]:
        """The query: lists for names that come more than once or as `name[]`, objects for `name[key]`."""
        found: dict[str, Any] = {}
        for name, value in parse_qsl(self.query_string.decode("latin-1"), keep_blank_values=True):
            outer, bracket, rest = name.partition("[")
            inner = rest.removesuffix("]") if bracket else ""
            if inner:
                under = found.setdefault(outer, {})
                if isinstance(under, dict):
                    under[inner] = value
            elif outer in found or bracket:
                before = found.get(outer, [])
                found[outer] = [*(before if isinstance(before, list) else [before]), value]
            else:
                found[outer] = value
        return found

    def provider_data(self) -> dict[str, Any]:
        """Keys of providers that the caller brings for this request.

        Raises:
            InvalidArgumentError: The header is no JSON object.
        """
        for name in PROVIDER_DATA:
            given = self.headers.get(name)
            if given:
                try:
                    value = orjson.loads(given)
                except orjson.JSONDecodeError:
                    value = None
                if not isinstance(value, dict):
                    raise InvalidArgumentError(f"{name}: must be a JSON object", field=name)
                return self._with_mcp_headers(value)
        return self._with_mcp_headers({})

    def _with_mcp_headers(self, value: dict[str, Any]) -> dict[str, Any]:
        """The keys with those of the body; the body is nearer to the tool, so it comes first."""
        if not self.mcp_headers:
            return value
        given = value.get("mcp_headers")
        return {**value, "mcp_headers": {**(given if isinstance(given, dict) else {}), **self.mcp_headers}}

    def _packed_provider_data(self) -> str:
        if self._keys is None:
            name = next((name for name in PROVIDER_DATA if self.headers.get(name)), "tools")
            self._keys = packed(self.provider_data(), name=name)
        return self._keys

    def reading(self, *, strict: bool) -> Reading:
        """For the codec; fields that it passes over are told to the client."""
        return Reading(strict=strict, ignored=self.ignored)


def _form(request: Request) -> dict[str, Any]:
    """The members of a form, where a response is asked for by one as clients from 0.7 may; empty for all else.

    Their values are JSON, or plain text.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    asked = kind == "application/x-www-form-urlencoded" and request.path.endswith("/responses")
    if not asked or request.body.lstrip().startswith(b"{"):  # curl calls JSON a form, too
        return {}
    return {name: _member(value) for name, value in parse_qsl(request.body.decode("latin-1"), keep_blank_values=True)}


def _member(value: str) -> Any:  # noqa: ANN401
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _lenient(body: bytes, error: orjson.JSONDecodeError) -> Any:  # noqa: ANN401
    """What Python's parser makes of a body that the fast one refuses, for better words, and nothing else.

    Raises:
        InvalidArgumentError: It is no JSON.
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        raise InvalidArgumentError("the body is not valid UTF-8") from None
    try:
        json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidArgumentError("the body is nested too deep") from None
    except ValueError as reason:
        raise InvalidArgumentError(f"the body is not valid JSON: {reason}") from None
    raise InvalidArgumentError(f"the body is not valid JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


@dataclass(frozen=True, kw_only=True)
class JsonReply:
    """An answer with a JSON body."""

    value: Any
    """The body."""
    status: int = 200
    """HTTP status."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers."""


@dataclass(frozen=True, kw_only=True)
class EmptyReply:
    """An answer without body: what was asked for is done."""

    status: int = 204
    """HTTP status."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers."""


@dataclass(frozen=True, kw_only=True)
class StreamReply:
    """An answer in pieces: server-sent events, or the bytes of a file.

    The pieces are closed (`aclose`) on every way out, which must end the work behind them.
    """

    pieces: AsyncIterator[bytes]
    """The body."""
    content_type: str = "text/event-stream"
    """Its type."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers."""


Reply = JsonReply | EmptyReply | StreamReply
Handler = Callable[[Request], Awaitable[Reply]]

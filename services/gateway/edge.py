"""What the route tables are written with: handlers made of one RPC, where the shapes agree."""

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.gateway.config import GatewayConfig
from services.gateway.jsonmap import Codec
from services.gateway.request import EmptyReply, Handler, JsonReply, Reply, Request
from services.gateway.upstream import Rpc, Upstream, missing_service
from stack_client.errors import InvalidArgumentError

Answer = Callable[[Any, Request], Reply]
PAGE = 1000
"""Entries asked for at a time where a client wants all."""


class Edge:
    """Channels, codec and settings, and the handlers made of them.

    Args:
        upstream: The services.
        codec: Between messages and JSON.
        config: The gateway's.
    """

    def __init__(self, upstream: Upstream, *, codec: Codec, config: GatewayConfig) -> None:
        self.upstream = upstream
        self.codec = codec
        self.config = config

    def unary(
        self,
        name: str,
        answer: Answer,
        *,
        rename: Mapping[str, str] | None = None,
        drop: tuple[str, ...] = (),
        strict: bool = False,
        needs: tuple[str, ...] = (),
    ) -> Handler:
        """A handler that reads body, path and query into the request of one RPC.

        Args:
            name: `ModelsService.GetModel`.
            answer: Makes the answer of the response.
            rename: Fields of the request by the names that path, query and body have for them.
            drop: Members of the body that say nothing to the service.
            strict: Refuse members that no field has, as OpenAI does; else they are passed over, as Llama Stack does,
                and named in the header `x-ignored-fields`.
            needs: Fields that must be there, where the service would only say that it does not know the empty one.
        """
        rpc = Rpc(name)

        async def handler(request: Request) -> Reply:
            self.require(rpc)
            message = self.read(rpc, request, rename=rename, drop=drop, strict=strict)
            for one in needs:
                if not getattr(message, one):
                    raise InvalidArgumentError(f"{one}: missing or empty", field=one, reason="MISSING_FIELD")
            return answer(await self.upstream.unary(rpc, message, request=request), request)

        return handler

    def listing(self, name: str, *, rename: Mapping[str, str] | None = None) -> Handler:
        """A handler that lists all entries of a paged RPC as `{"data": [...]}`."""
        rpc = Rpc(name)

        async def handler(request: Request) -> Reply:
            self.require(rpc)
            message = self.read(rpc, request, rename=rename, strict=False)
            entries = await self.every(rpc, message, request=request)
            return JsonReply(value={"data": [self.codec.encode(entry) for entry in entries]})

        return handler

    async def every(self, rpc: Rpc, message: Any, *, request: Request, most: int | None = None) -> list[Any]:  # noqa: ANN401
        """The entries of a paged RPC, over all pages, or the first `most` of them.

        Raises:
            StackError: As the service raised it.
        """
        entries: list[Any] = []
        message.page_size = PAGE
        while True:
            page = await self.upstream.unary(rpc, message, request=request)
            entries += page.data
            if not page.next_page_token or (most is not None and len(entries) >= most):
                return entries[:most]
            message.page_token = page.next_page_token

    def paged(self, name: str, *, path: str, rename: Mapping[str, str] | None = None) -> Handler:
        """A handler for the native pages of 0.2: `start_index` and `limit` in, `data`, `has_more` and `url` out.

        Args:
            name: The RPC.
            path: The list's own path, for `url`; placeholders are filled in.
            rename: As in `unary`.
        """
        rpc = Rpc(name)

        async def handler(request: Request) -> Reply:
            query = request.query()
            start, limit = page_bounds(query)
            rest = {key: value for key, value in query.items() if key not in {"start_index", "limit"}}
            message = self.fill(rpc, {**rest, **request.params}, request, rename=rename, strict=False)
            most = None if limit is None else start + limit + 1
            entries = await self.every(rpc, message, request=request, most=most)
            end = len(entries) if limit is None else start + limit
            data = [self.codec.encode(entry) for entry in entries[start:end]]
            url = path.format(**request.params)
            return JsonReply(value={"data": data, "has_more": len(entries) > end, "url": url})

        return handler

    def require(self, rpc: Rpc) -> None:
        """Refuse by name what no service of this stack does, before anything else is looked at.

        Raises:
            UnsupportedError: There is no such service.
        """
        if not self.upstream.has(rpc.host):
            raise missing_service(rpc.host)

    def read(
        self,
        rpc: Rpc,
        request: Request,
        *,
        rename: Mapping[str, str] | None = None,
        drop: tuple[str, ...] = (),
        strict: bool = False,
    ) -> Any:  # noqa: ANN401 - by the Rpc
        """The request of an RPC, of body, query and path.

        Raises:
            InvalidArgumentError: Something in them is wrong.
        """
        values: dict[str, Any] = {}
        if request.method in {"POST", "PUT", "PATCH"}:
            values.update(request.json())
        values = {key: value for key, value in values.items() if key not in drop}
        names = rename or {}
        query = {names.get(key, key): value for key, value in request.query().items() if key not in drop}
        values.update(coerced(query, rpc.request.DESCRIPTOR))
        values.update(request.params)
        return self.fill(rpc, values, request, rename=rename, strict=strict)

    def fill(
        self,
        rpc: Rpc,
        values: Mapping[str, Any],
        request: Request,
        *,
        rename: Mapping[str, str] | None = None,
        strict: bool,
    ) -> Any:  # noqa: ANN401 - by the Rpc
        """The request of an RPC, of values by name.

        Raises:
            InvalidArgumentError: Something in them is wrong.
        """
        names = rename or {}
        given = {names.get(key, key): value for key, value in values.items()}
        if "request_id" in rpc.request.DESCRIPTOR.fields_by_name and "idempotency-key" in request.headers:
            given.setdefault("request_id", request.headers["idempotency-key"])
        reading = request.reading(strict=strict)
        return self.codec.decode(rpc.request, coerced(given, rpc.request.DESCRIPTOR), reading=reading)

    def member(self, name: str) -> Answer:
        """Answers with a field of the response."""
        return lambda response, _request: JsonReply(value=self.codec.encode(getattr(response, name)))

    @property
    def whole(self) -> Answer:
        """Answers with the response itself."""
        return lambda response, _request: JsonReply(value=self.codec.encode(response))

    @property
    def nothing(self) -> Answer:
        """Answers 204."""
        return lambda _response, _request: EmptyReply()

    def encode(self, message: Message) -> Any:  # noqa: ANN401
        """The JSON of a message."""
        return self.codec.encode(message)


def page_bounds(query: Mapping[str, Any]) -> tuple[int, int | None]:
    """`start_index` and `limit` of a native list; a limit of None or -1 is all.

    Raises:
        InvalidArgumentError: They are no numbers, or negative.
    """
    start = whole_number(query.get("start_index"), "start_index", default=0)
    limit = whole_number(query.get("limit"), "limit", default=-1)
    if start < 0:
        raise InvalidArgumentError("start_index: must not be negative", field="start_index")
    if limit < -1:
        raise InvalidArgumentError("limit: must be positive, or -1 for all", field="limit")
    return start, None if limit == -1 else limit


def whole_number(value: Any, name: str, *, default: int) -> int:  # noqa: ANN401
    """A number of a query.

    Raises:
        InvalidArgumentError: It is none.
    """
    if value is None or value == "":
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{name}: {value!r} is no whole number", field=name) from None


def coerced(values: Mapping[str, Any], descriptor: Any) -> dict[str, Any]:  # noqa: ANN401 - a Descriptor
    """Strings, as queries and paths have them, as the types that the fields have."""
    return {key: _coerced(value, descriptor.fields_by_name.get(key)) for key, value in values.items()}


def _coerced(value: Any, one: FieldDescriptor | None) -> Any:  # noqa: ANN401
    if one is None:
        return value
    if one.is_repeated and one.message_type is None and isinstance(value, str):
        value = value.split(",") if value else []
    if not isinstance(value, str):
        return value
    if one.cpp_type in _NUMBERS and _is_number(value):
        return float(value) if "." in value else int(value)
    if one.cpp_type == FieldDescriptor.CPPTYPE_BOOL and value.lower() in {"true", "false", "1", "0"}:
        return value.lower() in {"true", "1"}
    return value


_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_FLOAT,
    FieldDescriptor.CPPTYPE_DOUBLE,
}


def _is_number(value: str) -> bool:
    return value.lstrip("+-").replace(".", "", 1).isdigit() and value.isascii() and len(value) < 24

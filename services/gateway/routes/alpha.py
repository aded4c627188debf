"""The routes of 0.0.63, `/alpha/...`: verbs in paths and ids as parameters, answered by the handlers of today's."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import orjson

from services.gateway import sse
from services.gateway.request import EmptyReply, Handler, JsonReply, Reply, Request, StreamReply
from services.gateway.routes import alpha_shapes as shapes
from services.gateway.routing import V1, Route
from stack_client.errors import InvalidArgumentError, NotFoundError, UnsupportedError

ALPHA_63 = ("/alpha",)
_SESSION = "/agents/{agent_id}/session/{session_id}"
_TURN = f"{_SESSION}/turn/{{turn_id}}"
_BOTH = ("GET", "POST")
_POST = ("POST",)
_GET = ("GET",)
_MISSING = {
    "datasets": ("list", "get", "register", "unregister"),
    "datasetio": ("get-rows-paginated", "append-rows"),
    "eval-tasks": ("list", "get", "register"),
    "eval": ("run-eval", "evaluate-rows", "job/status", "job/cancel", "job/result"),
    "scoring-functions": ("list", "get", "register"),
    "scoring": ("score", "score-batch"),
    "post-training": (
        "supervised-fine-tune", "preference-optimize", "jobs", "job/status", "job/cancel", "job/artifacts",
    ),
    "telemetry": ("log-event", "query-traces", "get-span-tree", "query-spans", "save-spans-to-dataset"),
    "synthetic-data-generation": ("generate",),
}  # fmt: skip
"""What changed its shape since: answered with where it is now."""


@dataclass(frozen=True, kw_only=True)
class Old:
    """One route of 0.0.63."""

    methods: Sequence[str]
    """Its own."""
    path: str
    """Below `/alpha`."""
    method: str
    """Of the route that answers it."""
    to: str
    """Path of that route."""
    rename: Mapping[str, str]
    """Parameters by their old names."""
    read: Callable[[dict[str, Any], Request], dict[str, Any]] | None = None
    """Rewrites the parameters."""
    write: Callable[[Any], Any] | None = None
    """Rewrites the answer's JSON."""
    event: Callable[[Any], Any] | None = None
    """Rewrites an event of a stream; what becomes None is left out."""
    null: bool = False
    """Whether what is not there is `null`."""
    mounts: tuple[str, ...] = ALPHA_63
    """Prefixes; some of these routes outlived 0.0.63 unchanged."""


def _old(methods: Sequence[str], path: str, method: str, to: str, **more: Any) -> Old:  # noqa: ANN401
    return Old(methods=methods, path=path, method=method, to=to, **{"rename": {}, **more})


_CREATE_TURN = _old(
    _POST,
    "/agents/turn/create",
    "POST",
    f"{_SESSION}/turn",
    rename={"attachments": "documents"},
    read=shapes.turn_request,
    write=shapes.turn,
    event=shapes.turn_event,
)
_RESUME_TURN = _old(
    _POST,
    "/agents/turn/create",
    "POST",
    f"{_TURN}/resume",
    read=shapes.resume_request,
    write=shapes.turn,
    event=shapes.turn_event,
)
_TABLE = (
    _old(_POST, "/inference/chat-completion", "POST", "/inference/chat-completion", event=shapes.chat_event),
    _old(_POST, "/inference/completion", "POST", "/inference/completion"),
    _old(_POST, "/inference/embeddings", "POST", "/inference/embeddings"),
    _old(_POST, "/batch-inference/chat-completion", "POST", "/inference/batch-chat-completion",
         rename={"model": "model_id"}, write=shapes.chat_batch, mounts=(*ALPHA_63, *V1)),
    _old(_POST, "/batch-inference/completion", "POST", "/inference/batch-completion",
         rename={"model": "model_id"}, write=shapes.completion_batch, mounts=(*ALPHA_63, *V1)),
    _old(_GET, "/models/list", "GET", "/models", write=shapes.bare),
    _old(_GET, "/models/get", "GET", "/models/{model_id:path}", rename={"identifier": "model_id"}, null=True),
    _old(_POST, "/models/register", "POST", "/models"),
    _old(_POST, "/models/unregister", "DELETE", "/models/{model_id:path}"),
    _old(_GET, "/shields/list", "GET", "/shields", write=shapes.bare),
    _old(_GET, "/shields/get", "GET", "/shields/{identifier:path}", null=True),
    _old(_POST, "/shields/register", "POST", "/shields"),
    _old(_POST, "/safety/run-shield", "POST", "/safety/run-shield"),
    _old(_POST, "/agents/create", "POST", "/agents", read=shapes.agent),
    _old(_POST, "/agents/delete", "DELETE", "/agents/{agent_id}"),
    _old(_POST, "/agents/session/create", "POST", "/agents/{agent_id}/session"),
    _old(_BOTH, "/agents/session/get", "GET", _SESSION, write=shapes.session),
    _old(_POST, "/agents/session/delete", "DELETE", _SESSION),
    _CREATE_TURN,
    _old(_BOTH, "/agents/turn/get", "GET", _TURN, write=shapes.turn),
    _old(_BOTH, "/agents/step/get", "GET", f"{_TURN}/step/{{step_id}}"),
    _old(_GET, "/health", "GET", "/health"),
    _old(_GET, "/providers/list", "GET", "/providers", write=shapes.by_api),
    _old(_GET, "/routes/list", "GET", "/inspect/routes", write=shapes.by_area),
)  # fmt: skip


def routes(others: Sequence[Route]) -> list[Route]:
    """The rows.

    Args:
        others: The rest of the table, whose handlers answer.
    """
    known = {(route.method, route.path): route for route in others if "/v1" in route.mounts}
    found = []
    for old in _TABLE:
        route = known[old.method, old.to]
        handler = _forward(old, route)
        if old is _CREATE_TURN:
            resume = _forward(_RESUME_TURN, known["POST", _RESUME_TURN.to])
            handler = _turn(handler, resume, known["GET", _SESSION].handler)
        found += [_row(old, method, route, handler) for method in old.methods]
    for area, verbs in _MISSING.items():
        for verb in verbs:
            found += [_gone(method, f"/{area}/{verb}", area) for method in _BOTH]
    return found


def _row(old: Old, method: str, route: Route, handler: Handler) -> Route:
    return Route(
        method=method,
        path=old.path,
        handler=handler,
        api=route.api,
        summary=route.summary,
        scope=route.scope,
        mounts=old.mounts,
        streams=route.streams,
    )


def _gone(method: str, path: str, area: str) -> Route:
    now = {"eval-tasks": "eval/benchmarks", "eval": "eval/benchmarks"}.get(area, area)

    async def handler(_request: Request) -> Reply:
        raise UnsupportedError(f"/alpha{path} is not served any more; see /v1/{now} and a newer client")

    return Route(method=method, path=path, handler=handler, api=area, summary="Not served any more", mounts=ALPHA_63)


def _forward(old: Old, route: Route) -> Handler:
    names = [piece[1:-1].removesuffix(":path") for piece in old.to.split("/") if piece.startswith("{")]

    async def handler(request: Request) -> Reply:
        given = {**request.query(), **(request.json() if request.method == "POST" else {})}
        given = {old.rename.get(name, name): value for name, value in given.items() if value is not None}
        if old.read is not None:
            given = old.read(given, request)
        request.params = {name: _taken(given, name) for name in names}
        if old.method == "POST":
            request.parsed, request.query_string = given, b""
        else:
            request.parsed, request.query_string = {}, urlencode(given, doseq=True).encode()
        if request.method != "HEAD":
            request.method = old.method
        try:
            return _rewritten(await route.handler(request), old)
        except NotFoundError:
            if old.null:
                return JsonReply(value=None)
            raise

    return handler


def _turn(create: Handler, resume: Handler, session: Handler) -> Handler:
    """A new turn; one that only brings results of tools goes on with the turn that waits for them."""

    async def handler(request: Request) -> Reply:
        given = {**request.query(), **request.json()}
        if not shapes.brings_results(given):
            return await create(request)
        params = {name: _taken(given, name) for name in ("agent_id", "session_id")}
        asked = replace(request, method="GET", params=params, query_string=b"", body=b"", parsed=None)
        reply = await session(asked)
        assert isinstance(reply, JsonReply)
        waiting = [turn["turn_id"] for turn in reply.value["turns"] if turn["status"] == "awaiting_input"]
        if not waiting:
            return await create(request)
        request.parsed = {**given, **params, "turn_id": waiting[-1]}
        return await resume(request)

    return handler


def _taken(given: dict[str, Any], name: str) -> str:
    value = given.pop(name, None)
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(f"{name}: missing, or no string", field=name, reason="MISSING_FIELD")
    return value


def _rewritten(reply: Reply, old: Old) -> Reply:
    if isinstance(reply, EmptyReply):
        return JsonReply(value=None)
    if isinstance(reply, StreamReply):
        return reply if old.event is None else StreamReply(pieces=_events(reply.pieces, old.event))
    return reply if old.write is None else JsonReply(value=old.write(reply.value))


async def _events(pieces: AsyncIterator[bytes], event: Callable[[Any], Any]) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            if not piece.startswith(b"data: {"):
                yield piece
            elif (written := event(orjson.loads(piece[6:]))) is not None:
                yield sse.data(written)
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()

"""The table of routes: what is where, who may ask, and finding a request's row."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from services.gateway.request import OPENAI_PREFIX, Handler

V1 = ("/v1",)
OPENAI = ("/v1", OPENAI_PREFIX)
ALPHA = ("/v1", "/v1alpha")
BETA = ("/v1", "/v1beta")
_PLACEHOLDER = re.compile(r"\{(\w+)(:path)?\}")


@dataclass(frozen=True, kw_only=True)
class Route:
    """One operation."""

    method: str
    """`GET`, `POST`, `PUT`, `DELETE`."""
    path: str
    """Below each mount; `{name}` is a segment, `{name:path}` may have slashes."""
    handler: Handler
    """Answers it."""
    api: str
    """The API of the stack that it belongs to, as clients read it in `/v1/inspect/routes`: `inference`, `agents`."""
    summary: str
    """What it does, in a few words."""
    scope: str = "read"
    """What the bearer must be allowed, of `principal.SCOPES`; empty lets anybody in, even without key."""
    mounts: tuple[str, ...] = V1
    """Prefixes under which it is served."""
    raw: bool = False
    """Whether the handler reads the body itself."""
    request: type[Message] | Mapping[str, Any] | None = None
    """The body: a message whose JSON form it is, or a JSON Schema."""
    response: type[Message] | Mapping[str, Any] | None = None
    """The answer, the same way; None where there is none."""
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """JSON Schema of the query's members, by name."""
    streams: bool = False
    """Whether `stream: true` in the body asks for server-sent events."""
    provider_types: Sequence[str] = ()
    """Providers behind it, for `/v1/inspect/routes`."""


Row = tuple[str, str, Handler, str, Mapping[str, Any]]
"""Method, path, handler, summary, and what else a route has."""


def table(rows: Iterable[Row], *, api: str, scope: str, mounts: tuple[str, ...] = V1) -> list[Route]:
    """The routes of rows that share an API; those that only read need the scope `read`.

    Args:
        rows: In any order.
        api: Theirs.
        scope: Of the others.
        mounts: Theirs.
    """
    return [
        Route(
            method=method,
            path=path,
            handler=handler,
            api=api,
            summary=summary,
            scope="read" if method == "GET" else scope,
            mounts=mounts,
            **more,
        )
        for method, path, handler, summary, more in rows
    ]


class Router:
    """Finds routes. Literal paths win over placeholders, longer patterns over shorter ones.

    Args:
        routes: The table.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = list(routes)
        self._literal: dict[str, dict[str, Route]] = {}
        patterns: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            for mount in route.mounts:
                path = mount + route.path
                table = patterns if "{" in path else self._literal
                methods = table.setdefault(path, {})
                if route.method in methods:
                    raise ValueError(f"{route.method} {path} is there twice")
                methods[route.method] = route
        ordered = sorted(patterns, key=_specificity)
        self._patterns = [(_compile(path), patterns[path]) for path in ordered]

    def find(self, method: str, path: str) -> tuple[Route | None, Mapping[str, str], Sequence[str]]:
        """The route of a request with what its placeholders stand for; without one, the methods that the path has."""
        methods = self._literal.get(path)
        if methods is not None and method in methods:
            return methods[method], {}, ()
        allowed = list(methods or ())
        for pattern, found in self._patterns:
            match = pattern.match(path)
            if match is not None:
                if method in found:
                    return found[method], match.groupdict(), ()
                allowed += found
        return None, {}, sorted(set(allowed))


def _compile(path: str) -> re.Pattern[str]:
    pieces, end = [], 0
    for match in _PLACEHOLDER.finditer(path):
        pieces += [re.escape(path[end : match.start()]), f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})"]
        end = match.end()
    return re.compile("^" + "".join(pieces) + re.escape(path[end:]) + "$", re.DOTALL)


def _specificity(path: str) -> tuple[bool, int, int]:
    """Sorts patterns: without free tails first, then those with more literal text, then with more segments."""
    literal = _PLACEHOLDER.sub("", path)
    return ":path}" in path and path.endswith("}"), -len(literal), -path.count("/")

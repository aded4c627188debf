"""Engines behind HTTP: Brave, Bing, Tavily, SearXNG."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from llamastack import v1
from services.runtime.config import read_config
from services.tools.outgoing import Answer, Outgoing
from services.tools.provider import Access, Call, ProviderContext
from services.tools.provider_data import API_KEYS
from services.tools.providers.plain import PlainProvider, failed
from services.tools.providers.websearch.results import MAX_RESULTS, TOOL, Hit, hits_of, result_of, wanted
from stack_client.errors import InvalidArgumentError

KEY = "api_key"


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of an engine, `tools.providers.<engine>`."""

    base_url: str = ""
    """Where its API is; empty means the usual place."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """A request of an engine."""

    url: str
    headers: Mapping[str, str]
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How an engine is asked and what it answers."""

    name: str
    """Provider id."""
    base_url: str
    """Where it is; empty means that the configuration or the group must say."""
    needs_key: bool
    """Whether it wants a key."""
    ask: Callable[[str, str, int, str], Query]
    """Of base URL, query, number of results and key."""
    read: Callable[[Mapping[str, Any]], Sequence[Hit]]
    """Of the answer's JSON."""


def _brave(base: str, query: str, count: int, key: str) -> Query:
    parameters = urlencode({"q": query, "count": count, "text_decorations": "false"})
    return Query(url=f"{base}/res/v1/web/search?{parameters}", headers={"X-Subscription-Token": key})


def _bing(base: str, query: str, count: int, key: str) -> Query:
    parameters = urlencode({"q": query, "count": count, "textFormat": "Raw"})
    return Query(url=f"{base}/v7.0/search?{parameters}", headers={"Ocp-Apim-Subscription-Key": key})


def _tavily(base: str, query: str, count: int, key: str) -> Query:
    body = {"query": query, "max_results": count}
    return Query(url=f"{base}/search", headers={"Authorization": f"Bearer {key}"}, body=body)


def _searxng(base: str, query: str, count: int, key: str) -> Query:  # noqa: ARG001 (the interface)
    return Query(url=f"{base}/search?{urlencode({'q': query, 'format': 'json'})}", headers={})


ENGINES = (
    Engine(
        name="brave-search",
        base_url="https://api.search.brave.com",
        needs_key=True,
        ask=_brave,
        read=lambda body: hits_of(
            (body.get("web") or {}).get("results"), title="title", url="url", snippet="description"
        ),
    ),
    Engine(
        name="bing-search",
        base_url="https://api.bing.microsoft.com",
        needs_key=True,
        ask=_bing,
        read=lambda body: hits_of(
            (body.get("webPages") or {}).get("value"), title="name", url="url", snippet="snippet"
        ),
    ),
    Engine(
        name="tavily-search",
        base_url="https://api.tavily.com",
        needs_key=True,
        ask=_tavily,
        read=lambda body: hits_of(body.get("results"), title="title", url="url", snippet="content"),
    ),
    Engine(
        name="searxng",
        base_url="",
        needs_key=False,
        ask=_searxng,
        read=lambda body: hits_of(body.get("results"), title="title", url="url", snippet="content"),
    ),
)


class WebSearchProvider(PlainProvider):
    """Asks one engine.

    Args:
        context: Of the service.
        engine: Which.
    """

    arguments = frozenset({"max_results", "base_url"})

    def __init__(self, context: ProviderContext, *, engine: Engine) -> None:
        file = context.service.config.file
        self._config = read_config(EngineConfig, context.config, file=file, at=f"tools.providers.{engine.name}")
        self._engine = engine
        self._outgoing = Outgoing(context)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._outgoing.__aexit__(kind, error, traceback)

    async def __aenter__(self) -> Self:
        """Nothing is connected yet."""
        return self

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        """Refuse arguments out of range, and an engine whose place nobody named.

        Raises:
            InvalidArgumentError: Naming the field.
        """
        await super().check(group, access)
        given = group.args.fields
        if "max_results" in given and not 1 <= given["max_results"].number_value <= MAX_RESULTS:
            message = f"args.max_results: give 1 to {MAX_RESULTS}"
            raise InvalidArgumentError(message, field="args.max_results")
        if not self._base(group):
            message = f"args.base_url: {self._engine.name} has no usual place; give its address, https://searx.example"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field="args.base_url")

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:  # noqa: ARG002
        """The one tool."""
        return [TOOL]

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """Search."""
        engine, key = self._engine, call.access.secret.get(KEY, "")
        if engine.needs_key and not key:
            return failed(
                f"Web search has no key for {engine.name}. The operator gives one: tools.secrets.<name>.values.{KEY}, "
                "and settings.secrets_ref: <name> of the tool group; or the caller brings one: "
                f"{API_KEYS[engine.name]} in X-LlamaStack-Provider-Data. Go on without searching.",
                code=401,
                fault="no_key",
            )
        base, text = self._base(call.group), str(call.arguments["query"])
        query = engine.ask(base, text, wanted(call), key)
        body = None if query.body is None else json.dumps(query.body).encode()
        headers = {"Accept": "application/json", **query.headers}
        answer = await self._outgoing.send(
            "GET" if body is None else "POST",
            query.url,
            hosts=call.group.settings.egress_hosts or [_place(base)],
            access=call.access,
            secrets_ref=call.group.settings.secrets_ref,
            headers=headers if body is None else {**headers, "Content-Type": "application/json"},
            content=body,
        )
        return self._result(answer, text, wanted(call))

    def _result(self, answer: Answer, query: str, count: int) -> v1.ToolInvocationResult:
        name = self._engine.name
        if answer.status in {401, 403}:
            return failed(
                f"{name} refused the key; the operator must renew it. Go on without searching.", code=answer.status
            )
        if answer.status == 429:
            return failed(f"{name} is asked too often; wait a while before you search again.", code=answer.status)
        if answer.status != 200:
            return failed(
                f"{name} answered {answer.status}; try again, or go on without searching.", code=answer.status
            )
        try:
            body = json.loads(answer.data)
            hits = self._engine.read(body)[:count]
        except (ValueError, AttributeError, RecursionError):
            return failed(f"{name} answered what is no search result; its address may be wrong.", code=502)
        return result_of(query, hits, engine=name)

    def _base(self, group: v1.ToolGroup) -> str:
        given = group.args.fields["base_url"].string_value if "base_url" in group.args.fields else ""
        return (given or self._config.base_url or self._engine.base_url).rstrip("/")


def _place(url: str) -> str:
    return urlsplit(url).netloc


WEB_SEARCH: dict[str, Callable[[ProviderContext], WebSearchProvider]] = {
    engine.name: functools.partial(WebSearchProvider, engine=engine) for engine in ENGINES
}
"""Builders by provider id."""

"""The MCP server: lists and calls the tools of a group, or of all groups of a tenant."""

import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mcp_types as types
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.models import InitializationOptions
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from llamastack import v1
from services.tools.mcp.requests import CALL_META, KEY_META
from services.tools.mcp.server import asking
from services.tools.mcp.server.caller import Caller
from services.tools.mcp.server.names import full_name, joint_names
from services.tools.mcp.server.results import failed, result_of, tool_of
from stack_client.errors import InternalError, NotFoundError, StackError
from stack_client.version import version

PLACE = "llamastack.place"
"""Key of the HTTP scope under which the `Place` of a request is."""
ROUNDS = 10  # questions of one call in a session
STEP = 1e-6  # progress must rise also while the share is not known
_LOGGED = {"debug", "info"}  # levels at which a client wants a tool's output

Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True)
class Place:
    """Where a request came to."""

    tenant: str
    group: str
    """Empty means all groups."""


def place_of(ctx: Context) -> Place:
    """Where a request came to."""
    place = ctx.request.scope[PLACE] if ctx.request is not None else None
    assert isinstance(place, Place)  # the app sets it before anything reaches the server
    return place


class _Server(Server[Any]):
    """Says also to clients with sessions that lists may change."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """What the server says of itself."""
        options = notification_options or NotificationOptions(tools_changed=True)
        return super().create_initialization_options(options, experimental_capabilities, extensions)


class Handlers:
    """Answers requests.

    Args:
        caller: Lists and runs tools.
        sessions: Old-style sessions of which is known that they listed tools, at most.
    """

    def __init__(self, caller: Caller, *, sessions: int) -> None:
        self._caller = caller
        self._most = sessions
        self._listed: OrderedDict[str, tuple[str, ServerSession]] = OrderedDict()
        self._silent: OrderedDict[str, None] = OrderedDict()
        self._buses: dict[str, InMemorySubscriptionBus] = {}
        self._listeners: dict[str, ListenHandler] = {}

    def server(self) -> Server[Any]:
        """The server of the SDK."""
        server = _Server(
            "llama-stack-mesh",
            version=version(),
            title="Llama Stack mesh",
            on_list_tools=self.list_tools,
            on_call_tool=self.call_tool,
            on_subscriptions_listen=self.listen,
        )
        # Sessions only; without them each request says itself whether it wants log messages.
        server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, self.set_level)
        return server

    async def changed(self, tenant: str) -> None:
        """Tell a tenant's clients that its tools changed."""
        if tenant in self._buses:
            await self._buses[tenant].publish(ToolsListChanged())
        for owner, session in list(self._listed.values()):
            if owner == tenant:
                await session.send_tool_list_changed()

    def forget(self, session_id: str) -> None:
        """A client ended its session."""
        self._listed.pop(session_id, None)
        self._silent.pop(session_id, None)

    def close(self) -> None:
        """End the streams of notices."""
        for listener in self._listeners.values():
            listener.close()

    async def listen(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Keep a stream of notices for the tenant."""
        tenant = place_of(ctx).tenant
        if tenant not in self._listeners:
            self._buses[tenant] = InMemorySubscriptionBus()
            self._listeners[tenant] = ListenHandler(self._buses[tenant])
        return await self._listeners[tenant](ctx, params)

    async def set_level(self, ctx: Context, params: types.SetLevelRequestParams) -> types.EmptyResult:
        """Note whether a session wants the output of tools, which goes at level `info`."""
        session_id = _session_id(ctx)
        self._silent.pop(session_id, None)
        if params.level not in _LOGGED:
            self._silent[session_id] = None
            while len(self._silent) > self._most:
                self._silent.popitem(last=False)
        return types.EmptyResult()

    def _wants_output(self, ctx: Context) -> bool:
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return (ctx.meta or {}).get(types.LOG_LEVEL_META_KEY) in _LOGGED
        return _session_id(ctx) not in self._silent

    async def list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        """All tools on one page."""
        if params is not None and params.cursor:
            raise MCPError(types.INVALID_PARAMS, "there is one page only; leave the cursor out")
        place = place_of(ctx)
        tools = await self._tools(place)
        if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            session_id = _session_id(ctx)
            self._listed[session_id] = (place.tenant, ctx.session)
            self._listed.move_to_end(session_id)
            while len(self._listed) > self._most:
                self._listed.popitem(last=False)
        listed = [tool_of(name, tool, version=ctx.protocol_version) for name, tool in tools.items()]
        return types.ListToolsResult(tools=listed)

    async def call_tool(
        self, ctx: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        """Run a tool; what fails is a result that says so."""
        place = place_of(ctx)
        tools = await self._tools(place)
        tool = tools.get(params.name) or next((one for one in tools.values() if full_name(one) == params.name), None)
        if tool is None:
            raise MCPError(types.INVALID_PARAMS, f"no tool {params.name!r} at this address; see tools/list")
        try:
            return await self._run(ctx, params, tool, tenant=place.tenant)
        except InternalError:
            raise MCPError(types.INTERNAL_ERROR, "internal error; the service's log has the details") from None
        except StackError as error:
            return failed(error.message)

    async def _run(
        self, ctx: Context, params: types.CallToolRequestParams, tool: v1.ToolDef, *, tenant: str
    ) -> types.CallToolResult | types.InputRequiredResult:
        meta: Mapping[str, Any] = params.meta or {}
        request = v1.InvokeToolRequest(
            tool_name=full_name(tool),
            kwargs_json=json.dumps(params.arguments or {}),
            idempotency_key=_key(_text(meta.get(KEY_META))),
            call_id=_text(meta.get(CALL_META)),
        )
        if params.request_state is not None:
            pending = asking.Pending.load(params.request_state)
            request.idempotency_key = pending.key
            request.input_response.CopyFrom(asking.answered(params, pending))
        reporter = _Reporter(ctx, output=self._wants_output(ctx))
        for _ in range(ROUNDS):
            result = await self._caller.invoke(request, tenant=tenant, tell=reporter.tell)
            if not result.HasField("input_required"):
                return result_of(result, version=ctx.protocol_version)
            asked = result.input_required
            if not asking.can_ask(ctx, asked):
                return asking.cannot_ask(ctx, asked)
            pending = asking.Pending(request.idempotency_key, asked.state)
            if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
                return asking.in_a_round(asked, pending)
            request.input_response.CopyFrom(await asking.in_the_session(ctx, asked, pending))
        return failed(f"the tool asked {ROUNDS} questions without an end")

    async def _tools(self, place: Place) -> dict[str, v1.ToolDef]:
        try:
            tools = await self._caller.tools(tenant=place.tenant, group=place.group)
        except NotFoundError as error:
            raise MCPError(types.INVALID_PARAMS, error.message) from None
        except StackError as error:
            raise MCPError(types.INTERNAL_ERROR, error.message) from None
        return {tool.name: tool for tool in tools} if place.group else joint_names(tools)


class _Reporter:
    """Passes what a tool reports on to the client that called it."""

    def __init__(self, ctx: Context, *, output: bool) -> None:
        self._ctx = ctx
        self._done = 0.0
        self._wants_output = output

    async def tell(self, name: str, message: Any) -> None:  # noqa: ANN401 (an event's message)
        """Send an event."""
        if name == "progress":
            share = message.fraction if message.HasField("fraction") else 0.0
            self._done = max(share, self._done + STEP)
            await self._ctx.session.report_progress(self._done, 1.0, message.message or None)
        elif name == "output" and self._wants_output:
            params = types.LoggingMessageNotificationParams(level="info", logger=message.stream, data=message.text)
            note = types.LoggingMessageNotification(params=params)
            await self._ctx.session.send_notification(note, related_request_id=self._ctx.request_id)


def _session_id(ctx: Context) -> str:
    return ctx.request.headers.get("mcp-session-id", "") if ctx.request is not None else ""


def _key(given: str) -> str:
    """The key of a call: the client's own, apart from those of gRPC callers, who may be the same stack's agents."""
    return f"mcp-{hashlib.sha256(given.encode()).hexdigest() if given else secrets.token_hex(16)}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""

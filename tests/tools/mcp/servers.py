"""A real MCP server made with the SDK, for all revisions, with a tool for each thing that is proved."""

import asyncio
import base64
import contextlib
import json
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server import Server
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError

MODERN = "2026-07-28"
REVISIONS = [MODERN, "2025-11-25", "2025-06-18"]
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
OBJECT: dict[str, Any] = {"type": "object"}
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
ASKED: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, schema: dict[str, Any] = OBJECT, **more: Any) -> types.Tool:
    return types.Tool(name=name, description=f"The tool {name}.", input_schema=schema, **more)


TOOLS = [
    tool("echo", TEXT, annotations=types.ToolAnnotations(read_only_hint=True)),
    tool("erase", annotations=types.ToolAnnotations(destructive_hint=True)),
    tool("fail"),
    tool("image"),
    tool("files"),
    tool("structured", output_schema={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}),
    tool("broken_schema", output_schema={"type": "object", "required": ["missing"]}),
    tool("work"),
    tool("wait"),
    tool("ask"),
    tool("open"),
    tool("meta"),
]


@dataclass
class Peer:
    """The server and what it saw."""

    requests: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    sessions: set[str] = field(default_factory=set)
    running: int = 0
    cancelled: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    tools: list[types.Tool] = field(default_factory=lambda: list(TOOLS))
    answers: list[types.ElicitResult] = field(default_factory=list)
    bus: InMemorySubscriptionBus = field(default_factory=InMemorySubscriptionBus)
    latest: Any = None
    url: str = ""
    stop: Callable[[], Awaitable[None]] | None = None

    async def change(self) -> None:
        """Tell clients of all revisions that the tools changed."""
        await self.bus.publish(ToolsListChanged())
        if self.latest is not None and self.latest.protocol_version != MODERN:
            await self.latest.send_tool_list_changed()

    async def list_tools(self, ctx: Any, params: Any) -> types.ListToolsResult:
        self.latest = ctx.session
        return types.ListToolsResult(tools=self.tools)

    async def call_tool(
        self, ctx: Any, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        handler = getattr(self, f"_{params.name}", None)
        if handler is None:
            raise ValueError(f"no tool {params.name}")
        return await handler(ctx, params)  # type: ignore[no-any-return]

    async def _echo(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return says((params.arguments or {})["text"])

    async def _fail(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(text="no such ticket")], is_error=True)

    async def _image(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        data = base64.b64encode(PIXEL).decode()
        return types.CallToolResult(content=[types.ImageContent(data=data, mime_type="image/png")])

    async def _files(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        data = base64.b64encode(b"RIFF").decode()
        text = types.TextResourceContents(uri="note://1", text="a note")
        blob = types.BlobResourceContents(uri="file:///x.bin", blob=data, mime_type="application/x-test")
        return types.CallToolResult(
            content=[
                types.AudioContent(data=data, mime_type="audio/wav"),
                types.EmbeddedResource(resource=text),
                types.EmbeddedResource(resource=blob),
                types.ResourceLink(name="page", uri="https://example.com/page", description="more"),
            ]
        )

    async def _structured(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[], structured_content={"n": 7})

    async def _broken_schema(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[], structured_content={"n": 7})

    async def _work(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        await ctx.session.report_progress(1, 4, "first")
        await ctx.session.report_progress(4, 4, "last")
        log = types.LoggingMessageNotificationParams(level="info", logger="worker", data="halfway")
        note = types.LoggingMessageNotification(params=log)
        await ctx.session.send_notification(note, related_request_id=ctx.request_id)
        return says("worked")

    async def _wait(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        self.running += 1
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        raise AssertionError

    async def _ask(
        self, ctx: Any, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        if ctx.protocol_version != MODERN:
            answer = await ctx.session.elicit_form("Which city?", ASKED, ctx.request_id)
        elif params.input_responses is None:
            form = types.ElicitRequestFormParams(message="Which city?", requested_schema=ASKED)
            return types.InputRequiredResult(
                input_requests={"city": types.ElicitRequest(params=form)}, request_state="opaque"
            )
        else:
            assert params.request_state == "opaque"
            answer = params.input_responses["city"]
        self.answers.append(answer)
        return says(f"{answer.action} {json.dumps(answer.content)}")

    async def _open(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        page = types.ElicitRequestURLParams(
            message="Sign in", url="https://example.com/in", elicitation_id="1"
        ).model_dump(by_alias=True, exclude_none=True)
        if self.requests["tools/call"] == 1:
            raise MCPError(types.URL_ELICITATION_REQUIRED, "sign in first", {"elicitations": [page]})
        return says("signed in")

    async def _meta(self, ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return says(json.dumps(dict(params.meta or {})))

    async def list_resources(self, ctx: Any, params: Any) -> types.ListResourcesResult:
        return types.ListResourcesResult(
            resources=[types.Resource(uri="note://1", name="first", mime_type="text/plain")]
        )

    async def list_templates(self, ctx: Any, params: Any) -> types.ListResourceTemplatesResult:
        template = types.ResourceTemplate(uri_template="note://{number}", name="notes")
        return types.ListResourceTemplatesResult(resource_templates=[template])

    async def read_resource(self, ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=params.uri, text=f"read {params.uri}")]
        )

    async def list_prompts(self, ctx: Any, params: Any) -> types.ListPromptsResult:
        argument = types.PromptArgument(name="topic", required=True)
        return types.ListPromptsResult(prompts=[types.Prompt(name="summary", arguments=[argument])])

    async def get_prompt(self, ctx: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        text = types.TextContent(text=f"Summarise {(params.arguments or {})['topic']}")
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=text)])

    def server(self) -> "NotifyingServer":
        return NotifyingServer(
            "peer",
            version="1",
            on_list_tools=self.list_tools,
            on_call_tool=self.call_tool,
            on_list_resources=self.list_resources,
            on_list_resource_templates=self.list_templates,
            on_read_resource=self.read_resource,
            on_list_prompts=self.list_prompts,
            on_get_prompt=self.get_prompt,
            on_subscriptions_listen=ListenHandler(self.bus),
        )


class NotifyingServer(Server[Any]):
    def create_initialization_options(self, *args: Any, **kwargs: Any) -> Any:
        return super().create_initialization_options(NotificationOptions(tools_changed=True))


def says(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)])


class App:
    """The server behind HTTP; an old revision refuses newer ones as servers of its time do."""

    def __init__(self, peer: Peer, *, revision: str, key: str, json_response: bool = False) -> None:
        self.peer, self.revision, self.key = peer, revision, key
        self.manager = StreamableHTTPSessionManager(peer.server(), json_response=json_response)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.peer.headers.append(headers)
        if session := headers.get("mcp-session-id"):
            self.peer.sessions.add(session)
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            challenge = (
                b'Bearer resource_metadata="https://mcp.example/.well-known/oauth-protected-resource", scope="all"'
            )
            await reply(send, 401, [(b"www-authenticate", challenge)])
            return
        if self.revision != MODERN and headers.get("mcp-protocol-version") == MODERN:
            await reply(send, 400, [])
            return
        await self.manager.asgi_app(scope, self._older(receive), send)

    def _older(self, receive: Any) -> Any:
        async def changed() -> Any:
            message = await receive()
            if message.get("body"):
                self.peer.requests[json.loads(message["body"]).get("method", "")] += 1
            if self.revision == "2025-06-18" and b'"initialize"' in message.get("body", b""):
                message["body"] = message["body"].replace(b"2025-11-25", b"2025-06-18")
            return message

        return changed


async def reply(send: Any, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


class QuietServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def serving(
    peer: Peer, *, revision: str = MODERN, key: str = "", port: int = 0, json_response: bool = False
) -> AsyncIterator[str]:
    """Serve a peer on loopback; yields its address."""
    app = App(peer, revision=revision, key=key, json_response=json_response)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()
        config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=0)
        server = QuietServer(config)
        async with app.manager.run(), asyncio.TaskGroup() as group:
            task = group.create_task(server.serve(sockets=[listening]))
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
            finally:
                server.should_exit = server.force_exit = True
                await task


async def main() -> None:
    Path(sys.argv[1]).write_text("started")
    peer = Peer()
    server = peer.server()
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    asyncio.run(main())

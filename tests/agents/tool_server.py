"""A tools service for turns to call: keeps each call by its key, and counts its effects in files that survive it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from llamastack import v1
from services.runtime.readiness import Readiness
from services.runtime.service import ServiceContext
from stack_client.content import content, struct
from stack_client.errors import NotFoundError, UnavailableError, UnsupportedError

READ, IDEMPOTENT, WRITE = v1.TOOL_EFFECT_READ, v1.TOOL_EFFECT_IDEMPOTENT_WRITE, v1.TOOL_EFFECT_WRITE
EFFECTS = {
    "look": READ, "put": IDEMPOTENT, "pay": WRITE, "stuck": READ, "ask": WRITE, "barrier": READ, "fails": READ,
    "wipe": WRITE, "slow_put": IDEMPOTENT, "slow_pay": WRITE, "slow_look": READ, "big": READ, "away": READ,
    "draw": READ,
}  # fmt: skip
BUILT_IN = {"builtin::websearch": "web_search", "builtin::rag": "knowledge_search"}


class ToolServer:
    """One group, `test`, whose tools have every effect, the built-in searches, and MCP servers like `test`.

    A call is recorded before its effect and its result after it, as the real service does. `slow_*` tools wait for a
    file called `go` in the folder, behind their effect.
    """

    name = "tools"

    def __init__(self, context: ServiceContext) -> None:
        self.readiness: Readiness = context.readiness
        self.folder = Path(context.data_dir)
        self.running = 0
        self.together = 0
        self.seen: list[v1.InvokeToolRequest] = []
        self.listed = 0
        self.registered: dict[str, str] = {}
        self.tasks: dict[str, asyncio.Task[v1.ToolInvocationResult]] = {}
        self.met = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self.tasks.values():
            task.cancel()

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        v1.add_ToolRuntimeServiceServicer_to_server(Edge(self), server)
        v1.add_ToolGroupsServiceServicer_to_server(GroupsEdge(self), server)  # type: ignore[abstract] # the rest
        return ["llamastack.v1.ToolRuntimeService", "llamastack.v1.ToolGroupsService"]

    def count(self, name: str) -> int:
        """How often the effect of a tool happened."""
        file = self.folder / f"{name}.count"
        return len(file.read_text()) if file.exists() else 0

    def effect(self, name: str, key: str, effect: int) -> None:
        done = self.folder / f"{key.replace('/', '_')}.done"
        if effect == IDEMPOTENT and done.exists():
            return
        done.touch()
        with (self.folder / f"{name}.count").open("a") as file:
            file.write("x")

    async def call(self, request: v1.InvokeToolRequest, events: asyncio.Queue[Any]) -> v1.ToolInvocationResult:
        name, key = request.tool_name.partition("/")[2], request.idempotency_key
        arguments = json.loads(request.kwargs_json or "{}")
        self.running += 1
        self.together = max(self.together, self.running)
        if self.running >= 2:
            self.met.set()
        try:
            self.effect(name, key, EFFECTS.get(name, READ))
            match name:
                case "stuck":
                    await asyncio.Event().wait()
                case "barrier":
                    async with asyncio.timeout(20):
                        await self.met.wait()
                case "fails":
                    return v1.ToolInvocationResult(error_message="it broke", error_code=7)
                case "ask" if not request.HasField("input_response"):
                    wanted = v1.ToolInputRequest(message="Sure?", state="s1")
                    return v1.ToolInvocationResult(input_required=wanted)
                case "ask":
                    said = dict(request.input_response.content.items())
                    return v1.ToolInvocationResult(content=content(f"{request.input_response.action} {said}"))
                case "draw":
                    item = v1.ContentItem(image=v1.ImageContent(data=b"\x89PNG..."))
                    return v1.ToolInvocationResult(content=v1.InterleavedContent(items=[item]))
                case "big":
                    await events.put(v1.ToolProgress(fraction=0.5, message="half"))
                    await events.put(v1.ToolOutput(stream="stdout", text="line\n"))
                case name if name.startswith("slow"):
                    (self.folder / "reached").touch()
                    async with asyncio.timeout(30):
                        while not (self.folder / "go").exists():
                            await asyncio.sleep(0.01)
            text = f"{name} {json.dumps(arguments, sort_keys=True)}"
            if arguments.get("query") == "pages":
                text = json.dumps(
                    {"query": "pages", "top_k": [{"title": "t", "url": "https://a.example/", "content": "c"}]}
                )
            document = v1.Document(content=v1.ContentOrUrl(content=content("made")), mime_type="text/plain")
            attachments = [document] if name == "big" else []
            facts = {"document_ids": ["file-1"], "chunks": ["the text"], "scores": [0.5]}
            metadata = struct(facts) if name == "knowledge_search" else None
            return v1.ToolInvocationResult(content=content(text), attachments=attachments, metadata=metadata)
        finally:
            self.running -= 1


class Edge(v1.ToolRuntimeServiceServicer):
    def __init__(self, server: ToolServer) -> None:
        self.server = server

    def file(self, key: str) -> Path:
        return self.server.folder / f"{key.replace('/', '_')}.call"

    async def ListRuntimeTools(self, request: v1.ListRuntimeToolsRequest, context: Any) -> v1.ListRuntimeToolsResponse:
        group = request.tool_group_id
        if group in BUILT_IN:
            found = v1.ToolDef(name=BUILT_IN[group], description="Searches.", effect=READ, toolgroup_id=group)
            return v1.ListRuntimeToolsResponse(data=[found])
        if group != "test" and group not in self.server.registered:
            raise NotFoundError(f"there is no tool group {request.tool_group_id!r}; there are: test")
        self.server.listed += 1
        schema = struct({"type": "object"})
        data = [
            v1.ToolDef(
                name=name, description=name, input_schema=schema, effect=effect, toolgroup_id=group,
                approval=v1.TOOL_APPROVAL_ALWAYS if name == "wipe" else v1.TOOL_APPROVAL_UNSPECIFIED,
            )
            for name, effect in EFFECTS.items()
        ]  # fmt: skip
        return v1.ListRuntimeToolsResponse(data=data)

    async def kept(self, call: v1.InvokeToolRequest, events: asyncio.Queue[Any]) -> v1.ToolInvocationResult:
        """The result, stored whoever still waits for it."""
        result, key = await self.server.call(call, events), call.idempotency_key
        ended = v1.Invocation(idempotency_key=key, status=v1.INVOCATION_STATUS_COMPLETED, result=result)
        self.file(key).write_bytes(ended.SerializeToString())
        return result

    async def StreamInvokeTool(
        self, request: v1.StreamInvokeToolRequest, context: Any
    ) -> AsyncIterator[v1.StreamInvokeToolResponse]:
        call = request.request
        self.server.seen.append(call)
        if call.tool_name == "test/away":
            raise UnavailableError("the tool's own server does not answer")
        key = call.idempotency_key
        file, events = self.file(key), asyncio.Queue[Any]()
        yield v1.StreamInvokeToolResponse(
            sequence=1, started=v1.ToolStarted(idempotency_key=key, tool_name=call.tool_name)
        )
        stored = v1.Invocation.FromString(file.read_bytes()) if file.exists() else None
        if stored is not None and stored.HasField("result") and not stored.result.HasField("input_required"):
            yield v1.StreamInvokeToolResponse(sequence=2, result=stored.result)
            return
        if key not in self.server.tasks or self.server.tasks[key].done():
            file.write_bytes(
                v1.Invocation(idempotency_key=key, status=v1.INVOCATION_STATUS_RUNNING).SerializeToString()
            )
            self.server.tasks[key] = asyncio.get_running_loop().create_task(self.kept(call, events))
        result = await asyncio.shield(self.server.tasks[key])
        sequence = 2
        while not events.empty():
            event = events.get_nowait()
            field = "progress" if isinstance(event, v1.ToolProgress) else "output"
            yield v1.StreamInvokeToolResponse(sequence=sequence, **{field: event})
            sequence += 1
        yield v1.StreamInvokeToolResponse(sequence=sequence, result=result)

    async def InvokeTool(self, request: v1.InvokeToolRequest, context: Any) -> v1.InvokeToolResponse:
        raise UnsupportedError("turns stream their calls")

    async def GetInvocation(self, request: v1.GetInvocationRequest, context: Any) -> v1.GetInvocationResponse:
        key = request.idempotency_key
        if not self.file(key).exists():
            raise NotFoundError(f"there is no invocation {key!r}")
        stored = v1.Invocation.FromString(self.file(key).read_bytes())
        if stored.status == v1.INVOCATION_STATUS_RUNNING and key not in self.server.tasks:
            stored.status = v1.INVOCATION_STATUS_LOST  # it was begun in an earlier life
        return v1.GetInvocationResponse(invocation=stored)

    async def CancelInvocation(self, request: v1.CancelInvocationRequest, context: Any) -> v1.CancelInvocationResponse:
        task = self.server.tasks.get(request.idempotency_key)
        if task is not None:
            task.cancel()
        return v1.CancelInvocationResponse(invocation=v1.Invocation(idempotency_key=request.idempotency_key))


class GroupsEdge(v1.ToolGroupsServiceServicer):
    def __init__(self, server: ToolServer) -> None:
        self.server = server

    async def RegisterToolGroup(
        self, request: v1.RegisterToolGroupRequest, context: Any
    ) -> v1.RegisterToolGroupResponse:
        self.server.registered[request.toolgroup_id] = request.mcp_endpoint.uri
        return v1.RegisterToolGroupResponse(tool_group=v1.ToolGroup(identifier=request.toolgroup_id))

    async def UnregisterToolGroup(
        self, request: v1.UnregisterToolGroupRequest, context: Any
    ) -> v1.UnregisterToolGroupResponse:
        if self.server.registered.pop(request.toolgroup_id, None) is None:
            raise NotFoundError(f"there is no tool group {request.toolgroup_id!r}")
        return v1.UnregisterToolGroupResponse()


def build(context: ServiceContext) -> ToolServer:
    return ToolServer(context)

"""The tools service behind a unix socket in this process; with memory and inference beside it where tests want them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from llamastack import v1
from services.inference.node import build as build_inference
from services.memory.node import build as build_memory
from services.runtime.config import RuntimeConfig, StackConfig
from services.runtime.process import Build, drain, hosting
from services.runtime.service import ServiceContext
from services.tools.node import ToolsNode
from services.tools.providers import BUILTIN_GROUPS, PROVIDERS
from stack_client import StackClient
from stack_client.calls import EventStream, unary
from tests.tools.workshop import Workshop

SHOP = "test::shop"
MODELS = [
    {"model_id": "words", "provider_id": "scripted", "model_type": "embedding"},
    {"model_id": "scripted", "provider_id": "scripted", "metadata": {"script": [{"reply": "{0}"}]}},
]


@dataclass
class ToolsMesh:
    """Running services, stubs of them, and the provider that tests look into."""

    client: StackClient
    node: ToolsNode
    shop: Workshop
    home: Path
    groups: Any = field(init=False)
    runtime: Any = field(init=False)

    def __post_init__(self) -> None:
        channel = self.client.channel("tools")
        self.groups = v1.ToolGroupsServiceStub(channel)
        self.runtime = v1.ToolRuntimeServiceStub(channel)

    async def register(self, name: str = SHOP, *, tenant: str = "", **fields: Any) -> v1.ToolGroup:
        request = v1.RegisterToolGroupRequest(toolgroup_id=name, **{"provider_id": "workshop", **fields})
        response = await unary(self.groups.RegisterToolGroup(request, metadata=of(tenant)))
        group: v1.ToolGroup = response.tool_group
        return group

    async def invoke(self, tool: str, *, tenant: str = "", **fields: Any) -> v1.ToolInvocationResult:
        request = v1.InvokeToolRequest(tool_name=tool, **fields)
        response = await unary(self.runtime.InvokeTool(request, metadata=of(tenant)))
        result: v1.ToolInvocationResult = response.result
        return result

    def start(self, tool: str, *, timeout: float | None = None, tenant: str = "", **fields: Any) -> Any:
        """The call itself, to be awaited or cancelled."""
        request = v1.InvokeToolRequest(tool_name=tool, **fields)
        return self.runtime.InvokeTool(request, timeout=timeout, metadata=of(tenant))

    async def stream(self, tool: str, **fields: Any) -> list[v1.StreamInvokeToolResponse]:
        request = v1.StreamInvokeToolRequest(request=v1.InvokeToolRequest(tool_name=tool, **fields))
        async with EventStream(self.runtime.StreamInvokeTool(request)) as events:
            return [event async for event in events]

    async def get(self, key: str, *, tenant: str = "", **fields: Any) -> v1.Invocation:
        request = v1.GetInvocationRequest(idempotency_key=key, **fields)
        response = await unary(self.runtime.GetInvocation(request, metadata=of(tenant)))
        found: v1.Invocation = response.invocation
        return found

    async def ended(self, key: str) -> v1.Invocation:
        """The call once it does not run any more."""
        async with asyncio.timeout(10):
            while (found := await self.get(key)).status == v1.INVOCATION_STATUS_RUNNING:
                await asyncio.sleep(0.01)
            return found


def of(tenant: str) -> grpc.aio.Metadata | None:
    return grpc.aio.Metadata(("x-tenant", tenant)) if tenant else None


@asynccontextmanager
async def tools_mesh(home: Path, *, memory: bool = False, **tools: Any) -> AsyncIterator[ToolsMesh]:
    """The service with its data in `home`, whose path must be short; `tools` is its configuration."""
    nodes: list[ToolsNode] = []
    shops: list[Workshop] = []

    def make_shop(context: Any) -> Workshop:
        shops.append(Workshop(context))
        return shops[-1]

    def build(context: ServiceContext) -> ToolsNode:
        providers: Mapping[str, Any] = {**PROVIDERS, "workshop": make_shop}
        nodes.append(ToolsNode(context, providers=providers, builtin={**BUILTIN_GROUPS, "test::free": "workshop"}))
        return nodes[-1]

    builds: dict[str, Build] = {"tools": build}
    if memory:
        builds = {"inference": build_inference, "memory": build_memory, "tools": build}
    # Compiling python.wasm takes seconds, which few tests need.
    tools["providers"] = {"code-interpreter": {"prepare": "use"}, **tools.get("providers", {})}
    config = StackConfig(
        file="test",
        addresses={name: f"unix:{home}/run/{name}.sock" for name in builds},
        runtime=RuntimeConfig(
            tcp=False, socket_dir=home / "run", drain_grace_seconds=0.3, drain_notice_seconds=0, log_level="WARNING"
        ),
        sections={"inference": {"models": MODELS}, "tools": tools},
    )
    async with hosting(builds, config=config, home=home) as hosted, StackClient(config.addresses) as client:
        if memory:
            await client.models.wait_ready("words", timeout=30)
        try:
            yield ToolsMesh(client=client, node=nodes[-1], shop=shops[-1], home=home)
        finally:
            await drain(hosted)

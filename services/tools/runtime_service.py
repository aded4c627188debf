"""The RPC edge of running tools."""

import asyncio
from collections.abc import Mapping

from llamastack import v1
from services.runtime.calls import current_tenant
from services.runtime.pages import page
from services.runtime.stream import EventWriter, RpcContext
from services.tools.groups import MCP, Found, Groups
from services.tools.invoke import Invoker
from services.tools.listings import Listings, shown
from services.tools.provider import Access, ToolProvider
from services.tools.running import Running
from stack_client.errors import InvalidArgumentError


class ToolRuntimeService(v1.ToolRuntimeServiceServicer):
    """Implements `llamastack.v1.ToolRuntimeService`.

    Args:
        groups: Those that there are.
        listings: Lists tools.
        invoker: Runs them.
        providers: By id.
        draining: Set when the process is going away.
        grace_seconds: How long streams may go on then.
    """

    def __init__(
        self,
        *,
        groups: Groups,
        listings: Listings,
        invoker: Invoker,
        providers: Mapping[str, ToolProvider],
        draining: asyncio.Event,
        grace_seconds: float,
    ) -> None:
        self._groups = groups
        self._listings = listings
        self._invoker = invoker
        self._providers = providers
        self._draining = draining
        self._grace = grace_seconds

    async def ListRuntimeTools(
        self, request: v1.ListRuntimeToolsRequest, context: RpcContext
    ) -> v1.ListRuntimeToolsResponse:
        """List as the providers offer them now."""
        tenant, authorization = current_tenant(), request.authorization
        groups: dict[str, v1.ToolGroup] = {}
        if request.HasField("mcp_endpoint"):
            tools, groups = await self._of_server(request, tenant=tenant)
        elif request.HasField("tool_group_id"):
            found = await self._groups.get(request.tool_group_id, tenant=tenant, field="tool_group_id")
            groups = {found.group.identifier: found.group}
            listed = await self._listings.tools(found, tenant=tenant, authorization=authorization, fresh=True)
            tools = list(listed.values())
        else:
            groups = {found.group.identifier: found.group for found in await self._groups.all(tenant)}
            tools = await self._listings.of_tenant(tenant=tenant, authorization=authorization, fresh=True)
        scope = f"ListRuntimeTools\0{request.tool_group_id}\0{request.mcp_endpoint.uri}"
        tools.sort(key=_name)
        data, token = page(tools, key=_name, request=request, scope=scope)
        seen = [shown(tool, groups.get(tool.toolgroup_id, v1.ToolGroup())) for tool in data]
        return v1.ListRuntimeToolsResponse(data=seen, next_page_token=token)

    async def InvokeTool(self, request: v1.InvokeToolRequest, context: RpcContext) -> v1.InvokeToolResponse:
        """Run a tool and wait for its result."""
        running = await self._invoker.begin(request)
        with running.watched():
            return v1.InvokeToolResponse(result=await running.result(), idempotency_key=running.key)

    async def StreamInvokeTool(  # type: ignore[override]
        self, request: v1.StreamInvokeToolRequest, context: RpcContext
    ) -> None:
        """Run a tool and report while it runs."""
        if not request.HasField("request"):
            raise InvalidArgumentError("request is missing", reason="MISSING_FIELD", field="request")
        writer = EventWriter(context, v1.StreamInvokeToolResponse, draining=self._draining, grace_seconds=self._grace)
        running = await self._invoker.begin(request.request)
        with running.watched():
            await writer.run(_send(running, writer))

    async def GetInvocation(self, request: v1.GetInvocationRequest, context: RpcContext) -> v1.GetInvocationResponse:
        """Answer a call by its key."""
        _check_key(request.idempotency_key)
        found = await self._invoker.get(request.idempotency_key, full_output=request.full_output)
        return v1.GetInvocationResponse(invocation=found)

    async def CancelInvocation(
        self, request: v1.CancelInvocationRequest, context: RpcContext
    ) -> v1.CancelInvocationResponse:
        """Ask a call to stop."""
        _check_key(request.idempotency_key)
        return v1.CancelInvocationResponse(invocation=await self._invoker.cancel(request.idempotency_key))

    async def _of_server(
        self, request: v1.ListRuntimeToolsRequest, *, tenant: str
    ) -> tuple[list[v1.ToolDef], dict[str, v1.ToolGroup]]:
        """The tools of an MCP server that may not be registered."""
        if request.HasField("tool_group_id"):
            message = "give tool_group_id or mcp_endpoint, not both"
            raise InvalidArgumentError(message, field="mcp_endpoint")
        if MCP not in self._providers:
            raise InvalidArgumentError(f"mcp_endpoint: this stack has no provider {MCP}", field="mcp_endpoint")
        group = v1.ToolGroup(identifier="mcp", provider_id=MCP, mcp_endpoint=request.mcp_endpoint)
        self._groups.check(group, tenant=tenant)
        access = Access(tenant=tenant, authorization=request.authorization)
        await self._providers[MCP].check(group, access)
        return await self._listings.of_group(Found(group=group, owner=tenant), access), {}


async def _send(running: Running, writer: EventWriter[v1.StreamInvokeToolResponse]) -> None:
    async for name, message in running.events():
        await writer.write(**{name: message})


def _check_key(key: str) -> None:
    if not key:
        message = "idempotency_key is empty"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field="idempotency_key")


def _name(tool: v1.ToolDef) -> str:
    return f"{tool.toolgroup_id}/{tool.name}"

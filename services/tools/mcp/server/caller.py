"""What the MCP server needs of the tools service, and the service as that: the same path as calls over gRPC."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from llamastack import v1
from services.runtime.calls import enter_call
from services.tools.groups import Groups
from services.tools.invoke import Invoker
from services.tools.listings import Listings, shown

Tell = Callable[[str, Any], Awaitable[None]]
"""Takes an event of a running call, `progress` or `output`, and its message."""


class Caller(Protocol):
    """Lists and runs tools for a tenant."""

    async def tools(self, *, tenant: str, group: str) -> Sequence[v1.ToolDef]:
        """The tools of a group, or of all groups when `group` is empty, as models see them.

        Raises:
            NotFoundError: If there is no such group.
            StackError: If they cannot be listed.
        """

    async def invoke(self, request: v1.InvokeToolRequest, *, tenant: str, tell: Tell) -> v1.ToolInvocationResult:
        """Run a call. Cancelling the task stops the tool.

        Raises:
            StackError: If it did not run.
        """


class ServiceCaller:
    """The tools service of this process.

    Args:
        groups: Those that there are.
        listings: Lists tools.
        invoker: Runs them.
    """

    def __init__(self, groups: Groups, listings: Listings, invoker: Invoker) -> None:
        self._groups = groups
        self._listings = listings
        self._invoker = invoker

    async def tools(self, *, tenant: str, group: str) -> Sequence[v1.ToolDef]:
        """The tools of a group, or of all."""
        enter_call("/mcp/tools/list").tenant = tenant
        if group:
            found = [await self._groups.get(group, tenant=tenant)]
            tools = list((await self._listings.tools(found[0], tenant=tenant)).values())
        else:
            found = await self._groups.all(tenant)
            tools = await self._listings.of_tenant(tenant=tenant)
        groups = {one.group.identifier: one.group for one in found}
        return [shown(tool, groups[tool.toolgroup_id]) for tool in tools if tool.toolgroup_id in groups]

    async def invoke(self, request: v1.InvokeToolRequest, *, tenant: str, tell: Tell) -> v1.ToolInvocationResult:
        """Run a call as `StreamInvokeTool` does."""
        enter_call("/mcp/tools/call").tenant = tenant
        running = await self._invoker.begin(request)
        try:
            with running.watched():
                async for name, message in running.events():
                    if name == "result":
                        break
                    await tell(name, message)
                return await running.result()
        except asyncio.CancelledError:
            running.cancel()
            raise

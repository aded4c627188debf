"""The RPC edge of tool groups."""

from collections.abc import Mapping

from llamastack import v1
from services.runtime.calls import current_tenant
from services.runtime.pages import page
from services.runtime.stream import RpcContext
from services.tools.groups import MCP, Found, Groups, group_of
from services.tools.listings import Listings, normalised, shown
from services.tools.provider import ToolProvider
from services.tools.secrets import Secrets
from stack_client.errors import NotFoundError


class ToolGroupsService(v1.ToolGroupsServiceServicer):
    """Implements `llamastack.v1.ToolGroupsService`.

    Args:
        groups: Those that there are.
        listings: Lists tools.
        providers: By id.
        secrets: Of the groups.
    """

    def __init__(
        self, groups: Groups, listings: Listings, providers: Mapping[str, ToolProvider], secrets: Secrets
    ) -> None:
        self._groups = groups
        self._listings = listings
        self._providers = providers
        self._secrets = secrets

    async def RegisterToolGroup(
        self, request: v1.RegisterToolGroupRequest, context: RpcContext
    ) -> v1.RegisterToolGroupResponse:
        """Register, and read the tools."""
        tenant, group = current_tenant(), group_of(request)
        self._groups.check(group, tenant=tenant)
        found = await self._groups.registered(group, tenant=tenant)
        if found is None:
            provider = self._providers[group.provider_id]
            access = await self._secrets.access(group, tenant=tenant)
            await provider.check(group, access)
            draft = self._groups.draft(group, tenant=tenant)
            tools = normalised(await provider.list_tools(draft.group, access), draft.group)
            found = await self._groups.add(group, list(tools.values()), tenant=tenant)
        return v1.RegisterToolGroupResponse(tool_group=found.group)

    async def ListToolGroups(self, request: v1.ListToolGroupsRequest, context: RpcContext) -> v1.ListToolGroupsResponse:
        """List by identifier."""
        groups = [found.group for found in await self._groups.all(current_tenant())]
        data, token = page(groups, key=lambda group: group.identifier, request=request)
        return v1.ListToolGroupsResponse(data=data, next_page_token=token)

    async def GetToolGroup(self, request: v1.GetToolGroupRequest, context: RpcContext) -> v1.GetToolGroupResponse:
        """Return one."""
        found = await self._groups.get(request.toolgroup_id, tenant=current_tenant())
        return v1.GetToolGroupResponse(tool_group=found.group)

    async def UnregisterToolGroup(
        self, request: v1.UnregisterToolGroupRequest, context: RpcContext
    ) -> v1.UnregisterToolGroupResponse:
        """Remove one."""
        tenant = current_tenant()
        group = await self._groups.remove(request.toolgroup_id, tenant=tenant)
        self._listings.forget(Found(group=group, owner=tenant), tenant=tenant)
        access = await self._secrets.access(group, tenant=tenant)
        await self._providers[group.provider_id].removed(group, access)
        return v1.UnregisterToolGroupResponse()

    async def ListTools(self, request: v1.ListToolsRequest, context: RpcContext) -> v1.ListToolsResponse:
        """List by group and name."""
        tenant = current_tenant()
        group_name, slash, tool_name = request.toolgroup_id.partition("/")
        groups = {found.group.identifier: found for found in await self._groups.all(tenant)}
        if group_name:
            found = await self._groups.get(group_name, tenant=tenant)
            tools = list((await self._listings.tools(found, tenant=tenant)).values())
        else:
            tools = await self._listings.of_tenant(tenant=tenant)
        if slash:
            tools = [tool for tool in tools if tool.name == tool_name]
            if not tools:
                raise NotFoundError(f"no tool {tool_name[:256]!r} in {group_name!r}", field="toolgroup_id")
        listed = [_tool(shown(tool, groups[tool.toolgroup_id].group), groups[tool.toolgroup_id]) for tool in tools]
        listed.sort(key=lambda tool: tool.identifier)
        scope = f"ListTools\0{request.toolgroup_id}"
        data, token = page(listed, key=lambda tool: tool.identifier, request=request, scope=scope)
        return v1.ListToolsResponse(data=data, next_page_token=token)

    async def GetTool(self, request: v1.GetToolRequest, context: RpcContext) -> v1.GetToolResponse:
        """Return one tool."""
        found, tool = await self._listings.find(request.tool_name, tenant=current_tenant())
        return v1.GetToolResponse(tool=_tool(shown(tool, found.group), found))


def _tool(tool: v1.ToolDef, found: Found) -> v1.Tool:
    mcp = found.group.provider_id == MCP
    registered = v1.Tool(
        identifier=f"{tool.toolgroup_id}/{tool.name}",
        provider_resource_id=tool.name,
        provider_id=found.group.provider_id,
        type=v1.RESOURCE_TYPE_TOOL,
        toolgroup_id=tool.toolgroup_id,
        description=tool.description,
        parameters=tool.parameters,
        metadata=tool.metadata,
        tool_host=v1.TOOL_HOST_MODEL_CONTEXT_PROTOCOL if mcp else v1.TOOL_HOST_DISTRIBUTION,
        name=tool.name,
        input_schema=tool.input_schema,
        effect=tool.effect,
    )
    if tool.HasField("output_schema"):
        registered.output_schema.CopyFrom(tool.output_schema)
    return registered

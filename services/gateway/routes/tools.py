"""Tool groups, tools, calling tools, and the RAG tool."""

from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.request import JsonReply, Reply, Request
from services.gateway.routing import Route
from services.gateway.upstream import Rpc

LIST = Rpc("ToolGroupsService.ListTools")


def routes(edge: Edge) -> list[Route]:
    """The rows."""
    return [*_groups(edge), *_tools(edge), *_runtime(edge), *_rag(edge)]


def _groups(edge: Edge) -> list[Route]:
    shared: dict[str, Any] = {"api": "tool_groups"}
    return [
        Route(
            method="GET",
            path="/toolgroups",
            handler=edge.listing("ToolGroupsService.ListToolGroups"),
            summary="List tool groups",
            response=v1.ListToolGroupsResponse,
            **shared,
        ),
        Route(
            method="GET",
            path="/toolgroups/{toolgroup_id:path}",
            handler=edge.unary("ToolGroupsService.GetToolGroup", edge.member("tool_group")),
            summary="Show a tool group",
            response=v1.ToolGroup,
            **shared,
        ),
        Route(
            method="POST",
            path="/toolgroups",
            handler=edge.unary("ToolGroupsService.RegisterToolGroup", edge.nothing),
            summary="Register a tool group",
            scope="admin",
            request=v1.RegisterToolGroupRequest,
            **shared,
        ),
        Route(
            method="DELETE",
            path="/toolgroups/{toolgroup_id:path}",
            handler=edge.unary("ToolGroupsService.UnregisterToolGroup", edge.nothing),
            summary="Unregister a tool group",
            scope="admin",
            **shared,
        ),
    ]


def _tools(edge: Edge) -> list[Route]:
    async def listed(request: Request) -> Reply:
        edge.require(LIST)
        entries = await edge.every(LIST, edge.read(LIST, request, strict=False), request=request)
        return JsonReply(value={"data": [_tool(edge, one, request) for one in entries]})

    def one(response: Any, request: Request) -> Reply:  # noqa: ANN401
        return JsonReply(value=_tool(edge, response.tool, request))

    return [
        Route(
            method="GET",
            path="/tools",
            handler=listed,
            api="tool_groups",
            summary="List tools",
            response=v1.ListToolsResponse,
            query={"toolgroup_id": {"type": "string"}},
        ),
        Route(
            method="GET",
            path="/tools/{tool_name:path}",
            handler=edge.unary("ToolGroupsService.GetTool", one),
            api="tool_groups",
            summary="Show a tool",
            response=v1.Tool,
        ),
    ]


def _tool(edge: Edge, tool: v1.Tool, request: Request) -> dict[str, Any]:
    """A tool; to clients before 0.3 its identifier is the name that models call it by, as they compare the two."""
    written = dict(edge.encode(tool))
    version = request.client_version
    if version is not None and version < (0, 3):
        written["identifier"] = tool.name
    return written


def _runtime(edge: Edge) -> list[Route]:
    return [
        Route(
            method="GET",
            path="/tool-runtime/list-tools",
            handler=edge.listing("ToolRuntimeService.ListRuntimeTools"),
            api="tool_runtime",
            summary="List the tools of a group as a model sees them",
            response=v1.ListRuntimeToolsResponse,
            query={
                "tool_group_id": {"type": "string"},
                "mcp_endpoint[uri]": {"type": "string"},
                "authorization": {"type": "string"},
            },
        ),
        Route(
            method="POST",
            path="/tool-runtime/invoke",
            handler=edge.unary("ToolRuntimeService.InvokeTool", edge.member("result")),
            api="tool_runtime",
            summary="Call a tool",
            scope="tools",
            request=v1.InvokeToolRequest,
            response=v1.ToolInvocationResult,
        ),
    ]


def _rag(edge: Edge) -> list[Route]:
    return [
        Route(
            method="POST",
            path="/tool-runtime/rag-tool/insert",
            handler=edge.unary("RAGToolService.InsertRAGDocuments", edge.nothing),
            api="tool_runtime",
            summary="Cut documents into chunks and store them",
            scope="memory",
            request=v1.InsertRAGDocumentsRequest,
        ),
        Route(
            method="POST",
            path="/tool-runtime/rag-tool/query",
            handler=edge.unary("RAGToolService.QueryRAG", edge.member("result")),
            api="tool_runtime",
            summary="Find what helps to answer",
            scope="memory",
            request=v1.QueryRAGRequest,
            response=v1.RAGQueryResult,
        ),
    ]

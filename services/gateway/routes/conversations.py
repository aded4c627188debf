"""Conversations and prompts."""

from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.request import Handler, JsonReply, Reply, Request
from services.gateway.routes.pages import page_query, paged_list
from services.gateway.routing import OPENAI, Route
from services.gateway.upstream import Rpc

LIST_ITEMS = Rpc("ConversationsService.ListConversationItems")
_ITEM = "/conversations/{conversation_id}/items/{item_id}"
_INCLUDE = {"include": {"type": "array", "items": {"type": "string"}}}


def routes(edge: Edge) -> list[Route]:
    """The rows."""
    return [*_conversations(edge), *_prompts(edge)]


def _conversations(edge: Edge) -> list[Route]:
    def deleted(response: Any, _request: Request) -> Reply:  # noqa: ANN401
        return JsonReply(value={"id": response.id, "object": "conversation.deleted", "deleted": True})

    def item_deleted(response: Any, _request: Request) -> Reply:  # noqa: ANN401
        return JsonReply(value={**edge.encode(response.conversation), "deleted": True})

    def added(response: Any, _request: Request) -> Reply:  # noqa: ANN401
        data = [edge.encode(one) for one in response.data]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        listed = {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": False}
        return JsonReply(value=listed)

    async def items(request: Request) -> Reply:
        return await paged_list(edge, LIST_ITEMS, request, write=edge.encode, default=20, most=100)

    def call(method: str, answer: Any) -> Any:  # noqa: ANN401
        return edge.unary(f"ConversationsService.{method}", answer, strict=True)

    show = edge.member("conversation")
    one = {"response": v1.Conversation}
    rows: list[tuple[str, str, Any, str, dict[str, Any]]] = [
        ("POST", "/conversations", call("CreateConversation", show), "Begin a conversation",
         {"request": v1.CreateConversationRequest, **one}),
        ("GET", "/conversations/{conversation_id}", call("GetConversation", show), "Show a conversation", one),
        ("POST", "/conversations/{conversation_id}", call("UpdateConversation", show), "Change a conversation's notes",
         {"request": v1.UpdateConversationRequest, **one}),
        ("DELETE", "/conversations/{conversation_id}", call("DeleteConversation", deleted), "Delete a conversation",
         {}),
        ("POST", "/conversations/{conversation_id}/items", call("AddConversationItems", added), "Add items",
         {"request": v1.AddConversationItemsRequest, "query": _INCLUDE}),
        ("GET", "/conversations/{conversation_id}/items", items, "List items",
         {"query": {**page_query(most=100, default=20), **_INCLUDE}}),
        ("GET", _ITEM, call("GetConversationItem", edge.member("item")), "Show an item",
         {"response": v1.ResponseItem, "query": _INCLUDE}),
        ("DELETE", _ITEM, call("DeleteConversationItem", item_deleted), "Delete an item", one),
    ]  # fmt: skip
    return [_row(*row, api="conversations", mounts=OPENAI) for row in rows]


def _prompts(edge: Edge) -> list[Route]:
    def call(method: str, answer: Any) -> Any:  # noqa: ANN401
        return edge.unary(f"PromptsService.{method}", answer, strict=True)

    show = edge.member("prompt")
    one = {"response": v1.Prompt}
    versions = edge.listing("PromptsService.ListPromptVersions")
    rows: list[tuple[str, str, Any, str, dict[str, Any]]] = [
        ("GET", "/prompts", edge.listing("PromptsService.ListPrompts"), "List prompts",
         {"response": v1.ListPromptsResponse}),
        ("POST", "/prompts", call("CreatePrompt", show), "Make a prompt", {"request": v1.CreatePromptRequest, **one}),
        ("GET", "/prompts/{prompt_id}", call("GetPrompt", show), "Show a prompt",
         {"query": {"version": {"type": "integer", "minimum": 1}}, **one}),
        ("PUT", "/prompts/{prompt_id}", call("UpdatePrompt", show), "Write a new version",
         {"request": v1.UpdatePromptRequest, **one}),
        ("POST", "/prompts/{prompt_id}", call("UpdatePrompt", show), "Write a new version",
         {"request": v1.UpdatePromptRequest, **one}),
        ("DELETE", "/prompts/{prompt_id}", call("DeletePrompt", edge.nothing), "Delete a prompt", {}),
        ("GET", "/prompts/{prompt_id}/versions", versions, "List versions",
         {"response": v1.ListPromptVersionsResponse}),
        ("PUT", "/prompts/{prompt_id}/set-default-version", call("SetDefaultPromptVersion", show),
         "Choose the default version", {"request": v1.SetDefaultPromptVersionRequest, **one}),
        ("POST", "/prompts/{prompt_id}/set-default-version", call("SetDefaultPromptVersion", show),
         "Choose the default version", {"request": v1.SetDefaultPromptVersionRequest, **one}),
    ]  # fmt: skip
    return [_row(*row, api="prompts", mounts=("/v1",)) for row in rows]


def _row(
    method: str,
    path: str,
    handler: Handler,
    summary: str,
    more: dict[str, Any],
    *,
    api: str,
    mounts: tuple[str, ...],
) -> Route:
    scope = "read" if method == "GET" else "agents"
    return Route(
        method=method, path=path, handler=handler, api=api, summary=summary, scope=scope, mounts=mounts, **more
    )

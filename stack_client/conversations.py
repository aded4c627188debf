"""`client.conversations`: lists of items that responses read from and append to."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import grpc

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, every_page, unary

ConversationList: TypeAlias = list[v1.Conversation]
ItemList: TypeAlias = list[v1.ResponseItem]


class Conversations:
    """Calls of `ConversationsService`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.ConversationsServiceStub(channel)

    async def create(
        self,
        items: Sequence[v1.ResponseItem] = (),
        *,
        metadata: Mapping[str, str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.Conversation:
        """Create a conversation with its first items, at most 20.

        Raises:
            InvalidArgumentError: If there are too many items or facts.
        """
        request = v1.CreateConversationRequest(items=items, metadata=metadata or {}, request_id=str(uuid.uuid4()))
        response: v1.CreateConversationResponse = await unary(self._stub.CreateConversation(request, timeout=timeout))
        return response.conversation

    async def get(self, conversation_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Conversation:
        """A conversation without its items.

        Raises:
            NotFoundError: If there is none.
        """
        request = v1.GetConversationRequest(conversation_id=conversation_id)
        response: v1.GetConversationResponse = await unary(self._stub.GetConversation(request, timeout=timeout))
        return response.conversation

    async def list(self, *, timeout: float = DEFAULT_TIMEOUT) -> ConversationList:
        """All conversations, newest first.

        Raises:
            StackError: If the call fails.
        """
        return await every_page(self._stub.ListConversations, v1.ListConversationsRequest(), timeout=timeout)

    async def update(
        self, conversation_id: str, metadata: Mapping[str, str], *, timeout: float = DEFAULT_TIMEOUT
    ) -> v1.Conversation:
        """Replace the metadata.

        Raises:
            NotFoundError: If there is no such conversation.
        """
        request = v1.UpdateConversationRequest(conversation_id=conversation_id, metadata=metadata)
        response: v1.UpdateConversationResponse = await unary(self._stub.UpdateConversation(request, timeout=timeout))
        return response.conversation

    async def delete(self, conversation_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Delete a conversation with its items.

        Raises:
            NotFoundError: If there is none.
            FailedPreconditionError: If a response writes to it.
        """
        request = v1.DeleteConversationRequest(conversation_id=conversation_id)
        await unary(self._stub.DeleteConversation(request, timeout=timeout))

    async def add(
        self, conversation_id: str, items: Sequence[v1.ResponseItem], *, timeout: float = DEFAULT_TIMEOUT
    ) -> ItemList:
        """Append items; returns them with their ids.

        Raises:
            ConflictError: If a response writes to the conversation.
        """
        request = v1.AddConversationItemsRequest(
            conversation_id=conversation_id, items=items, request_id=str(uuid.uuid4())
        )
        response: v1.AddConversationItemsResponse = await unary(
            self._stub.AddConversationItems(request, timeout=timeout)
        )
        return [*response.data]

    async def items(self, conversation_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> ItemList:
        """The items in order.

        Raises:
            NotFoundError: If there is no such conversation.
        """
        request = v1.ListConversationItemsRequest(conversation_id=conversation_id, order=v1.SORT_ORDER_ASC)
        return await every_page(self._stub.ListConversationItems, request, timeout=timeout)

    async def item(self, conversation_id: str, item_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.ResponseItem:
        """One item.

        Raises:
            NotFoundError: If there is none.
        """
        request = v1.GetConversationItemRequest(conversation_id=conversation_id, item_id=item_id)
        response: v1.GetConversationItemResponse = await unary(self._stub.GetConversationItem(request, timeout=timeout))
        return response.item

    async def delete_item(
        self, conversation_id: str, item_id: str, *, timeout: float = DEFAULT_TIMEOUT
    ) -> v1.Conversation:
        """Remove an item.

        Raises:
            NotFoundError: If there is none.
            ConflictError: If a response writes to the conversation.
        """
        request = v1.DeleteConversationItemRequest(conversation_id=conversation_id, item_id=item_id)
        response: v1.DeleteConversationItemResponse = await unary(
            self._stub.DeleteConversationItem(request, timeout=timeout)
        )
        return response.conversation

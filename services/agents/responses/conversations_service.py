"""Conversations: lists of items that responses read from and append to."""

import re
from collections.abc import Sequence

import sqlalchemy as sa

from llamastack import v1
from services.agents import rows
from services.agents.responses import records
from services.agents.responses.creating import writing
from services.agents.responses.engine import Responses
from services.agents.responses.include import trim_items
from services.agents.responses.items import Item, new_id, taken
from services.agents.responses.lists import Found, Listed, cut, start
from services.agents.responses.request import check_include, check_metadata
from services.agents.tables import conversation_items, conversations
from services.agents.turn_log import now
from services.runtime.calls import current_tenant
from services.runtime.stream import RpcContext
from stack_client.errors import FailedPreconditionError, InvalidArgumentError

MOST_ITEMS = 20
_ID = re.compile(r"conv_[0-9a-f]{48}")


class ConversationsService(v1.ConversationsServiceServicer):
    """`llamastack.v1.ConversationsService`."""

    def __init__(self, engine: Responses) -> None:
        self._engine = engine
        self._store = engine.store

    async def CreateConversation(
        self, request: v1.CreateConversationRequest, context: RpcContext
    ) -> v1.CreateConversationResponse:
        """Store a conversation with its first items."""
        tenant = current_tenant()
        check_metadata(request.metadata)
        items = _items(request.items, least=0)

        def create(connection: sa.Connection) -> v1.CreateConversationResponse:
            made = v1.Conversation(id=new_id("conv"), created_at=now(), metadata=request.metadata)
            row = {"conversation_id": made.id, "tenant": tenant, "message": made.SerializeToString()}
            connection.execute(sa.insert(conversations), row)
            records.append(connection, made.id, items)
            return v1.CreateConversationResponse(conversation=made)

        return await self._store.once(request, v1.CreateConversationResponse, create, tenant=tenant)

    async def GetConversation(
        self, request: v1.GetConversationRequest, context: RpcContext
    ) -> v1.GetConversationResponse:
        """Return a conversation without its items."""
        tenant = current_tenant()
        if not _ID.fullmatch(request.conversation_id):
            message = f"conversation_id {request.conversation_id!r} is malformed; it is conv_ and 48 hexadecimal digits"
            raise InvalidArgumentError(message, field="conversation_id")
        return v1.GetConversationResponse(
            conversation=await self._store.read(lambda connection: _get(connection, request.conversation_id, tenant))
        )

    async def ListConversations(
        self, request: v1.ListConversationsRequest, context: RpcContext
    ) -> v1.ListConversationsResponse:
        """List conversations, newest first."""
        size, before = start(request, scope="conversations")
        whose = conversations.c.tenant == current_tenant()
        found = await self._store.read(
            lambda connection: rows.newest(connection, conversations, whose, before=before, count=size + 1)
        )
        read = [(row.number, v1.Conversation.FromString(row.message)) for row in found]
        data, token = cut(read, size, scope="conversations")
        return v1.ListConversationsResponse(data=data, next_page_token=token)

    async def UpdateConversation(
        self, request: v1.UpdateConversationRequest, context: RpcContext
    ) -> v1.UpdateConversationResponse:
        """Replace the metadata."""
        tenant = current_tenant()
        check_metadata(request.metadata)

        def update(connection: sa.Connection) -> v1.Conversation:
            row = records.conversation_of(connection, request.conversation_id, tenant=tenant, lock=True)
            made = v1.Conversation.FromString(row.message)
            made.metadata.clear()
            made.metadata.update(request.metadata)
            where = conversations.c.conversation_id == made.id
            connection.execute(sa.update(conversations).where(where).values(message=made.SerializeToString()))
            return made

        return v1.UpdateConversationResponse(conversation=await self._store.write(update))

    async def DeleteConversation(
        self, request: v1.DeleteConversationRequest, context: RpcContext
    ) -> v1.DeleteConversationResponse:
        """Delete a conversation with its items."""
        tenant, conversation_id = current_tenant(), request.conversation_id
        await self._engine.settle_writer(conversation_id, tenant=tenant)

        def delete(connection: sa.Connection) -> None:
            row = records.conversation_of(connection, conversation_id, tenant=tenant, lock=True)
            if row.writer:
                message = f"response {row.writer} is writing to conversation {conversation_id}; wait or cancel it"
                raise FailedPreconditionError(message, metadata={"response": row.writer})
            for table in (conversation_items, conversations):
                connection.execute(sa.delete(table).where(table.c.conversation_id == conversation_id))

        await self._store.write(delete)
        return v1.DeleteConversationResponse(id=conversation_id, deleted=True)

    async def AddConversationItems(
        self, request: v1.AddConversationItemsRequest, context: RpcContext
    ) -> v1.AddConversationItemsResponse:
        """Append items."""
        tenant, conversation_id = current_tenant(), request.conversation_id
        items = _items(request.items, least=1)
        await self._engine.settle_writer(conversation_id, tenant=tenant)

        def add(connection: sa.Connection) -> v1.AddConversationItemsResponse:
            _unwritten(connection, conversation_id, tenant)
            records.append(connection, conversation_id, items)
            return v1.AddConversationItemsResponse(data=[one.item for one in items])

        return await self._store.once(request, v1.AddConversationItemsResponse, add, tenant=tenant)

    async def ListConversationItems(
        self, request: v1.ListConversationItemsRequest, context: RpcContext
    ) -> v1.ListConversationItemsResponse:
        """List items."""
        check_include(request.include)
        tenant, conversation_id = current_tenant(), request.conversation_id
        await self._engine.settle_writer(conversation_id, tenant=tenant)
        items = conversation_items.c
        listed = Listed(
            columns=(items.number, items.item_id, items.message, items.dialog),
            where=items.conversation_id == conversation_id,
            scope=f"conversation items {conversation_id}",
            what="item",
        )

        def find(connection: sa.Connection) -> Found:
            records.conversation_of(connection, conversation_id, tenant=tenant)
            return listed.page(connection, request)

        found, token = await self._store.read(find)
        data = [records.item_of(row).item for row in found]
        trim_items(data, request.include)
        return v1.ListConversationItemsResponse(data=data, next_page_token=token)

    async def GetConversationItem(
        self, request: v1.GetConversationItemRequest, context: RpcContext
    ) -> v1.GetConversationItemResponse:
        """Return one item."""
        check_include(request.include)
        tenant, conversation_id = current_tenant(), request.conversation_id
        await self._engine.settle_writer(conversation_id, tenant=tenant)
        items = conversation_items.c
        where = (items.conversation_id == conversation_id) & (items.item_id == request.item_id)

        def find(connection: sa.Connection) -> v1.ResponseItem:
            records.conversation_of(connection, conversation_id, tenant=tenant)
            query = sa.select(items.message).where(where)
            return v1.ResponseItem.FromString(rows.one(connection, query, what="item", key=request.item_id))

        item = await self._store.read(find)
        trim_items([item], request.include)
        return v1.GetConversationItemResponse(item=item)

    async def DeleteConversationItem(
        self, request: v1.DeleteConversationItemRequest, context: RpcContext
    ) -> v1.DeleteConversationItemResponse:
        """Remove one item."""
        tenant, conversation_id = current_tenant(), request.conversation_id
        await self._engine.settle_writer(conversation_id, tenant=tenant)

        def delete(connection: sa.Connection) -> v1.Conversation:
            _unwritten(connection, conversation_id, tenant)
            table = conversation_items
            where = (table.c.conversation_id == conversation_id) & (table.c.item_id == request.item_id)
            if not connection.execute(sa.delete(table).where(where)).rowcount:
                raise rows.not_found("item", request.item_id)
            return _get(connection, conversation_id, tenant)

        return v1.DeleteConversationItemResponse(conversation=await self._store.write(delete))


def _get(connection: sa.Connection, conversation_id: str, tenant: str) -> v1.Conversation:
    row = records.conversation_of(connection, conversation_id, tenant=tenant)
    return v1.Conversation.FromString(row.message)


def _unwritten(connection: sa.Connection, conversation_id: str, tenant: str) -> None:
    row = records.conversation_of(connection, conversation_id, tenant=tenant, lock=True)
    if row.writer:
        raise writing(conversation_id, row.writer)


def _items(given: Sequence[v1.ResponseItem], *, least: int) -> list[Item]:
    if not least <= len(given) <= MOST_ITEMS:
        message = f"items has {len(given)} entries; allowed: {least} to {MOST_ITEMS}"
        raise InvalidArgumentError(message, field="items")
    return taken(given, field="items")

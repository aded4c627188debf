"""Parts of a transaction: the rows of responses, conversations and their items."""

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from llamastack import v1
from services.agents import rows
from services.agents.responses.items import Item, messages_of
from services.agents.tables import (
    conversation_items,
    conversations,
    histories,
    pins,
    response_items,
    responses,
    sessions,
    turns,
    versions,
)
from services.agents.turn_store import Pin
from stack_client.errors import NotFoundError


@dataclass(frozen=True, kw_only=True)
class Record:
    """A response as it is stored."""

    number: int
    """Orders responses by their creation."""
    response: v1.ResponseObject
    """As it was created, or, once settled, as it ended."""
    tenant: str
    """Whose it is."""
    settled: bool
    """Whether its end is stored."""
    turn_id: str
    """Its turn."""
    session_id: str
    """The turn's session."""
    facts: str
    """Of its setup."""
    conversation_id: str
    """Where it appends; empty: nowhere."""

    @property
    def include(self) -> Sequence["v1.ResponseInclude.ValueType"]:
        """What its items are shown with beyond the usual."""
        found: Sequence[v1.ResponseInclude.ValueType] = json.loads(self.facts).get("include", ())
        return found


def find(connection: sa.Connection, response_id: str, *, tenant: str | None, hidden: bool = False) -> Record:
    """One response of a tenant (None: anybody's); those that are not stored only where `hidden`.

    Raises:
        NotFoundError: If there is none.
    """
    query = sa.select(responses).where(responses.c.response_id == response_id)
    row = connection.execute(query).first()
    if row is None or tenant not in {None, row.tenant} or not (row.stored or hidden):
        message = f"there is no response {response_id!r}; it was deleted, not stored, or never made"
        raise NotFoundError(message, metadata={"response": response_id})
    return record(row)


def record(row: Any) -> Record:  # noqa: ANN401 (a row)
    """A row as a record."""
    return Record(
        number=row.number,
        response=v1.ResponseObject.FromString(row.message),
        tenant=row.tenant,
        settled=row.settled,
        turn_id=row.turn_id,
        session_id=row.session_id,
        facts=row.facts,
        conversation_id=row.conversation_id,
    )


def pin_of(connection: sa.Connection, turn_id: str) -> Pin:
    """What a response's turn goes by."""
    row = connection.execute(sa.select(pins.c.agent, pins.c.tools).where(pins.c.turn_id == turn_id)).first()
    if row is None:
        raise rows.not_found("turn", turn_id)
    return Pin(agent=v1.Agent.FromString(row.agent), tools=v1.ListRuntimeToolsResponse.FromString(row.tools))


def add_items(connection: sa.Connection, response_id: str, items: Iterable[Item], *, tenant: str, made: bool) -> None:
    """Store items of a response."""
    key = {"response_id": response_id, "tenant": tenant, "made": made}
    values = [{**key, **_row(item)} for item in items]
    if values:
        connection.execute(sa.insert(response_items), values)


def items_of(connection: sa.Connection, response_id: str, *, made: bool) -> list[Item]:
    """Items of a response, in order."""
    where = (response_items.c.response_id == response_id) & (response_items.c.made == made)
    query = sa.select(response_items).where(where).order_by(response_items.c.number)
    return [item_of(row) for row in connection.execute(query)]


def append(connection: sa.Connection, conversation_id: str, items: Iterable[Item]) -> None:
    """Append items to a conversation."""
    values = [{"conversation_id": conversation_id, **_row(item)} for item in items]
    if values:
        connection.execute(sa.insert(conversation_items), values)


def conversation_of(connection: sa.Connection, conversation_id: str, *, tenant: str, lock: bool = False) -> Any:  # noqa: ANN401
    """The row of a conversation; raises NotFoundError."""
    query = sa.select(conversations).where(
        conversations.c.conversation_id == conversation_id, conversations.c.tenant == tenant
    )
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise rows.not_found("conversation", conversation_id)
    return row


def items_in(connection: sa.Connection, conversation_id: str) -> list[Item]:
    """Items of a conversation, in order."""
    query = sa.select(conversation_items).where(conversation_items.c.conversation_id == conversation_id)
    return [item_of(row) for row in connection.execute(query.order_by(conversation_items.c.number))]


def set_writer(connection: sa.Connection, conversation_id: str, response_id: str) -> None:
    """Say which response will append to a conversation; empty: none."""
    where = conversations.c.conversation_id == conversation_id
    connection.execute(sa.update(conversations).where(where).values(writer=response_id))


def approval_of(connection: sa.Connection, item_id: str, *, tenant: str) -> v1.MCPApprovalRequestItem | None:
    """A request for approval that a stored response made."""
    where = (response_items.c.item_id == item_id) & (response_items.c.tenant == tenant) & response_items.c.made
    message = connection.execute(sa.select(response_items.c.message).where(where).limit(1)).scalar()
    item = v1.ResponseItem.FromString(message) if message else v1.ResponseItem()
    return item.mcp_approval_request if item.HasField("mcp_approval_request") else None


def referred(connection: sa.Connection, item_id: str, *, tenant: str, field: str) -> Item:
    """An item of a stored response or a conversation of the tenant.

    Raises:
        NotFoundError: If there is none.
    """
    of_responses = sa.select(response_items.c.message, response_items.c.dialog).where(
        response_items.c.item_id == item_id, response_items.c.tenant == tenant
    )
    of_conversations = (
        sa.select(conversation_items.c.message, conversation_items.c.dialog)
        .join(conversations, conversations.c.conversation_id == conversation_items.c.conversation_id)
        .where(conversation_items.c.item_id == item_id, conversations.c.tenant == tenant)
    )
    for query in (of_responses, of_conversations):
        row = connection.execute(query.limit(1)).first()
        if row is not None:
            return item_of(row)
    message = (
        f"{field}: there is no item {item_id!r}; its response or conversation was deleted, not stored, or never made"
    )
    raise NotFoundError(message, metadata={"item": item_id})


def dialog_through(connection: sa.Connection, found: Record) -> list[v1.Message]:
    """What the model was shown up to the end of a response, without instructions."""
    stored = connection.execute(sa.select(histories.c.message).where(histories.c.turn_id == found.turn_id)).scalar()
    messages = list(v1.Dialog.FromString(stored or b"").messages)
    turn = rows.get_turn(connection, found.turn_id, tenant=None)
    for entry in turn.input_messages:
        if entry.HasField("user"):
            messages.append(v1.Message(user=v1.UserMessage(content=entry.user.content)))
        else:
            messages.append(v1.Message(tool=entry.tool))
    for item in items_of(connection, found.response.id, made=True):
        messages += messages_of(item, field="output")
    return messages


def delete(connection: sa.Connection, found: Record) -> Sequence[str]:
    """Delete a response with its turn; returns the turns that went."""
    response_id = found.response.id
    gone = rows.delete_sessions(connection, sessions.c.session_id == found.session_id)
    connection.execute(sa.delete(versions).where(versions.c.agent_id == response_id))
    connection.execute(sa.delete(response_items).where(response_items.c.response_id == response_id))
    connection.execute(sa.delete(responses).where(responses.c.response_id == response_id))
    return gone


def drop(connection: sa.Connection, response_id: str) -> None:
    """Delete a response, whoever's it is, where it is still there."""
    with contextlib.suppress(NotFoundError):
        delete(connection, find(connection, response_id, tenant=None, hidden=True))


def status_of(connection: sa.Connection, turn_id: str) -> int | None:
    """Where a turn stands; None where it is gone."""
    status: int | None = connection.execute(sa.select(turns.c.status).where(turns.c.turn_id == turn_id)).scalar()
    return status


def item_of(row: Any) -> Item:  # noqa: ANN401 (a row)
    """An item as it is stored."""
    dialog = None if row.dialog is None else list(v1.Dialog.FromString(row.dialog).messages)
    return Item(item=v1.ResponseItem.FromString(row.message), dialog=dialog)


def _row(item: Item) -> dict[str, Any]:
    dialog = None if item.dialog is None else v1.Dialog(messages=item.dialog).SerializeToString()
    return {"item_id": item.item_id, "message": item.item.SerializeToString(), "dialog": dialog}

"""The RPC edge of stored chat completions."""

import contextlib
import json
from typing import Any

import sqlalchemy as sa

from llamastack import v1
from services.agents import rows
from services.agents.database import Database, StoreConflictError
from services.agents.responses.lists import Listed
from services.agents.responses.request import check_metadata
from services.agents.tables import chat_completions, chat_notes
from services.runtime.calls import current_tenant
from services.runtime.offload import offload
from services.runtime.stream import RpcContext
from stack_client.errors import InvalidArgumentError

PAGE_BYTES = 8 * 1024 * 1024
"""Of a page, which has fewer entries than were asked for where these are large."""
_COLUMNS = chat_completions.c


class ChatCompletionsService(v1.ChatCompletionsServiceServicer):
    """`llamastack.v1.ChatCompletionsService`."""

    def __init__(self, store: Database) -> None:
        self._store = store

    async def StoreChatCompletion(
        self, request: v1.StoreChatCompletionRequest, context: RpcContext
    ) -> v1.StoreChatCompletionResponse:
        """Keep a completion."""
        tenant, one = current_tenant(), request.completion
        await _check(one)
        key = {"tenant": tenant, "completion_id": one.completion_id}

        def store(connection: sa.Connection) -> None:
            if connection.execute(_find(one.completion_id, tenant)).first() is not None:
                return
            row = {**key, "model": one.model, "message": one.SerializeToString()}
            made = connection.execute(sa.insert(chat_completions), row).inserted_primary_key
            assert made is not None
            _note(connection, made[0], dict(one.metadata))

        with contextlib.suppress(StoreConflictError):  # a repeat came at the same time
            await self._store.write(store)
        return v1.StoreChatCompletionResponse()

    async def GetChatCompletion(
        self, request: v1.GetChatCompletionRequest, context: RpcContext
    ) -> v1.GetChatCompletionResponse:
        """Return a completion."""
        tenant = current_tenant()
        _, found = await self._store.read(lambda connection: _get(connection, request.completion_id, tenant))
        return v1.GetChatCompletionResponse(completion=found)

    async def ListChatCompletions(
        self, request: v1.ListChatCompletionsRequest, context: RpcContext
    ) -> v1.ListChatCompletionsResponse:
        """List completions."""
        where = _COLUMNS.tenant == current_tenant()
        if request.model:
            where &= _COLUMNS.model == request.model
        for name, value in request.metadata.items():
            noted = (chat_notes.c.name == name) & (chat_notes.c.value == value)
            where &= _COLUMNS.number.in_(sa.select(chat_notes.c.completion).where(noted))
        listed = Listed(
            columns=(_COLUMNS.number, _COLUMNS.completion_id, _COLUMNS.message),
            where=where,
            scope=json.dumps(["chat completions", request.model, sorted(request.metadata.items())]),
            what="completion",
        )
        found, token = await self._store.read(lambda connection: listed.page(connection, request))
        while len(found) > 1 and sum(len(row.message) for row in found) > PAGE_BYTES:  # chats with images are large
            request.page_size = len(found) // 2
            found, token = await self._store.read(lambda connection: listed.page(connection, request))
        data = [v1.StoredChatCompletion.FromString(row.message) for row in found]
        return v1.ListChatCompletionsResponse(data=data, next_page_token=token)

    async def UpdateChatCompletion(
        self, request: v1.UpdateChatCompletionRequest, context: RpcContext
    ) -> v1.UpdateChatCompletionResponse:
        """Replace the notes of a completion."""
        tenant = current_tenant()
        check_metadata(request.metadata)

        def update(connection: sa.Connection) -> v1.StoredChatCompletion:
            number, found = _get(connection, request.completion_id, tenant, lock=True)
            found.ClearField("metadata")
            found.metadata.update(request.metadata)
            changed = sa.update(chat_completions).where(_COLUMNS.number == number)
            connection.execute(changed.values(message=found.SerializeToString()))
            connection.execute(sa.delete(chat_notes).where(chat_notes.c.completion == number))
            _note(connection, number, dict(request.metadata))
            return found

        return v1.UpdateChatCompletionResponse(completion=await self._store.write(update))

    async def DeleteChatCompletion(
        self, request: v1.DeleteChatCompletionRequest, context: RpcContext
    ) -> v1.DeleteChatCompletionResponse:
        """Delete a completion."""
        tenant = current_tenant()

        def delete(connection: sa.Connection) -> None:
            number, _ = _get(connection, request.completion_id, tenant, lock=True)
            connection.execute(sa.delete(chat_notes).where(chat_notes.c.completion == number))
            connection.execute(sa.delete(chat_completions).where(_COLUMNS.number == number))

        await self._store.write(delete)
        return v1.DeleteChatCompletionResponse()


async def _check(one: v1.StoredChatCompletion) -> None:
    """Refuse what could not be shown again.

    Raises:
        InvalidArgumentError: Naming the field.
    """
    for name in ("completion_id", "model", "input_messages_json", "completion_json"):
        if not getattr(one, name):
            field = f"completion.{name}"
            raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
    if not one.HasField("created_at"):
        field = "completion.created_at"
        raise InvalidArgumentError(f"{field} is not set", reason="MISSING_FIELD", field=field)
    check_metadata(one.metadata)
    for name, kind in (("input_messages_json", list), ("completion_json", dict)):
        text = getattr(one, name)
        if not await offload(len(text), _is, text, kind):
            field = f"completion.{name}"
            what = "list" if kind is list else "object"
            raise InvalidArgumentError(f"{field} is no JSON {what}", field=field)


def _is(text: str, kind: type) -> bool:
    """Whether a text is JSON of a kind."""
    try:
        return isinstance(json.loads(text), kind)
    except ValueError:
        return False


def _find(completion_id: str, tenant: str) -> "sa.Select[Any]":
    where = (_COLUMNS.tenant == tenant) & (_COLUMNS.completion_id == completion_id)
    return sa.select(_COLUMNS.number, _COLUMNS.message).where(where)


def _get(
    connection: sa.Connection, completion_id: str, tenant: str, *, lock: bool = False
) -> tuple[int, v1.StoredChatCompletion]:
    """A completion with its number; raises NotFoundError."""
    query = _find(completion_id, tenant)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise rows.not_found("chat completion", completion_id)
    return row.number, v1.StoredChatCompletion.FromString(row.message)


def _note(connection: sa.Connection, number: int, notes: dict[str, str]) -> None:
    if notes:
        values = [{"completion": number, "name": name, "value": value} for name, value in notes.items()]
        connection.execute(sa.insert(chat_notes), values)

"""Requests that are done once, however often they are sent."""

import hashlib
from typing import Any, TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.tables import requests
from services.runtime.moments import SECOND, now
from stack_client.errors import InvalidArgumentError

MessageT = TypeVar("MessageT", bound=Message)

KEEP = 24 * 3600 * SECOND
"""How long a repeat of a request is recognised."""


async def recall(
    connection: AsyncConnection,
    request: Any,  # noqa: ANN401 (any request with an id)
    *,
    tenant: str,
    answer: type[MessageT],
) -> MessageT | None:
    """The answer that a request with this id got before; None when it is new or has no id.

    Raises:
        InvalidArgumentError: If the id was used before with another body.
    """
    if not request.request_id:
        return None
    found = (
        await connection.execute(sa.select(requests.c.body, requests.c.answer).where(_key(request, tenant)))
    ).first()
    if found is None:
        return None
    if found.body != _digest(request):
        message = f"request_id {request.request_id!r} was used before with another body; choose a new one"
        raise InvalidArgumentError(message, reason="REQUEST_ID_REUSED", field="request_id")
    return answer.FromString(found.answer)


async def remember(
    connection: AsyncConnection,
    request: Any,  # noqa: ANN401 (any request with an id)
    *,
    tenant: str,
    answer: Message,
    bank: int | None,
) -> None:
    """Keep an answer for repeats, in the transaction that made it true; until its bank is deleted."""
    if not request.request_id:
        return
    await connection.execute(sa.delete(requests).where(requests.c.created_at < now() - KEEP))
    row = {"tenant": tenant, "bank": bank, "method": request.DESCRIPTOR.name, "request_id": request.request_id}
    body = {"body": _digest(request), "answer": answer.SerializeToString(), "created_at": now()}
    # Two calls with the same id at once do the same thing; the answer that came first stays.
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    await connection.execute(insert(requests).values(**row, **body).on_conflict_do_nothing())


def _key(request: Any, tenant: str) -> sa.ColumnElement[bool]:  # noqa: ANN401
    c = requests.c
    return sa.and_(c.tenant == tenant, c.method == request.DESCRIPTOR.name, c.request_id == request.request_id)


def _digest(request: Message) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()

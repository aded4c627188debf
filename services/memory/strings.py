"""No NUL reaches the database, which on PostgreSQL could not store it: the edge of every service is watched here.

Identifiers and other strings with a NUL are refused by name. Content is cleaned of it instead, as are questions: any
text is a valid one.
"""

from typing import Any, Self, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from llamastack import v1
from stack_client.errors import InvalidArgumentError

ServicerT = TypeVar("ServicerT")

TEXTS = frozenset(
    {
        "llamastack.v1.ContentItem.text",
        "llamastack.v1.QueryKeywordRequest.text",
        "llamastack.v1.QueryKeywordRequest.prefixes",
        "llamastack.v1.QueryKeywordRequest.required_terms",
        "llamastack.v1.QueryKeywordRequest.excluded_terms",
        "llamastack.v1.PhraseQuery.text",
        "llamastack.v1.KeywordLeg.text",
        "llamastack.v1.GraphLeg.text",
        "llamastack.v1.QuerySubgraphRequest.text",
        "llamastack.v1.SearchVectorStoreRequest.query",
    }
)
"""Fields in which a NUL is left out."""
BYTES_ALONE = (
    v1.GetEntriesRequest,
    v1.PutEntryRequest,
    v1.DeleteEntryRequest,
    v1.ScanEntriesRequest,
    v1.WatchEntriesRequest,
)
"""Requests whose keys and values are kept as bytes, in which a NUL is like any other: only the bank is looked at."""


class _Watched:
    """A servicer whose requests are looked at first.

    Args:
        servicer: Answers them; its methods take a request, or an iterator of requests, and a context.
    """

    def __init__(self, servicer: Any) -> None:  # noqa: ANN401 (any servicer)
        self._servicer = servicer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        method = getattr(self._servicer, name)

        def looked_at(request: Any, context: Any) -> Any:  # noqa: ANN401
            return method(clean(request) if isinstance(request, Message) else _Each(request), context)

        return looked_at


def watched(servicer: ServicerT) -> ServicerT:
    """The servicer behind a door at which its requests are looked at."""
    return cast("ServicerT", _Watched(servicer))


def clean(request: Message) -> Message:
    """The request itself, with texts cleaned.

    Raises:
        InvalidArgumentError: If another string of it holds a NUL.
    """
    if isinstance(request, BYTES_ALONE):
        _refuse(request.bank_id, "bank_id")
        if isinstance(request, v1.PutEntryRequest):
            _refuse(request.request_id, "request_id")
    elif b"\0" in request.SerializeToString():
        _clean(request, "")
    return request


class _Each:
    """The messages of an upload, each looked at; goes on after one was refused."""

    def __init__(self, requests: Any) -> None:  # noqa: ANN401 (an iterator of messages)
        self._requests = aiter(requests)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        return clean(await anext(self._requests))


def _clean(message: Message, path: str) -> None:
    for field, value in message.ListFields():
        name = f"{path}{field.name}"
        if field.type == FieldDescriptor.TYPE_STRING:
            _strings(message, field, value, name)
        elif field.message_type is None:
            continue
        elif field.message_type.GetOptions().map_entry:
            for key in value:
                _refuse(str(key), f"{name}.{key}")
                inner = value[key]
                if isinstance(inner, Message):
                    _clean(inner, f"{name}.{key}.")
                elif isinstance(inner, str):
                    _refuse(inner, f"{name}.{key}")
        elif isinstance(value, Message):
            _clean(value, f"{name}.")
        else:
            for index, one in enumerate(value):
                _clean(one, f"{name}[{index}].")


def _strings(message: Message, field: FieldDescriptor, value: Any, name: str) -> None:  # noqa: ANN401
    if field.full_name not in TEXTS:
        for one in [value] if isinstance(value, str) else value:
            _refuse(one, name)
    elif isinstance(value, str):
        if "\0" in value:
            setattr(message, field.name, value.replace("\0", ""))
    elif any("\0" in one for one in value):
        value[:] = [one.replace("\0", "") for one in value]


def _refuse(value: str, name: str) -> None:
    if "\0" in value:
        name = name.replace("\0", "\\0")
        raise InvalidArgumentError(f"{name} holds a NUL character; leave it out", field=name)

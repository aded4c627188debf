"""Pages of lists that a token, or the id of an entry, goes on from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import sqlalchemy as sa

from llamastack import v1
from services.runtime.pages import PageRequest, decode_token, encode_token, page_size
from stack_client.errors import InvalidArgumentError, NotFoundError

T = TypeVar("T")


class MarkedRequest(Protocol):
    """A list request that also takes ids of entries."""

    page_size: int
    page_token: str
    after: str
    before: str
    order: "v1.SortOrder.ValueType"


def start(request: PageRequest, *, scope: str) -> tuple[int, int]:
    """Size of a page and the number at which it goes on (0: from the beginning)."""
    return page_size(request), int(decode_token(request.page_token, scope=scope) or 0)


def cut(found: Sequence[tuple[int, T]], size: int, *, scope: str) -> tuple[list[T], str]:
    """A page's entries, and the token of the next page where there are more."""
    token = encode_token(str(found[size - 1][0]), scope=scope) if len(found) > size else ""
    return [entry for _, entry in found[:size]], token


Found: TypeAlias = "tuple[Sequence[sa.Row[Any]], str]"
"""Rows of a page, and the token of the next one."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Rows that are listed in the order of their creation."""

    columns: "Sequence[sa.Column[Any]]"
    """What is read: the number, the id, and more."""
    where: "sa.ColumnElement[bool]"
    """Which rows."""
    scope: str
    """Names the list and its filter."""
    what: str
    """What an entry is called."""

    def page(self, connection: sa.Connection, request: MarkedRequest) -> Found:
        """One page.

        Raises:
            InvalidArgumentError: If marks exclude each other, or the token belongs to another list.
            NotFoundError: If an entry that is named is not there.
        """
        marks = [name for name in ("page_token", "after", "before") if getattr(request, name)]
        if len(marks) > 1:
            raise InvalidArgumentError(f"{marks[0]} and {marks[1]} exclude each other; give one", field=marks[1])
        size, number = page_size(request), self.columns[0]
        descending = request.order != v1.SORT_ORDER_ASC
        scope = f"{self.scope} {descending}"
        after = int(decode_token(request.page_token, scope=scope) or 0)
        after = self._number(connection, request.after) if request.after else after
        where = self.where
        if after:
            where &= number < after if descending else number > after
        if request.before:  # the entries just before it, nearest first until they are turned around
            before = self._number(connection, request.before)
            where &= number > before if descending else number < before
        falling = descending != bool(request.before)
        query = sa.select(*self.columns).where(where).order_by(number.desc() if falling else number).limit(size + 1)
        found = list(connection.execute(query))
        if request.before:
            return found[:size][::-1], ""
        token = encode_token(str(found[size - 1].number), scope=scope) if len(found) > size else ""
        return found[:size], token

    def _number(self, connection: sa.Connection, wanted: str) -> int:
        query = sa.select(self.columns[0]).where(self.where, self.columns[1] == wanted)
        found: int | None = connection.execute(query).scalar()
        if found is None:
            message = f"there is no {self.what} {wanted!r} in this list"
            raise NotFoundError(message, metadata={self.what: wanted})
        return found

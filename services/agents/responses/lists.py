"""Pages of lists that a token, or the id of an entry, goes on from."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

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


def page(
    entries: Sequence[T], *, key: Callable[[T], str], request: MarkedRequest, scope: str, what: str
) -> tuple[list[T], str]:
    """One page of entries in the order of their creation, and the token of the next page.

    Raises:
        InvalidArgumentError: If marks exclude each other, or the token belongs to another list.
        NotFoundError: If an entry that is named is not there.
    """
    marks = [name for name in ("page_token", "after", "before") if getattr(request, name)]
    if len(marks) > 1:
        raise InvalidArgumentError(f"{marks[0]} and {marks[1]} exclude each other; give one", field=marks[1])
    size = page_size(request)
    descending = request.order != v1.SORT_ORDER_ASC
    scope = f"{scope} {descending}"
    ordered = list(reversed(entries)) if descending else list(entries)
    ids = [key(entry) for entry in ordered]
    begin, end = 0, len(ordered)
    after = decode_token(request.page_token, scope=scope) or request.after
    if after:
        begin = _place(ids, after, what) + 1
    if request.before:
        end = _place(ids, request.before, what)
        begin = max(0, end - size)
    chosen = ordered[begin:end][:size]
    more = begin + len(chosen) < end
    return chosen, encode_token(key(chosen[-1]), scope=scope) if more and chosen else ""


def _place(ids: Sequence[str], wanted: str, what: str) -> int:
    if wanted not in ids:
        raise NotFoundError(f"there is no {what} {wanted!r} in this list", metadata={what: wanted})
    return ids.index(wanted)

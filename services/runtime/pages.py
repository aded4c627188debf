"""Pages of list calls: sizes, and tokens that name the last entry of the page before.

A token is opaque to callers, bound to its list and filter, and grants nothing: it only says where to go on.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from stack_client.errors import InvalidArgumentError

T = TypeVar("T")

DEFAULT_SIZE = 100
MAX_SIZE = 1000
_DIGEST_BYTES = 8


class PageRequest(Protocol):
    """A list request."""

    page_size: int
    page_token: str


def page_size(request: PageRequest) -> int:
    """Entries per page.

    Raises:
        InvalidArgumentError: If the size asked for is out of range.
    """
    if not 0 <= request.page_size <= MAX_SIZE:
        message = f"page_size is {request.page_size}; allowed: 1 to {MAX_SIZE}, or 0 for {DEFAULT_SIZE}"
        raise InvalidArgumentError(message, field="page_size")
    return request.page_size or DEFAULT_SIZE


def encode_token(position: str, *, scope: str) -> str:
    """Token of the page after `position`; `scope` names the list and its filter."""
    return base64.urlsafe_b64encode(_digest(position, scope) + position.encode()).decode().rstrip("=")


def decode_token(token: str, *, scope: str) -> str:
    """Position that a token names; "" for the first page.

    Raises:
        InvalidArgumentError: If the token is damaged or belongs to another list or filter.
    """
    if not token:
        return ""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        position = raw[_DIGEST_BYTES:].decode()
    except (binascii.Error, ValueError):
        raw, position = b"", ""
    if raw[:_DIGEST_BYTES] != _digest(position, scope):
        message = "page_token is damaged or belongs to another list or filter; begin again without one"
        raise InvalidArgumentError(message, reason="INVALID_PAGE_TOKEN", field="page_token")
    return position


def page(items: Sequence[T], *, key: Callable[[T], str], request: PageRequest, scope: str = "") -> tuple[list[T], str]:
    """One page of `items`, which are sorted by `key` ascending, and the token of the next page ("" on the last)."""
    size = page_size(request)
    scope = scope or type(request).__name__
    after = decode_token(request.page_token, scope=scope)
    rest = [item for item in items if not after or key(item) > after]
    token = encode_token(key(rest[size - 1]), scope=scope) if len(rest) > size else ""
    return rest[:size], token


def _digest(position: str, scope: str) -> bytes:
    return hashlib.blake2b(f"{scope}\0{position}".encode(), digest_size=_DIGEST_BYTES).digest()

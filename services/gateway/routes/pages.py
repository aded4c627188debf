"""OpenAI's lists: `after`, `before`, `limit` and `order` in, `first_id`, `last_id` and `has_more` out."""

from collections.abc import Callable, Mapping
from typing import Any

from services.gateway.edge import PAGE, Edge, whole_number
from services.gateway.request import JsonReply, Reply, Request
from services.gateway.upstream import Rpc
from stack_client.errors import InvalidArgumentError


async def paged_list(
    edge: Edge,
    rpc: Rpc,
    request: Request,
    *,
    write: Callable[[Any], dict[str, Any]],
    default: int,
    most: int,
    empty: str | None = None,
) -> Reply:
    """Answer with a page of a list.

    Args:
        edge: Channels and codec.
        rpc: The list's; its request has `after`, and `before` and `order` where the list knows them.
        request: With the query.
        write: The JSON of an entry.
        default: Entries in a page where the client does not say.
        most: The most that it may ask for.
        empty: What `first_id` and `last_id` are in an empty page.

    Raises:
        StackError: As the service raised it, or something in the query is wrong.
    """
    query = request.query()
    limit = whole_number(query.pop("limit", None), "limit", default=default)
    if not 1 <= limit <= most:
        raise InvalidArgumentError(f"limit: {limit} is out of range; give 1 to {most}", field="limit")
    values = {key: value for key, value in query.items() if value != ""} | dict(request.params)
    message = edge.fill(rpc, values, request, strict=False)
    entries, more = await _entries(edge, rpc, message, request=request, limit=limit)
    data = [write(one) for one in entries]
    return JsonReply(
        value={
            "object": "list",
            "data": data,
            "first_id": data[0].get("id") if data else empty,
            "last_id": data[-1].get("id") if data else empty,
            "has_more": more,
        }
    )


async def _entries(
    edge: Edge,
    rpc: Rpc,
    message: Any,  # noqa: ANN401 - by the Rpc
    *,
    request: Request,
    limit: int,
) -> tuple[list[Any], bool]:
    """The entries of a page, of several pages of the service where it is large, and whether more follow."""
    entries: list[Any] = []
    # What ends before an entry is the page next to that entry: the pages after it are not asked for.
    single: str = getattr(message, "before", "")
    while True:
        message.page_size = min(limit - len(entries), PAGE)
        page = await edge.upstream.unary(rpc, message, request=request)
        entries += page.data
        more = bool(page.next_page_token)
        if not more or len(entries) >= limit or single:
            return entries, more
        message.after = ""
        message.page_token = page.next_page_token


def page_query(*more: str, most: int, default: int) -> Mapping[str, Mapping[str, Any]]:
    """The query of a list, for the OpenAPI document."""
    return {
        "after": {"type": "string"},
        "before": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1, "maximum": most, "default": default},
        "order": {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
        **{name: {"type": "string"} for name in more},
    }

"""What is shown of items beyond the usual: they are kept whole, and shown without what nobody asked for."""

from collections.abc import Collection, Iterable

from llamastack import v1

Included = Collection["v1.ResponseInclude.ValueType"]
_WHOLE = ("created", "queued", "in_progress")
_ITEMS = ("output_item_added", "output_item_done")


def trim_items(items: Iterable[v1.ResponseItem], include: Included) -> None:
    """Take out of items what is not included."""
    for item in items:
        if item.HasField("file_search_call") and v1.RESPONSE_INCLUDE_FILE_SEARCH_CALL_RESULTS not in include:
            item.file_search_call.ClearField("results")
        searched = item.HasField("web_search_call") and item.web_search_call.HasField("search")
        if searched and v1.RESPONSE_INCLUDE_WEB_SEARCH_CALL_ACTION_SOURCES not in include:
            item.web_search_call.search.ClearField("sources")


def trim_event(event: v1.WatchResponseResponse, include: Included) -> None:
    """Take out of an event what is not included."""
    kind = event.WhichOneof("event") or ""
    if kind == "progress":
        name = event.progress.WhichOneof("progress") or ""
        if name in _WHOLE:
            trim_items(getattr(event.progress, name).output, include)
        elif name in _ITEMS:
            trim_items([getattr(event.progress, name).item], include)
    elif kind in {"completed", "incomplete", "failed", "cancelled"}:
        trim_items(getattr(event, kind).output, include)

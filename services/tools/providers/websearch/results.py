"""What every engine answers, and how the model reads it."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamastack import v1
from services.tools.provider import Call
from services.tools.providers.plain import answered
from stack_client.content import struct

MAX_RESULTS = 20
DEFAULT_RESULTS = 5
SNIPPET = 1000
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,80}>")

TOOL = v1.ToolDef(
    name="web_search",
    description="Search the web for information that is recent, or that you do not know.",
    input_schema=struct(
        {
            "type": "object",
            "properties": {"query": {"type": "string", "minLength": 1, "description": "What to search for."}},
            "required": ["query"],
        }
    ),
    effect=v1.TOOL_EFFECT_READ,
)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One page."""

    title: str
    url: str
    snippet: str


def hits_of(items: object, *, title: str, url: str, snippet: str) -> list[Hit]:
    """The pages of an engine's list; entries that are none are left out.

    Args:
        items: As the engine sent it.
        title: Name of that field.
        url: Name of that field.
        snippet: Name of that field.
    """
    hits = []
    for item in items if isinstance(items, list) else []:
        if isinstance(item, Mapping) and isinstance(item.get(url), str):
            text = _clean(item.get(snippet))
            hits.append(Hit(title=_clean(item.get(title)), url=item[url], snippet=text[:SNIPPET]))
    return hits


def result_of(query: str, hits: Sequence[Hit], *, engine: str, note: str = "") -> v1.ToolInvocationResult:
    """A result in the shape of Llama Stack's: compact JSON with `query` and `top_k`."""
    body: dict[str, Any] = {"query": query, "top_k": [vars(hit) for hit in hits]}
    if note:
        body["note"] = note
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return answered(text, engine=engine, results=len(hits), **({"note": note} if note else {}))


def wanted(call: Call) -> int:
    """How many pages the group wants."""
    given = call.group.args.fields
    return int(given["max_results"].number_value) if "max_results" in given else DEFAULT_RESULTS


def _clean(text: object) -> str:
    """Text without the marks that engines put around words of the query."""
    return " ".join(html.unescape(_TAG.sub("", text)).split()) if isinstance(text, str) else ""

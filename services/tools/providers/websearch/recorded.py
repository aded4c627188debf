"""Web search without a network: answers that were stored before, for demos and tests. Every result says so.

The file is a JSON list of `{"query": "...", "results": [{"title": "...", "url": "...", "snippet": "..."}]}`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamastack import v1
from services.runtime.config import ConfigError, read_config
from services.tools.provider import Access, Call, ProviderContext
from services.tools.providers.plain import PlainProvider
from services.tools.providers.websearch.results import TOOL, Hit, hits_of, result_of, wanted

PACKAGED = Path(__file__).parent / "recorded.json"
NOTE = "stored results of a demonstration, not a live search; configure a provider of builtin::websearch for that"
NOTHING = f"{NOTE}. Nothing is stored for this query; do not conclude that the web has nothing"
LEAST_SHARED = 0.34
"""Share of the words of query and stored query that must be the same."""
_WORD = re.compile(r"\w+")
_EMPTY = frozenset(
    {
        *("a", "an", "and", "are", "by", "did", "do", "does", "for", "from", "how", "in", "is", "it", "of", "on", "or"),
        *("the", "to", "was", "were", "what", "when", "where", "which", "who", "why", "with"),
    }
)
"""Words that say nothing about a query."""


@dataclass(frozen=True, kw_only=True)
class RecordedConfig:
    """Settings of the provider `recorded`."""

    file: Path | None = None
    """JSON file with stored answers; unset means the packaged ones."""


class RecordedProvider(PlainProvider):
    """Replays stored answers: those of the same query, else of the one that shares most words.

    Args:
        context: Of the service.

    Raises:
        ConfigError: If the file cannot be used.
    """

    arguments = frozenset({"max_results"})

    def __init__(self, context: ProviderContext) -> None:
        config = read_config(
            RecordedConfig, context.config, file=context.service.config.file, at="tools.providers.recorded"
        )
        self._stored = _load(config.file or PACKAGED)

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:  # noqa: ARG002 (interface)
        """The one tool."""
        return [TOOL]

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """Look among what is stored."""
        query = str(call.arguments["query"])
        words = _words(query)
        score, hits = max(
            ((_shared(words, stored), hits) for stored, hits in self._stored), key=lambda one: one[0], default=(0.0, [])
        )
        if score < LEAST_SHARED:
            return result_of(query, [], engine="recorded", note=NOTHING)
        return result_of(query, hits[: wanted(call)], engine="recorded", note=NOTE)


def _load(file: Path) -> list[tuple[frozenset[str], list[Hit]]]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return [
            (_words(entry["query"]), hits_of(entry["results"], title="title", url="url", snippet="snippet"))
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"tools.providers.recorded.file: {file}: {error!r}; see the module's docstring") from error


def _words(text: str) -> frozenset[str]:
    words = frozenset(_WORD.findall(text.lower()))
    return words - _EMPTY or words


def _shared(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second) if first | second else 0.0

"""To be replaced by the marking of words."""

from collections.abc import Mapping
from typing import Any

from llamastack import v1
from services.memory.bank import Bank
from services.memory.chunks import KeywordQuery


def field_highlights(
    bank: Bank, query: KeywordQuery, row: Mapping[Any, Any], *, max_spans: int, fragment_characters: int
) -> list[v1.FieldHighlight]:
    """Marked places of a chunk."""
    raise NotImplementedError

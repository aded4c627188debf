"""Settings of a search before an answer, in the words of Llama Stack's `query_config`."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from stack_client.errors import InvalidArgumentError
from stack_client.filters import metadata_filter

_MODES = {
    "vector": v1.SEARCH_MODE_VECTOR,
    "keyword": v1.SEARCH_MODE_KEYWORD,
    "hybrid": v1.SEARCH_MODE_HYBRID,
}
_NUMBERS = ("max_chunks", "max_tokens_in_context")
_TEXTS = ("chunk_template", "context_model")
_UNIONS = {"ranker": ("rrf", "weighted", "neural", "mmr"), "query_generator_config": ("default", "llm", "custom")}
"""Settings that are objects with a type, and the types."""


def query_config(settings: object, *, field: str) -> v1.RAGQueryConfig:
    """The proto of such settings.

    Args:
        settings: A mapping; `mode`, numbers of chunks and tokens, `chunk_template`, `context_model`, `score_threshold`,
            `filters`, and `ranker` and `query_generator_config`, which are objects with a `type`.
        field: Where they stand, for messages.

    Raises:
        InvalidArgumentError: If it is no mapping, or a setting is unknown or has a wrong value.
    """
    if not isinstance(settings, Mapping):
        raise InvalidArgumentError(f"{field}: give an object", field=field)
    config = v1.RAGQueryConfig()
    for name, value in settings.items():
        if not _set(config, str(name), value, field=field):
            known = f"mode ({', '.join(_MODES)}), {', '.join(_NUMBERS)} (above 0), {', '.join(_TEXTS)}, filters, "
            known += f"score_threshold, {' and '.join(_UNIONS)} with a type"
            message = f"{field}.{name}: {value!r} is not understood; there are {known}"
            raise InvalidArgumentError(message, field=f"{field}.{name}")
    return config


def _set(config: v1.RAGQueryConfig, name: str, value: Any, *, field: str) -> bool:  # noqa: ANN401 (JSON)
    """Take one setting; says whether it was understood."""
    if name == "mode" and value in tuple(_MODES):
        config.mode = _MODES[value]
    elif (name in _NUMBERS and _counts(value)) or (name in _TEXTS and isinstance(value, str)):
        setattr(config, name, value)
    elif name == "score_threshold" and isinstance(value, int | float) and not isinstance(value, bool):
        config.score_threshold = value
    elif name == "filters" and isinstance(value, Mapping):
        found = metadata_filter(value)
        assert found is not None
        config.filters.CopyFrom(found)
    elif name in _UNIONS and isinstance(value, Mapping) and value.get("type") in _UNIONS[name]:
        inner = {key: one for key, one in value.items() if key != "type" and one is not None}
        try:
            json_format.ParseDict({value["type"]: inner}, getattr(config, name))
        except json_format.ParseError as error:
            raise InvalidArgumentError(f"{field}.{name}: {error}", field=f"{field}.{name}") from error
    else:
        return value is None
    return True


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

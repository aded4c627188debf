"""Settings of a search before an answer, in the words of Llama Stack's `query_config`."""

from collections.abc import Mapping

from llamastack import v1
from stack_client.errors import InvalidArgumentError

_MODES = {
    "vector": v1.SEARCH_MODE_VECTOR,
    "keyword": v1.SEARCH_MODE_KEYWORD,
    "hybrid": v1.SEARCH_MODE_HYBRID,
}
_NUMBERS = ("max_chunks", "max_tokens_in_context")
_TEXTS = ("chunk_template", "context_model")


def query_config(settings: object, *, field: str) -> v1.RAGQueryConfig:
    """The proto of such settings.

    Args:
        settings: A mapping; `mode`, numbers of chunks and tokens, `chunk_template`, `context_model`.
        field: Where they stand, for messages.

    Raises:
        InvalidArgumentError: If it is no mapping, or a setting is unknown or has a wrong value.
    """
    if not isinstance(settings, Mapping):
        raise InvalidArgumentError(f"{field}: give an object", field=field)
    config = v1.RAGQueryConfig()
    for name, value in settings.items():
        if name == "mode" and value in _MODES:
            config.mode = _MODES[value]
        elif (name in _NUMBERS and _counts(value)) or (name in _TEXTS and isinstance(value, str)):
            setattr(config, name, value)
        else:
            known = f"mode ({', '.join(_MODES)}), {', '.join(_NUMBERS)} (above 0), {', '.join(_TEXTS)}"
            message = f"{field}.{name}: {value!r} is not understood; there are {known}"
            raise InvalidArgumentError(message, field=f"{field}.{name}")
    return config


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

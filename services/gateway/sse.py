"""Server-sent events: one event is one `data:` line and an empty line, which all client families read."""

from typing import Any

import orjson

from services.gateway import errors
from services.gateway.app import HEARTBEAT
from stack_client.errors import StackError

DONE = b"data: [DONE]\n\n"
__all__ = ["DONE", "HEARTBEAT", "data", "failure", "named"]


def data(value: Any) -> bytes:  # noqa: ANN401 - JSON
    """An event without name."""
    return b"data: " + orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS) + b"\n\n"


def named(name: str, value: Any) -> bytes:  # noqa: ANN401 - JSON
    """An event with a name."""
    return b"event: " + name.encode() + b"\n" + data(value)


def failure(error: StackError) -> bytes:
    """The last event of a stream of chunks that breaks after its first byte."""
    return data({"error": errors.error_object(error, status=errors.status_of(error))})

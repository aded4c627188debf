"""Keys of providers that a caller brings for its request, on their way to the services that run tools."""

import json
from collections.abc import Mapping
from typing import Any

from services.runtime.interceptors.tenant import MOST_PROVIDER_DATA
from stack_client.errors import InvalidArgumentError

_KEY = "_api_key"
_MCP_HEADERS = "mcp_headers"


def packed(value: Mapping[str, Any], *, name: str) -> str:
    """The keys as metadata of calls, which are ASCII; empty where there are none.

    Args:
        value: By name of the key.
        name: Of the header that they came in, for errors.

    Raises:
        InvalidArgumentError: They are too long, or those that services know have another shape.
    """
    for key, item in value.items():
        if key.endswith(_KEY) and item is not None and not isinstance(item, str):
            raise InvalidArgumentError(f"{name}: {key[:80]}: expected a string", field=name)
    if not _are_headers(value.get(_MCP_HEADERS)):
        message = f"{name}: {_MCP_HEADERS}: expected an object, {{server url: {{header: value}}}}"
        raise InvalidArgumentError(message, field=name)
    text = json.dumps(value, separators=(",", ":")) if value else ""
    if len(text) > MOST_PROVIDER_DATA:
        raise InvalidArgumentError(f"{name}: is larger than {MOST_PROVIDER_DATA} bytes", field=name)
    return text


def _are_headers(value: Any) -> bool:  # noqa: ANN401
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(headers, dict) and all(isinstance(one, str) for one in headers.values())
        for headers in value.values()
    )

"""Keys that callers bring for one request, in place of what the operator configured."""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from llamastack import v1
from services.runtime.calls import PROVIDER_DATA, current_provider_data
from stack_client.errors import InvalidArgumentError

API_KEYS = {
    "bing-search": "bing_search_api_key",
    "brave-search": "brave_search_api_key",
    "tavily-search": "tavily_search_api_key",
    "wolfram-alpha": "wolfram_alpha_api_key",
}
"""Member of the provider data by id of the provider whose key it is."""
MCP_HEADERS = "mcp_headers"
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_PORTS = {"http": 80, "https": 443}


def api_key(group: v1.ToolGroup) -> str:
    """The key that came with the current call for a group's provider; empty where there is none.

    Raises:
        InvalidArgumentError: It is no text, or the provider data are no JSON object.
    """
    name = API_KEYS.get(group.provider_id)
    value = None if name is None else _given().get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not _plain(value):
        raise _wrong(f"{name} must be a line of ASCII text")
    return value


def mcp_headers(group: v1.ToolGroup) -> Mapping[str, str]:
    """The headers, by lower-case name, that came with the current call for a group's MCP server; empty without any.

    A server is told by host, port and path: what else an address says, such as its query, is not looked at.

    Raises:
        InvalidArgumentError: They are no map of maps of texts, or the provider data are no JSON object.
    """
    uri = group.mcp_endpoint.uri
    if not uri:
        return {}
    given = _given().get(MCP_HEADERS)
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
        raise _wrong(f"{MCP_HEADERS} must be an object: {{server url: {{header: value}}}}")
    found: dict[str, str] = {}
    here = _place(uri)
    for server, headers in given.items():
        if here is not None and _place(server) == here:
            for name, value in headers.items():
                if not _NAME.fullmatch(name) or not isinstance(value, str) or not _plain(value):
                    raise _wrong(f"{MCP_HEADERS}: the header {name[:80]!r} cannot be sent; give a line of ASCII text")
                found[name.lower()] = value
    return found


def _plain(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _place(url: str) -> tuple[str, int | None, str] | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname:
        return None
    return parts.hostname, port or _PORTS[parts.scheme], parts.path.rstrip("/")


def _given() -> Mapping[str, Any]:
    data = current_provider_data()
    if not data:
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _wrong("must be a JSON object")
    return found


def _wrong(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"provider data ({PROVIDER_DATA}): {what}", field=PROVIDER_DATA)

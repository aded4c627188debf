"""Small public documents of an identity provider."""

import asyncio
import json
from http import HTTPStatus
from typing import Any

import httpx

from stack_client.errors import UnavailableError

TIMEOUT_SECONDS = 5.0
MAX_BYTES = 256 * 1024


async def fetch_json(url: str) -> dict[str, Any]:
    """A JSON object from an address; redirects are not followed, proxies of the environment not used.

    Raises:
        UnavailableError: If nothing usable comes in time.
    """
    client = await asyncio.to_thread(_client)  # reads the certificates of all authorities
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), client, client.stream("GET", url) as response:
            if response.status_code != HTTPStatus.OK:
                raise UnavailableError(f"{url} cannot be read: status {response.status_code}")
            body = await _body(response, url)
    except TimeoutError as error:
        raise UnavailableError(f"{url} does not answer within {TIMEOUT_SECONDS:g} seconds") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnavailableError(f"{url} cannot be read: {type(error).__name__}") from error
    return parse_json(body, url)


async def _body(response: httpx.Response, url: str) -> bytes:
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_BYTES:
            raise UnavailableError(f"{url} answers with more than {MAX_BYTES} bytes")
    return bytes(body)


def parse_json(body: bytes, source: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UnavailableError: If it is none; names the source.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnavailableError(f"{source} is no JSON") from error
    if not isinstance(value, dict):
        raise UnavailableError(f"{source} is no JSON object")
    return value


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False, headers=_HEADERS)


# A compressed answer could be a thousand times as large as it looks.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "llama-stack-mesh"}

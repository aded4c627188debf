"""The public keys of an identity provider (RFC 7517), read when they are needed and not much more often."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import jwt

from services.gateway.keys.config import JwtConfig
from services.gateway.keys.exposure import check_web_address
from services.gateway.keys.fetching import MAX_BYTES, fetch_json, parse_json
from stack_client.errors import UnavailableError

logger = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
"""Age from which keys are read again: a key that the provider withdrew is good for that long."""
KEPT_SECONDS = 3600.0
"""Age to which they are used while the provider does not answer."""
PAUSE_SECONDS = 10.0
"""Between two readings, whatever tokens say: forged ids of keys cannot make us read more often."""
_FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}

Load = Callable[[], Awaitable[Mapping[str, Any]]]
"""Reads a key set; raises UnavailableError."""


class KeySet:
    """Keys by id.

    Args:
        load: Reads them.
        clock: Seconds, never going back.
    """

    def __init__(self, load: Load, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._reading = asyncio.Lock()
        self._keys: list[Mapping[str, Any]] = []
        self._made: dict[tuple[str, str], jwt.PyJWK] = {}
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._problem = ""

    async def key(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        """The key that a token names.

        Args:
            kid: Its id; empty means the only one for the algorithm.
            algorithm: Of the token's signature, one that is taken.

        Returns:
            None when the provider has no such key, or had none up to `PAUSE_SECONDS` ago.

        Raises:
            UnavailableError: If the keys cannot be read.
        """
        found, reading = self._find(kid, algorithm), self._reading.locked()
        # While one caller reads, the others go on with what they know, and wait for what they do not.
        known = found is not None and (self._age() < FRESH_SECONDS or (reading and self._usable()))
        if known or (self._paused() and not reading):
            return self._answer(found)
        async with self._reading:
            if not self._paused():
                await self._read()
        return self._answer(self._find(kid, algorithm))

    def _answer(self, found: jwt.PyJWK | None) -> jwt.PyJWK | None:
        if not self._usable():
            raise UnavailableError(f"the identity provider's keys cannot be read now: {self._problem}", retry_after=10)
        return found

    def _find(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        if (kid, algorithm) in self._made:
            return self._made[kid, algorithm]
        fitting = [one for one in self._keys if _fits(one, kid, algorithm)]
        if len(fitting) != 1:
            return None
        try:
            made = jwt.PyJWK(dict(fitting[0]), algorithm=algorithm)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            logger.warning("a key of the identity provider is unusable", extra={"reason": type(error).__name__})
            return None
        self._made[kid, algorithm] = made
        return made

    async def _read(self) -> None:
        self._tried_at = self._clock()
        try:
            keys = _listed(await self._load())
        except UnavailableError as error:
            self._problem = error.message
            logger.warning("keys of the identity provider cannot be read", extra={"reason": error.message})
            return
        except asyncio.CancelledError:
            if not self._usable():  # whoever comes next must not wait for the pause to end
                self._tried_at = None
            raise
        self._keys = keys
        self._made = {}
        self._read_at = self._clock()

    def _paused(self) -> bool:
        return self._tried_at is not None and self._clock() - self._tried_at < PAUSE_SECONDS

    def _age(self) -> float:
        return float("inf") if self._read_at is None else self._clock() - self._read_at

    def _usable(self) -> bool:
        return self._age() < KEPT_SECONDS


def key_set(config: JwtConfig) -> KeySet:
    """The keys that the configuration names."""
    if config.jwks_file is not None:
        file = config.jwks_file
        return KeySet(lambda: asyncio.to_thread(_read_file, file))
    if config.jwks_url:
        return KeySet(lambda: fetch_json(config.jwks_url))
    return KeySet(lambda: _discover(config.issuer))


async def _discover(issuer: str) -> Mapping[str, Any]:
    """The keys of an issuer, by OpenID Connect Discovery 1.0, section 4."""
    place = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    document = await fetch_json(place)
    if document.get("issuer") != issuer:
        raise UnavailableError(
            f"{place} is of another issuer than {issuer!r}; write gateway.auth.jwt.issuer as it does"
        )
    address = document.get("jwks_uri")
    if not isinstance(address, str):
        raise UnavailableError(f"{place} has no `jwks_uri`")
    try:
        check_web_address(address, name="jwks_uri")
    except ValueError as error:
        raise UnavailableError(f"{place}: {error}") from error
    return await fetch_json(address)


def _read_file(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as opened:
            body = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnavailableError(f"{file} cannot be read: {error.strerror}") from error
    if len(body) > MAX_BYTES:
        raise UnavailableError(f"{file} has more than {MAX_BYTES} bytes")
    return parse_json(body, str(file))


def _listed(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    keys = document.get("keys")
    if not isinstance(keys, list):
        raise UnavailableError("the key set has no list `keys`")
    return [one for one in keys if isinstance(one, dict)]


def _fits(key: Mapping[str, Any], kid: str, algorithm: str) -> bool:
    """Whether a key is the one that a token names: for signatures, and of the algorithm."""
    return (
        (not kid or key.get("kid") == kid)
        and key.get("kty") == _FAMILIES[algorithm[:2]]
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
    )

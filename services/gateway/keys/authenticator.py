"""Who sends a request, by its `Authorization` header."""

import hmac
from collections.abc import Callable
from typing import Protocol

from services.gateway.keys.config import AuthConfig
from services.gateway.keys.form import START, parse
from services.gateway.keys.store import Keys
from services.gateway.principal import Principal
from services.runtime.config import ConfigError
from services.runtime.moments import now
from stack_client.errors import AuthenticationError

_NOBODYS = bytes(32)
_TOKEN_DOTS = 2
_GIVE = "send `Authorization: Bearer <key>`; `stack keys create` makes a key"


class Verifier(Protocol):
    """Verifies tokens."""

    async def verify(self, token: str) -> Principal:
        """The bearer of a token.

        Raises:
            AuthenticationError: If it is not valid.
            UnavailableError: If that cannot be known now.
        """


class Authenticator:
    """Tells callers by their keys and tokens.

    Args:
        keys: The store of keys.
        required: Whether every request needs one. Otherwise a text that has the form of neither is taken as none, for
            clients that must send something send anything.
        tokens: Verifies tokens; None takes none.
        clock: Microseconds since 1970.
    """

    def __init__(
        self, keys: Keys, *, required: bool = True, tokens: Verifier | None = None, clock: Callable[[], int] = now
    ) -> None:
        self._keys = keys
        self._required = required
        self._tokens = tokens
        self._clock = clock
        self._anybody = Principal()

    async def authenticate(self, authorization: str) -> Principal:
        """The bearer.

        Args:
            authorization: The header's value; empty when there is none.

        Raises:
            AuthenticationError: If it is missing, malformed, unknown, expired or revoked; never quotes it.
            UnavailableError: If a token cannot be verified now.
            StoreError: If the database failed.
        """
        scheme, _, text = authorization.strip().partition(" ")
        text = text.strip()
        bearer = scheme.lower() == "bearer"
        if bearer and text.startswith(START):
            return await self._by_key(text)
        if self._tokens is not None and bearer and (self._required or text.count(".") == _TOKEN_DOTS) and text:
            return await self._tokens.verify(text)
        if not self._required:
            return self._anybody
        if not authorization.strip():
            raise AuthenticationError(f"no API key was sent; {_GIVE}")
        if not bearer or not text:
            raise AuthenticationError(f"the Authorization header is malformed; {_GIVE}")
        raise AuthenticationError(f"what follows `Bearer` is no API key of this stack (`{START}...`); {_GIVE}")

    async def _by_key(self, text: str) -> Principal:
        secret = parse(text)
        if secret is None:
            raise AuthenticationError(
                "the API key is malformed: was it cut off? It is `lsk_`, 16 digits, `_`, 64 digits"
            )
        found = await self._keys.find(secret.key_id)
        # The same work whether there is a key of this id or not.
        same = hmac.compare_digest(found.digest if found else _NOBODYS, secret.digest)
        if found is None or not same:
            raise AuthenticationError("the API key is unknown; `stack keys create` makes one")
        if found.revoked_at is not None:
            raise AuthenticationError("the API key was revoked; ask for another one")
        if found.expires_at is not None and found.expires_at <= self._clock():
            raise AuthenticationError("the API key has expired; ask for another one")
        self._keys.touch(secret.key_id)
        return found.principal


def make_authenticator(config: AuthConfig, *, keys: Keys, required: bool) -> Authenticator:
    """The authenticator that the configuration asks for.

    Args:
        config: What the operator said.
        keys: The store of keys.
        required: As `keys_required` decided.

    Raises:
        ConfigError: If the file with the keys of tokens is missing.
    """
    if config.jwt is None:
        return Authenticator(keys, required=required)
    if config.jwt.jwks_file is not None and not config.jwt.jwks_file.is_file():
        raise ConfigError(
            f"gateway.auth.jwt.jwks_file: {config.jwt.jwks_file} is no file; save the issuer's keys there"
        )
    from services.gateway.keys.tokens import Tokens  # noqa: PLC0415 (cryptography, only where tokens are configured)

    return Authenticator(keys, required=required, tokens=Tokens(config.jwt))

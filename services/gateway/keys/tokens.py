"""Tokens of an identity provider."""

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jwt

from services.gateway.keys.cache import Cache
from services.gateway.keys.config import JwtConfig
from services.gateway.keys.jwks import KeySet, key_set
from services.gateway.principal import SCOPES, Principal
from services.runtime.names import check_tenant
from stack_client.errors import AuthenticationError, InvalidArgumentError

MAX_CHARACTERS = 16 * 1024
MAX_SUBJECT = 256
CACHE_SECONDS = 10.0
"""For which a verified token is not verified again: a signature costs a fifth of a millisecond."""
CACHED = 10_000
_REASONS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "it has expired; get a new one",
    jwt.ImmatureSignatureError: "it is not valid yet; are the clocks right?",
    jwt.InvalidIssuedAtError: "it was issued in the future; are the clocks right?",
    jwt.InvalidAudienceError: "it was made for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAlgorithmError: "its signature is of a kind that is not taken",
}


class Tokens:
    """Verifies tokens.

    Args:
        config: What they must be.
        keys: Of the provider; None takes those that the configuration names.
        clock: Seconds, never going back.
    """

    def __init__(
        self, config: JwtConfig, *, keys: KeySet | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._keys = keys or key_set(config)
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})
        self._verified: Cache[tuple[float, Principal]] = Cache(seconds=CACHE_SECONDS, most=CACHED, clock=clock)

    async def verify(self, token: str) -> Principal:
        """The bearer of a token.

        Raises:
            AuthenticationError: If it is not valid; says why, and nothing of what is in it.
            UnavailableError: If the provider's keys cannot be read.
        """
        if len(token) > MAX_CHARACTERS:
            raise AuthenticationError(f"the token has more than {MAX_CHARACTERS} characters")
        digest = hashlib.sha256(token.encode(errors="replace")).hexdigest()
        expires_at, principal = self._verified.get(digest) or (0.0, Principal())
        if time.time() < expires_at:
            return principal
        kid, algorithm = self._header(token)
        key = await self._keys.key(kid, algorithm)
        if key is None:
            raise AuthenticationError("the token was signed with a key that its issuer does not have (any more)")
        claims = self._claims(token, key)
        principal = self._principal(claims)
        self._verified.put(digest, (int(claims["exp"]) + self._config.leeway_seconds, principal))
        return principal

    def _header(self, token: str) -> tuple[str, str]:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise AuthenticationError(
                "what follows `Bearer` is neither an API key (`lsk_...`) nor a token (JWT)"
            ) from error
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._config.algorithms:
            taken = ", ".join(self._config.algorithms)
            raise AuthenticationError(f"the token's signature is of a kind that is not taken; taken: {taken}")
        return header.get("kid") or "", algorithm

    def _claims(self, token: str, key: jwt.PyJWK) -> Mapping[str, Any]:
        config = self._config
        try:
            claims: Mapping[str, Any] = self._jwt.decode(
                token,
                key,
                algorithms=list(config.algorithms),
                audience=config.audience,
                issuer=config.issuer,
                leeway=config.leeway_seconds,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.MissingRequiredClaimError as error:
            raise AuthenticationError(f"the token has no `{error.claim}`") from error
        except (jwt.PyJWTError, ValueError, RecursionError, OverflowError) as error:
            reason = _REASONS.get(type(error), "it is damaged")
            raise AuthenticationError(f"the token is not valid: {reason}") from error
        return claims

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        config, subject = self._config, str(claims["sub"])
        if not subject or len(subject) > MAX_SUBJECT:
            raise AuthenticationError(f"the token's `sub` is empty or has more than {MAX_SUBJECT} characters")
        return Principal(
            key_id=f"{config.issuer}#{subject}",
            tenant=self._tenant(claims),
            scopes=self._scopes(claims),
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
        )

    def _tenant(self, claims: Mapping[str, Any]) -> str:
        name = self._config.tenant_claim
        if not name:
            return ""
        tenant = _claim(claims, name)
        if not isinstance(tenant, str):
            raise AuthenticationError(f"the token has no `{name}`, which names the tenant; ask who issues them")
        try:
            check_tenant(tenant, field=name)
        except InvalidArgumentError as error:
            raise AuthenticationError(f"the token's {error.message}") from error
        return tenant

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[str]:
        given = _claim(claims, self._config.scopes_claim)
        values = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        texts = [value for value in values if isinstance(value, str)]
        if self._config.scope_map:
            return frozenset(scope for text in texts for scope in self._config.scope_map.get(text, ()))
        return frozenset(texts) & frozenset(SCOPES)


def _claim(claims: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 (JSON)
    """A claim by its name, which may have dots itself, as those of companies do; else by its path."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found

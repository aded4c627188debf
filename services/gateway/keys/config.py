"""Configuration of who may use the gateway."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from services.gateway.keys.exposure import check_web_address
from services.gateway.principal import SCOPES

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures with a public key. With a shared secret (HS*) or none, whoever can verify a token can forge one."""
MAX_LEEWAY = 300.0


@dataclass(frozen=True, kw_only=True)
class JwtConfig:
    """Tokens (RFC 7519) of an identity provider."""

    issuer: str
    """`iss` of the tokens, to the letter; also where the keys are found (OpenID Connect Discovery) when neither
    `jwks_url` nor `jwks_file` is given."""
    audience: str | tuple[str, ...]
    """`aud` of the tokens; of several, one must be there."""
    jwks_url: str = ""
    """Where the provider's public keys are (RFC 7517); https, or http on this machine."""
    jwks_file: Path | None = None
    """The same as a file."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    """Signatures that are taken, of `ALGORITHMS`."""
    tenant_claim: str = ""
    """Claim that names the tenant, `a.b` for one inside another; a token without it is refused. Empty: tokens are of
    no tenant."""
    scopes_claim: str = "scope"
    """Claim with what the bearer may do: a text with spaces or a list; `a.b` for one inside another."""
    scope_map: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Our scopes by the value of that claim. Without a map, values that are our scopes are taken; others say nothing
    to us."""
    leeway_seconds: float = 30.0
    """By how much clocks may differ, 0 to 300."""
    requests_per_minute: int | None = None
    """Requests that each subject may make in a minute; unset means no limit."""
    tokens_per_minute: int | None = None
    """Tokens of prompts and answers that each subject may use in a minute; unset means no limit."""

    def __post_init__(self) -> None:
        """Refuse what would let others in."""
        self._check_names()
        if self.jwks_url and self.jwks_file:
            raise ValueError("jwks_file: give it or jwks_url, not both")
        if not self.jwks_file:
            name, address = ("jwks_url", self.jwks_url) if self.jwks_url else ("issuer", self.issuer)
            check_web_address(address, name=name)
        for value, scopes in self.scope_map.items():
            unknown = [scope for scope in scopes if scope not in SCOPES]
            if unknown:
                raise ValueError(f"scope_map.{value}: no scope {unknown[0]!r}; there are: {', '.join(SCOPES)}")
        if not 0 <= self.leeway_seconds <= MAX_LEEWAY:
            raise ValueError(f"leeway_seconds: {self.leeway_seconds:g}; give 0 to {MAX_LEEWAY:g}")
        for name in ("requests_per_minute", "tokens_per_minute"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name}: {limit}; give at least 1, or leave it out for no limit")

    def _check_names(self) -> None:
        if not self.issuer:
            raise ValueError("issuer: is empty; give the `iss` of the tokens")
        if not self.audience or not all(self.audience):
            raise ValueError("audience: is empty; tokens made for other services would be taken")
        unknown = [name for name in self.algorithms if name not in ALGORITHMS]
        if unknown or not self.algorithms:
            found = repr(unknown[0]) if unknown else "nothing"
            raise ValueError(f"algorithms: {found} is not taken; give some of {', '.join(ALGORITHMS)}")
        if not self.scopes_claim:
            raise ValueError("scopes_claim: is empty; name the claim with what the bearer may do")


@dataclass(frozen=True, kw_only=True)
class AuthConfig:
    """Who may use the gateway."""

    required: bool | Literal["auto"] = "auto"
    """Whether every request needs a key or a token. "auto": when the gateway can be reached from other machines, when
    tokens are configured, or when there is a key at the start. Where none is needed, API keys that are shown all the
    same must be good, and say for whom the work is done."""
    allow_open: bool = False
    """Permit to be reached from other machines without keys: everybody may do everything."""
    jwt: JwtConfig | None = None
    """Tokens that are taken beside API keys; unset takes none."""
    cache_seconds: float = 3.0
    """For how long a key is remembered after it was looked up: how long a revocation takes on other replicas."""
    cached_keys: int = 10_000
    """Keys remembered at most."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if not 0 <= self.cache_seconds <= 60:
            raise ValueError(f"cache_seconds: {self.cache_seconds:g}; give 0 to 60")
        if self.cached_keys < 1:
            raise ValueError(f"cached_keys: {self.cached_keys}; give at least 1")

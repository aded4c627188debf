"""Who asks: what an API key or a token says of its bearer."""

from dataclasses import dataclass, field

SCOPES = ("read", "inference", "agents", "memory", "tools", "safety", "files", "batches", "telemetry.read", "admin")
"""What a key may be allowed. `read` lists and shows; `admin` registers and removes models, shields and groups of tools
and implies all others."""


@dataclass(frozen=True, kw_only=True)
class Principal:
    """The bearer of a request."""

    key_id: str = ""
    """Public id of the API key, or `iss#sub` of a token; empty where no key is needed."""
    tenant: str = ""
    """For whom the work is done; empty is nobody in particular."""
    scopes: frozenset[str] = field(default_factory=lambda: frozenset({"admin"}))
    """What the bearer may do, of `SCOPES`."""
    requests_per_minute: int | None = None
    """Most requests in a minute; None is no limit."""
    tokens_per_minute: int | None = None
    """Most tokens of prompts and answers in a minute; None is no limit."""

    def may(self, scope: str) -> bool:
        """Whether the bearer has a scope."""
        return scope in self.scopes or "admin" in self.scopes

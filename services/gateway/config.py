"""Configuration of the gateway, section `gateway` of the stack's file."""

from dataclasses import dataclass, field
from pathlib import Path

from services.gateway.batches import BatchesConfig
from services.gateway.keys import AuthConfig


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """How the gateway listens and what it bounds."""

    http_host: str = "127.0.0.1"
    """Address that the HTTP port is opened on; others than those of this machine need keys, or `auth.allow_open`."""
    http_port: int | None = None
    """TCP port for HTTP; 0 takes a free one; unset is 8321, or a free one where that is taken."""
    auth: AuthConfig = field(default_factory=AuthConfig)
    """Who may come in."""
    batches: BatchesConfig = field(default_factory=BatchesConfig)
    """How batches run."""
    database: str = ""
    """URL of the store of keys and batches, `postgresql://user@host/name`; empty means that of the environment
    (STACK_GATEWAY_DATABASE), else an SQLite file in the service's folder."""
    database_password_file: Path | None = None
    """File with the password of that user."""
    redis: str = ""
    """URL of a Redis in which replicas count rates together; empty means that of the environment
    (STACK_GATEWAY_REDIS), else each counts by itself."""
    redis_password_file: Path | None = None
    """File with its password."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call, `https://app.example.com`, or `*`; empty answers no preflight."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Largest JSON body, counted after it is unpacked; larger ones are refused with 413."""
    max_upload_bytes: int = 512 * 1024 * 1024
    """Largest uploaded file."""
    max_requests: int = 1024
    """Requests handled at once; more are refused with 503."""
    read_seconds: float = 30.0
    """Time that a client has for its headers, and for each further piece of its body."""
    write_seconds: float = 60.0
    """Time that a client has to take a piece of an answer; slower ones are cut off and their work is cancelled."""
    heartbeat_seconds: float = 15.0
    """Silence in a stream after which a comment line is sent."""
    call_seconds: float = 600.0
    """Longest call of a service that does not stream."""

    def __post_init__(self) -> None:
        """Refuse bounds with which nothing could run."""
        for name in ("max_body_bytes", "max_upload_bytes", "max_requests", "read_seconds", "write_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give more than 0")
        if self.http_port is not None and not 0 <= self.http_port <= 65_535:
            raise ValueError(f"http_port: {self.http_port} is no TCP port; give 0 to 65535")

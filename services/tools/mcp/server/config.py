"""Settings of the MCP server."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class McpServerConfig:
    """Where the server listens, and its bounds."""

    port: int = 0
    """TCP port; 0 = a free one."""
    host: str = "127.0.0.1"
    """Address on which it listens."""
    hosts: tuple[str, ...] = ()
    """`Host` headers that are taken beside those of this machine, `name:*` for any port."""
    origins: tuple[str, ...] = ()
    """`Origin` headers of browsers that are taken beside those of `hosts`."""
    session_seconds: float = 1800.0
    """After which an old-style session without requests is closed."""
    max_sessions: int = 1000
    """Old-style sessions at once."""
    max_request_bytes: int = 4 << 20
    """Size of one request."""

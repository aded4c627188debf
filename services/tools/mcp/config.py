"""Settings of the MCP client, `tools.providers.model-context-protocol`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StdioServer:
    """A program that speaks MCP over its standard input and output; the operator trusts it as any other program."""

    command: str
    """The program."""
    args: tuple[str, ...] = ()
    """Its arguments."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables; it inherits only HOME, LOGNAME, PATH, SHELL, TERM and USER."""
    cwd: Path | None = None
    """Folder in which it runs; unset = that of the service."""
    secret_env: tuple[str, ...] = ()
    """Keys of a group's secret that become environment variables; other keys are refused."""


@dataclass(frozen=True, kw_only=True)
class McpConfig:
    """What the operator sets of the MCP client."""

    stdio: Mapping[str, StdioServer] = field(default_factory=dict)
    """Programs that groups may name as `stdio:<name>`."""
    trust_annotations: tuple[str, ...] = ()
    """Hosts, and `stdio:<name>`, whose claims about their tools (read only, idempotent) are believed."""
    idle_seconds: float = 300.0
    """After which a connection without calls is closed."""
    open_seconds: float = 30.0
    """For opening a connection and agreeing on a revision."""
    request_seconds: float = 30.0
    """For one request that runs no tool, such as a list."""
    list_seconds: float = 60.0
    """How long a list of tools is kept when the server neither says how long nor tells of changes."""
    hold_seconds: float = 600.0
    """How long a call in an old-style session waits for a person's answer before it is answered with `cancel`."""
    max_answer_bytes: int = 16 << 20
    """Of one answer of a server behind HTTP; a longer one ends the request."""
    max_connections: int = 256
    """Open at once; beyond it calls to further servers are refused."""

    def __post_init__(self) -> None:
        for name in ("idle_seconds", "open_seconds", "request_seconds", "list_seconds", "hold_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0")
        for name in ("max_connections", "max_answer_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1")

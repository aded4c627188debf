"""Configuration of the tools service, section `tools` of the stack's file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llamastack import v1

MAX_SECONDS = 3600.0
"""Longest run of one call that a group may allow."""


@dataclass(frozen=True, kw_only=True)
class SettingsConfig:
    """Bounds and permissions of a group, as `ToolGroupSettings`."""

    effect: Literal["", "read", "idempotent_write", "write"] = ""
    """Effect of tools that have none of their own; empty means write."""
    approval: Literal["", "never", "always", "writes"] = ""
    """When a person must allow a call; empty means never."""
    timeout_seconds: float | None = None
    """Longest run of one call; unset means `tools.timeout_seconds`."""
    max_concurrency: int | None = None
    """Calls that run at once; unset means `tools.max_concurrency`."""
    egress_hosts: tuple[str, ...] = ()
    """Hosts that the tools may reach, `*.` allowed in front."""
    secrets_ref: str = ""
    """Name in `tools.secrets`."""

    def message(self) -> v1.ToolGroupSettings:
        """The same as callers see it."""
        return v1.ToolGroupSettings(
            effect=v1.ToolEffect.Value(f"TOOL_EFFECT_{self.effect.upper() or 'UNSPECIFIED'}"),
            approval=v1.ToolApproval.Value(f"TOOL_APPROVAL_{self.approval.upper() or 'UNSPECIFIED'}"),
            timeout_seconds=self.timeout_seconds,
            max_concurrency=self.max_concurrency,
            egress_hosts=self.egress_hosts,
            secrets_ref=self.secrets_ref,
        )


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """A group that is there for every tenant."""

    identifier: str
    """Its name."""
    provider_id: str
    """The provider that serves it."""
    mcp_endpoint: str = ""
    """Address of the MCP server, for that provider."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """The provider's settings for the group, and arguments merged over the model's."""
    settings: SettingsConfig = field(default_factory=SettingsConfig)
    """Bounds and permissions."""
    description: str = ""
    """What it is for."""


@dataclass(frozen=True, kw_only=True)
class SecretSource:
    """Where one value of a secret is read, with each call, so that it can be changed while the service runs."""

    env: str = ""
    """An environment variable."""
    file: Path | None = None
    """A file; space at its end is no part of the value."""

    def __post_init__(self) -> None:
        """Refuse none and both."""
        if bool(self.env) == bool(self.file):
            raise ValueError("env: give either env or file")


@dataclass(frozen=True, kw_only=True)
class SecretConfig:
    """A secret that groups may name in `secrets_ref`."""

    values: Mapping[str, SecretSource]
    """Where its values are, by the key under which the provider looks for them."""
    hosts: tuple[str, ...] = ()
    """Hosts that groups with this secret may reach, whatever they say; empty means all that the group may."""
    tenants: tuple[str, ...] = ()
    """Tenants whose registered groups may name it, `*` for all; groups of this file always may."""

    def __post_init__(self) -> None:
        """A tenant could have an unbound secret sent to a host of its own."""
        if self.tenants and not self.hosts:
            raise ValueError("hosts: a secret that tenants may use must say to which hosts it may go")


@dataclass(frozen=True, kw_only=True)
class ToolsConfig:
    """Store, groups, secrets and bounds of the tools service."""

    database: str = ""
    """URL of the store, `sqlite:////file` or `postgresql://user@host/name`; empty means that of the environment
    variable `STACK_TOOLS_DATABASE`, which may hold a password, else a SQLite file in the data folder."""
    database_password_file: Path | None = None
    """File that holds the password of the database; unset means the one named by `STACK_TOOLS_PASSWORD_FILE`, else what
    the URL says."""
    toolgroups: tuple[GroupConfig, ...] = ()
    """Groups that are there for every tenant; one with the name of a built-in group takes its place."""
    builtin_groups: bool = True
    """Whether the built-in groups are there."""
    providers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of providers, by provider id."""
    secrets: Mapping[str, SecretConfig] = field(default_factory=dict)
    """Secrets by the name that groups give in `secrets_ref`."""
    egress_allow: tuple[str, ...] = ()
    """Hosts and networks that tools of all groups may reach although they are not public, such as `searx.internal` or
    `10.1.0.0/16`; a group's own list of hosts still applies."""
    timeout_seconds: float = 60.0
    """Longest run of one call, where the group does not say."""
    max_concurrency: int = 8
    """Calls of a group that run at once, where the group does not say."""
    max_waiting: int = 64
    """Calls of a group that wait for others to end; more are refused."""
    max_argument_bytes: int = 1 << 20
    """Size of a call's arguments as JSON."""
    max_output_bytes: int = 64 * 1024
    """Size of a result's text; of longer ones head and tail are sent and the whole is kept."""
    output_days: int = 7
    """Days that whole outputs are kept, 1 to 30."""
    listing_seconds: float = 60.0
    """For how long the list of a group's tools is taken for what the provider offers."""
    audit_days: int = 365
    """Days that the record of calls is kept; 0 means for ever."""
    lease_seconds: float = 15.0
    """Without a sign of life for so long a process counts as dead and its calls as lost; matters on PostgreSQL."""

    def __post_init__(self) -> None:
        """Refuse bounds with which nothing could run."""
        for name in ("max_concurrency", "max_argument_bytes", "lease_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} is too small; give more than 0")
        if not 0 < self.timeout_seconds <= MAX_SECONDS:
            raise ValueError(f"timeout_seconds: {self.timeout_seconds:g} is out of range; give up to {MAX_SECONDS:g}")
        if self.max_output_bytes < 1024:
            raise ValueError(f"max_output_bytes: {self.max_output_bytes} is too small; give at least 1024")
        if not 1 <= self.output_days <= 30:
            raise ValueError(f"output_days: {self.output_days} is out of range; give 1 to 30")

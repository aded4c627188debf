"""The groups of tools: those of the configuration, for every tenant, and those that a tenant registered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from llamastack import v1
from services.runtime.config import ConfigError
from services.runtime.database import Database
from services.runtime.moments import now
from services.runtime.names import check_printable
from services.tools.config import MAX_SECONDS, GroupConfig, ToolsConfig
from services.tools.hosts import check_hosts
from services.tools.secrets import Secrets
from services.tools.tables import groups
from stack_client.content import struct
from stack_client.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    StackError,
)

MCP = "model-context-protocol"
MAX_NAME = 256
MAX_ARGS_BYTES = 4 << 20
MAX_CONCURRENCY = 1024


@dataclass(frozen=True, kw_only=True)
class Found:
    """A group."""

    group: v1.ToolGroup
    """With defaults filled in."""
    owner: str | None
    """The tenant who registered it; None means the configuration."""


class Groups:
    """Reads and writes groups.

    Args:
        database: Where registered ones are.
        config: Names groups for every tenant, and the defaults.
        builtin: Provider by identifier of the groups that are there anyway.
        providers: Ids that groups may name.
        secrets: Says who may name which.

    Raises:
        ConfigError: If a configured group cannot be.
    """

    def __init__(
        self,
        database: Database,
        config: ToolsConfig,
        *,
        builtin: Mapping[str, str],
        providers: Sequence[str],
        secrets: Secrets,
    ) -> None:
        self._database = database
        self._config = config
        self._providers = tuple(providers)
        self._secrets = secrets
        self._replaceable = set(builtin) - {one.identifier for one in config.toolgroups}
        chosen = builtin if config.builtin_groups else {}
        given = {name: GroupConfig(identifier=name, provider_id=provider) for name, provider in chosen.items()}
        self.configured: dict[str, v1.ToolGroup] = {}
        """Groups of every tenant, without defaults."""
        for index, one in enumerate((*given.values(), *config.toolgroups)):
            group = _configured(one)
            try:
                self.check(group, tenant=None)
            except StackError as error:
                place = f"tools.toolgroups[{index - len(given)}]"
                raise ConfigError(f"{place} ({one.identifier}): {error.message}") from error
            self.configured[one.identifier] = group

    async def all(self, tenant: str) -> list[Found]:
        """The groups of a tenant by identifier."""
        async with self._database.read() as connection:
            found = await connection.execute(sa.select(groups.c.message).where(groups.c.tenant == tenant))
            own = [v1.ToolGroup.FromString(row.message) for row in found]
        byname = {name: Found(group=self._filled(group), owner=None) for name, group in self.configured.items()}
        byname |= {group.identifier: Found(group=self._filled(group), owner=tenant) for group in own}
        return [byname[name] for name in sorted(byname)]

    async def get(self, identifier: str, *, tenant: str, field: str = "toolgroup_id") -> Found:
        """One group.

        Raises:
            NotFoundError: If there is none of that name; names those that there are.
        """
        if not identifier:
            raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
        own = await self._own(identifier, tenant=tenant)
        if own is not None:
            return Found(group=self._filled(own), owner=tenant)
        if identifier in self.configured:
            return Found(group=self._filled(self.configured[identifier]), owner=None)
        known = ", ".join(found.group.identifier for found in await self.all(tenant)) or "none"
        raise NotFoundError(f"no tool group {identifier[:MAX_NAME]!r}; there are: {known}", field=field)

    async def registered(self, group: v1.ToolGroup, *, tenant: str) -> Found | None:
        """The group of that name when it has the same content; None when the name is free.

        Raises:
            AlreadyExistsError: If it has other content.
        """
        own, owner = await self._own(group.identifier, tenant=tenant), tenant
        there = own
        if own is None:
            there = self.configured.get(group.identifier)
            if there is not None and there != group and group.identifier in self._replaceable:
                return None  # a tenant may have its own group in place of a built-in one
        if there is None:
            return None
        if there != group:
            message = (
                f"there is a tool group {group.identifier!r} with other content; unregister it, or take another name"
            )
            raise AlreadyExistsError(message)
        return Found(group=self._filled(there), owner=owner if own is not None else None)

    async def add(self, group: v1.ToolGroup, tools: Sequence[v1.ToolDef], *, tenant: str) -> Found:
        """Store a group.

        Raises:
            AlreadyExistsError: If another one was registered under its name meanwhile.
        """
        values = {
            "tenant": tenant, "identifier": group.identifier, "message": group.SerializeToString(),
            "tools": v1.ListRuntimeToolsResponse(data=tools).SerializeToString(), "created_at": now(),
        }  # fmt: skip
        async with self._database.write() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            await connection.execute(insert(groups).values(**values).on_conflict_do_nothing())
        return await self.registered(group, tenant=tenant) or Found(group=self._filled(group), owner=tenant)

    async def remove(self, identifier: str, *, tenant: str) -> v1.ToolGroup:
        """Forget a group.

        Raises:
            NotFoundError: If there is none of that name.
            PermissionDeniedError: If it is of the configuration.
        """
        found = await self.get(identifier, tenant=tenant)
        if found.owner is None:
            message = (
                f"{identifier!r} is a tool group of the configuration; the operator removes it from tools.toolgroups"
            )
            raise PermissionDeniedError(message)
        async with self._database.write() as connection:
            mine = sa.and_(groups.c.tenant == tenant, groups.c.identifier == identifier)
            await connection.execute(sa.delete(groups).where(mine))
        return found.group

    async def listing(self, identifier: str, *, tenant: str) -> list[v1.ToolDef] | None:
        """The tools of a registered group when they were last listed; None without such a group."""
        async with self._database.read() as connection:
            mine = sa.and_(groups.c.tenant == tenant, groups.c.identifier == identifier)
            found = (await connection.execute(sa.select(groups.c.tools).where(mine))).scalar_one_or_none()
        return None if found is None else list(v1.ListRuntimeToolsResponse.FromString(found).data)

    async def keep_listing(self, identifier: str, tools: Sequence[v1.ToolDef], *, tenant: str) -> None:
        """Remember the tools of a registered group."""
        listed = v1.ListRuntimeToolsResponse(data=tools).SerializeToString()
        async with self._database.write() as connection:
            mine = sa.and_(groups.c.tenant == tenant, groups.c.identifier == identifier, groups.c.tools != listed)
            await connection.execute(sa.update(groups).where(mine).values(tools=listed))

    def draft(self, group: v1.ToolGroup, *, tenant: str) -> Found:
        """A group that is about to be stored, with defaults."""
        return Found(group=self._filled(group), owner=tenant)

    def check(self, group: v1.ToolGroup, *, tenant: str | None) -> None:
        """Refuse a group that cannot be.

        Raises:
            InvalidArgumentError: Naming the field.
        """
        _check_identifier(group.identifier)
        if group.provider_id not in self._providers:
            known = ", ".join(self._providers)
            message = f"provider_id: no provider {group.provider_id[:MAX_NAME]!r}; there are: {known}"
            raise InvalidArgumentError(message, field="provider_id")
        if bool(group.mcp_endpoint.uri) != (group.provider_id == MCP):
            wrong = "is for the provider" if group.mcp_endpoint.uri else "is required for the provider"
            reason = "INVALID_VALUE" if group.mcp_endpoint.uri else "MISSING_FIELD"
            raise InvalidArgumentError(f"mcp_endpoint {wrong} {MCP}", reason=reason, field="mcp_endpoint")
        if group.args.ByteSize() > MAX_ARGS_BYTES:
            raise InvalidArgumentError(f"args has over {MAX_ARGS_BYTES} bytes", field="args")
        check_settings(group.settings)
        self._secrets.check(group, tenant=tenant)
        hosts = self._secrets.hosts(group)
        if group.mcp_endpoint.uri and hosts and (urlsplit(group.mcp_endpoint.uri).hostname or "") not in hosts:
            message = f"mcp_endpoint: the secret {group.settings.secrets_ref!r} may go to {', '.join(hosts)} alone"
            raise InvalidArgumentError(message, field="mcp_endpoint")

    async def _own(self, identifier: str, *, tenant: str) -> v1.ToolGroup | None:
        async with self._database.read() as connection:
            mine = sa.and_(groups.c.tenant == tenant, groups.c.identifier == identifier)
            found = (await connection.execute(sa.select(groups.c.message).where(mine))).scalar_one_or_none()
        return None if found is None else v1.ToolGroup.FromString(found)

    def _filled(self, group: v1.ToolGroup) -> v1.ToolGroup:
        full = v1.ToolGroup()
        full.CopyFrom(group)
        settings = full.settings
        settings.effect = settings.effect or v1.TOOL_EFFECT_WRITE
        settings.approval = settings.approval or v1.TOOL_APPROVAL_NEVER
        if not settings.HasField("timeout_seconds"):
            settings.timeout_seconds = self._config.timeout_seconds
        if not settings.HasField("max_concurrency"):
            settings.max_concurrency = self._config.max_concurrency
        return full


def group_of(request: v1.RegisterToolGroupRequest) -> v1.ToolGroup:
    """A request as the group that it asks for, without defaults."""
    group = v1.ToolGroup(
        identifier=request.toolgroup_id,
        provider_resource_id=request.toolgroup_id,
        provider_id=request.provider_id,
        type=v1.RESOURCE_TYPE_TOOL_GROUP,
        description=request.description,
        settings=request.settings,
    )
    if request.HasField("mcp_endpoint"):
        group.mcp_endpoint.CopyFrom(request.mcp_endpoint)
    if request.HasField("args"):
        group.args.CopyFrom(request.args)
    return group


def check_settings(settings: v1.ToolGroupSettings) -> None:
    """Refuse bounds out of range.

    Raises:
        InvalidArgumentError: Naming the field.
    """
    if settings.HasField("timeout_seconds") and not 0 < settings.timeout_seconds <= MAX_SECONDS:
        field = "settings.timeout_seconds"
        message = f"{field} is {settings.timeout_seconds:g}; give more than 0 and at most {MAX_SECONDS:g}"
        raise InvalidArgumentError(message, field=field)
    if settings.HasField("max_concurrency") and not 1 <= settings.max_concurrency <= MAX_CONCURRENCY:
        field = "settings.max_concurrency"
        raise InvalidArgumentError(f"{field} is {settings.max_concurrency}; give 1 to {MAX_CONCURRENCY}", field=field)
    for name, kind in (("effect", v1.ToolEffect), ("approval", v1.ToolApproval)):
        if getattr(settings, name) not in kind.values():
            field = f"settings.{name}"
            raise InvalidArgumentError(f"{field} is {getattr(settings, name)}, which is not known", field=field)
    check_hosts(settings.egress_hosts, field="settings.egress_hosts")


def _check_identifier(identifier: str) -> None:
    field = "toolgroup_id"
    if not identifier:
        raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
    check_printable(identifier, most=MAX_NAME, field=field)
    if "/" in identifier or identifier != identifier.strip():
        message = f"{field} {identifier!r} has a slash, or space around it; tools are addressed as group/tool"
        raise InvalidArgumentError(message, field=field)


def _configured(config: GroupConfig) -> v1.ToolGroup:
    request = v1.RegisterToolGroupRequest(
        toolgroup_id=config.identifier,
        provider_id=config.provider_id,
        mcp_endpoint=v1.URL(uri=config.mcp_endpoint) if config.mcp_endpoint else None,
        args=struct(config.args) if config.args else None,
        settings=config.settings.message(),
        description=config.description,
    )
    return group_of(request)

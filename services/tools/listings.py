"""The tools of groups: asked of the provider now and then, not with every call."""

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from llamastack import v1
from services.runtime.together import together
from services.tools.groups import Found, Groups
from services.tools.provider import Access, ToolProvider
from services.tools.provider_data import mcp_headers
from services.tools.secrets import Secrets
from stack_client.content import plain, struct
from stack_client.errors import InvalidArgumentError, NotFoundError, StackError

logger = logging.getLogger(__name__)

KEPT = 4096
"""Listings in memory."""
TYPES = ("string", "integer", "number", "boolean", "array", "object")

Tools = Mapping[str, v1.ToolDef]
"""Tools of a group by name."""


class Listings:
    """Lists and finds tools.

    Args:
        groups: Those that there are.
        providers: By id.
        secrets: Of the groups.
        seconds: For how long a list is taken for what the provider offers.
    """

    def __init__(
        self, groups: Groups, providers: Mapping[str, ToolProvider], secrets: Secrets, *, seconds: float
    ) -> None:
        self._groups = groups
        self._providers = providers
        self._secrets = secrets
        self._seconds = seconds
        self._kept: OrderedDict[bytes, tuple[float, Tools]] = OrderedDict()
        self._listing: dict[bytes, asyncio.Lock] = {}

    async def tools(self, found: Found, *, tenant: str, authorization: str = "", fresh: bool = False) -> Tools:
        """The tools of a group.

        Args:
            found: The group.
            tenant: Who asks.
            authorization: Of the caller, for the tool's server.
            fresh: Ask the provider even when a list is at hand.

        Raises:
            UnavailableError: If the tool's server does not answer, and a fresh list is wanted or there is no older one.
        """
        brought = mcp_headers(found.group)
        key = _key(found, tenant=tenant, credential=_credential(authorization, brought))
        kept = self._kept.get(key)
        if kept is not None and not fresh and time.monotonic() - kept[0] < self._seconds:
            self._kept.move_to_end(key)
            return kept[1]
        lock = self._listing.setdefault(key, asyncio.Lock())
        try:
            async with lock:  # of many that want a list at once one asks for it
                again = self._kept.get(key)
                if again is not None and again is not kept:
                    return again[1]
                return await self._ask(found, key, tenant=tenant, authorization=authorization, fresh=fresh)
        finally:
            if not lock.locked():
                self._listing.pop(key, None)

    async def _ask(self, found: Found, key: bytes, *, tenant: str, authorization: str, fresh: bool) -> Tools:
        access = await self._secrets.access(found.group, tenant=tenant, authorization=authorization)
        try:
            listed = await self._providers[found.group.provider_id].list_tools(found.group, access)
        except StackError as error:
            registered = found.owner is not None and not fresh and not access.authorization and not access.headers
            stored = await self._groups.listing(found.group.identifier, tenant=tenant) if registered else None
            if stored is None:
                raise
            logger.warning("tools cannot be listed, the last list is used", extra={"reason": error.reason})
            return self._keep(key, {tool.name: tool for tool in stored})
        tools = normalised(listed, found.group)
        if found.owner is not None and not access.authorization and not access.headers:
            await self._groups.keep_listing(found.group.identifier, list(tools.values()), tenant=tenant)
        return self._keep(key, tools)

    async def of_group(self, found: Found, access: Access) -> list[v1.ToolDef]:
        """The tools of a group that is not registered."""
        listed = await self._providers[found.group.provider_id].list_tools(found.group, access)
        return list(normalised(listed, found.group).values())

    async def of_tenant(self, *, tenant: str, authorization: str = "", fresh: bool = False) -> list[v1.ToolDef]:
        """The tools of all groups; those whose server does not answer are left out, which the log says."""

        async def of(found: Found) -> list[v1.ToolDef]:
            try:
                return list((await self.tools(found, tenant=tenant, authorization=authorization, fresh=fresh)).values())
            except StackError as error:
                extra = {"group": found.group.identifier, "reason": error.reason}
                logger.warning("tools of a group cannot be listed", extra=extra)
                return []

        listed = await together(of(found) for found in await self._groups.all(tenant))
        return [tool for tools in listed for tool in tools]

    async def find(self, name: str, *, tenant: str, authorization: str = "") -> tuple[Found, v1.ToolDef]:
        """A tool by `group/tool`, or by its bare name when one group has it.

        Raises:
            NotFoundError: If there is none; names those that there are.
            InvalidArgumentError: If a bare name fits tools of several groups.
            UnavailableError: If the tool's server does not answer.
        """
        if not name:
            raise InvalidArgumentError("tool_name is empty", reason="MISSING_FIELD", field="tool_name")
        group_name, slash, tool_name = name.partition("/")
        if not slash:
            return await self._find_bare(name, tenant=tenant, authorization=authorization)
        found = await self._groups.get(group_name, tenant=tenant, field="tool_name")
        tools = await self.tools(found, tenant=tenant, authorization=authorization)
        if tool_name not in tools:
            tools = await self.tools(found, tenant=tenant, authorization=authorization, fresh=True)
        if tool_name not in tools:
            known = ", ".join(tools) or "none"
            raise NotFoundError(f"no tool {tool_name!r} in {group_name!r}; its tools are: {known}", field="tool_name")
        return found, tools[tool_name]

    async def _find_bare(self, name: str, *, tenant: str, authorization: str) -> tuple[Found, v1.ToolDef]:
        tools = await self.of_tenant(tenant=tenant, authorization=authorization)
        fits = [tool for tool in tools if tool.name == name]
        if not fits:
            known = ", ".join(f"{tool.toolgroup_id}/{tool.name}" for tool in tools[:50]) or "none"
            raise NotFoundError(f"no tool {name[:256]!r}; the tools are: {known}", field="tool_name")
        if len(fits) > 1:
            which = " or ".join(f"{tool.toolgroup_id}/{tool.name}" for tool in fits)
            raise InvalidArgumentError(f"several groups have a tool {name!r}; give {which}", field="tool_name")
        return await self._groups.get(fits[0].toolgroup_id, tenant=tenant), fits[0]

    def forget(self, found: Found, *, tenant: str) -> None:
        """The group is gone."""
        self._kept.pop(_key(found, tenant=tenant, credential=""), None)

    def _keep(self, key: bytes, tools: Tools) -> Tools:
        self._kept[key] = (time.monotonic(), tools)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return tools


def normalised(listed: Sequence[v1.ToolDef], group: v1.ToolGroup) -> Tools:
    """Tools with what their group says of them; of two with one name the first."""
    tools: dict[str, v1.ToolDef] = {}
    for one in listed:
        if not one.name or one.name in tools:
            logger.warning("a tool has no name or that of another, and is left out", extra={"group": group.identifier})
            continue
        tool = v1.ToolDef()
        tool.CopyFrom(one)
        tool.toolgroup_id = group.identifier
        tool.effect = tool.effect or group.settings.effect
        tool.approval = group.settings.approval or tool.approval
        if not tool.HasField("timeout_seconds") or tool.timeout_seconds > group.settings.timeout_seconds:
            tool.timeout_seconds = group.settings.timeout_seconds
        schema = schema_of(tool)
        tool.input_schema.CopyFrom(struct(schema) or tool.input_schema)
        if not tool.parameters:
            tool.parameters.extend(parameters_of(schema))
        tools[tool.name] = tool
    return tools


def schema_of(tool: v1.ToolDef) -> dict[str, Any]:
    """The JSON Schema of a tool's arguments, from its parameters where it has none."""
    if tool.HasField("input_schema"):
        schema: dict[str, Any] = plain(json_format.MessageToDict(tool.input_schema))
        return {"type": "object", "properties": {}, **schema}
    properties, required = {}, []
    for parameter in tool.parameters:
        inner: dict[str, Any] = {"type": parameter.parameter_type} if parameter.parameter_type in TYPES else {}
        inner |= {"description": parameter.description} if parameter.description else {}
        if parameter.HasField("default"):
            inner["default"] = plain(json_format.MessageToDict(parameter.default))
        properties[parameter.name] = inner
        if not parameter.HasField("required") or parameter.required:
            required.append(parameter.name)
    schema = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


def parameters_of(schema: Mapping[str, Any]) -> list[v1.ToolParameter]:
    """A schema in the classic form, as far as that can say it."""
    parameters = []
    properties = schema.get("properties")
    required = list(schema.get("required", ()))
    properties = properties if isinstance(properties, dict) else {}
    # A Struct keeps no order; that of `required` is the author's.
    for name in [*(name for name in required if name in properties), *sorted(set(properties) - set(required))]:
        inner = properties[name]
        inner = inner if isinstance(inner, dict) else {}  # a schema may be `true`
        kind = inner.get("type", "")
        parameter = v1.ToolParameter(
            name=name,
            parameter_type=kind if isinstance(kind, str) else next((one for one in kind if one != "null"), ""),
            description=str(inner.get("description", "")),
            required=name in required,
        )
        if "default" in inner:
            json_format.Parse(json.dumps(inner["default"]), parameter.default)
        parameters.append(parameter)
    return parameters


def shown(tool: v1.ToolDef, group: v1.ToolGroup) -> v1.ToolDef:
    """A tool as models see it: without the arguments that its group gives."""
    given = set(group.args.fields)
    schema = plain(json_format.MessageToDict(tool.input_schema))
    properties = schema.get("properties", {})
    if not given & set(properties):
        return tool
    schema["properties"] = {name: inner for name, inner in properties.items() if name not in given}
    required = [name for name in schema.get("required", ()) if name not in given]
    schema = {**schema, "required": required} if required else {k: v for k, v in schema.items() if k != "required"}
    seen = v1.ToolDef()
    seen.CopyFrom(tool)
    seen.input_schema.CopyFrom(struct(schema) or seen.input_schema)
    del seen.parameters[:]
    seen.parameters.extend(one for one in tool.parameters if one.name not in given)
    return seen


def _credential(authorization: str, brought: Mapping[str, str]) -> str:
    """What the caller shows to the tool's server; lists that were made with it are shown to nobody else."""
    return json.dumps([authorization, sorted(brought.items())]) if brought else authorization


def _key(found: Found, *, tenant: str, credential: str) -> bytes:
    digest = hashlib.sha256(found.group.SerializeToString(deterministic=True))
    # What a configured group offers does not depend on the tenant, but a provider may keep connections apart.
    for part in (tenant, credential):
        digest.update(b"\0" + part.encode())
    return digest.digest()

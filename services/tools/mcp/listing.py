"""A server's tools as the mesh lists them, and its resources and prompts as tools of the group."""

from __future__ import annotations

from collections.abc import Iterable

import mcp_types as types

from llamastack import v1
from stack_client.content import struct

METHOD = "mcp_method"
"""Key of a tool's metadata that says which request of the protocol a call becomes."""
CALL = "tools/call"
_STRICT = v1.TOOL_EFFECT_WRITE
_TEXT = {"type": "string"}

# Capability, name, method, description, properties and which of them are required.
_EXTRAS: tuple[tuple[str, str, str, str, dict[str, object], list[str]], ...] = (
    ("resources", "list_resources", "resources/list", "Lists the resources of {server} with their URIs.", {}, []),
    (
        "resources",
        "read_resource",
        "resources/read",
        "Reads a resource of {server}; list_resources tells the URIs.",
        {"uri": {**_TEXT, "description": "URI of the resource"}},
        ["uri"],
    ),
    ("prompts", "list_prompts", "prompts/list", "Lists the prompts of {server} with their arguments.", {}, []),
    (
        "prompts",
        "get_prompt",
        "prompts/get",
        "Fills in a prompt of {server}; list_prompts tells the names.",
        {
            "name": {**_TEXT, "description": "Name of the prompt"},
            "arguments": {"type": "object", "additionalProperties": _TEXT, "description": "Its arguments"},
        },
        ["name"],
    ),
)


def claimed_effect(annotations: types.ToolAnnotations | None) -> v1.ToolEffect.ValueType:
    """What the server says that a call changes; unspecified when it says nothing."""
    if annotations is None:
        return v1.TOOL_EFFECT_UNSPECIFIED
    if annotations.read_only_hint:
        return v1.TOOL_EFFECT_READ
    if annotations.idempotent_hint:
        return v1.TOOL_EFFECT_IDEMPOTENT_WRITE
    if annotations.read_only_hint is False or annotations.destructive_hint or annotations.idempotent_hint is False:
        return v1.TOOL_EFFECT_WRITE
    return v1.TOOL_EFFECT_UNSPECIFIED


def effect(
    configured: v1.ToolEffect.ValueType, annotations: types.ToolAnnotations | None, *, trusted: bool
) -> v1.ToolEffect.ValueType:
    """What a call changes: as configured, or stricter if the server says so; a trusted server is believed.

    Args:
        configured: Of the group; unspecified = WRITE.
        annotations: The server's claims.
        trusted: Whether the operator trusts them.
    """
    base = configured or _STRICT
    claim = claimed_effect(annotations)
    if trusted and claim:
        return claim
    return max(base, claim)


def tool_defs(
    tools: Iterable[types.Tool],
    capabilities: types.ServerCapabilities,
    group: v1.ToolGroup,
    *,
    server: str,
    trusted: bool,
) -> list[v1.ToolDef]:
    """What a group offers: the server's tools, and tools that read its resources and prompts where it has any."""
    found = [
        v1.ToolDef(
            name=tool.name,
            description=tool.description or tool.title or "",
            toolgroup_id=group.identifier or None,
            input_schema=struct(tool.input_schema),
            output_schema=struct(tool.output_schema) if tool.output_schema else None,
            effect=effect(group.settings.effect, tool.annotations, trusted=trusted),
            metadata=struct({"endpoint": server, METHOD: CALL}),
        )
        for tool in tools
    ]
    names = {tool.name for tool in found}
    for capability, wanted, method, description, properties, required in _EXTRAS:
        if getattr(capabilities, capability) is None:
            continue
        name = wanted
        while name in names:
            name = f"mcp_{name}"
        names.add(name)
        found.append(
            v1.ToolDef(
                name=name,
                description=description.format(server=server),
                toolgroup_id=group.identifier or None,
                input_schema=struct({"type": "object", "properties": properties, "required": required}),
                effect=v1.TOOL_EFFECT_READ,
                metadata=struct({"endpoint": server, METHOD: method}),
            )
        )
    return found

"""Names of tools where all groups are served together."""

import hashlib
import re
from collections.abc import Sequence

from llamastack import v1

LONGEST = 64
"""Characters that all clients and models take."""
_OTHER = re.compile(r"[^A-Za-z0-9_-]+")
_HASH = 8


def joint_names(tools: Sequence[v1.ToolDef]) -> dict[str, v1.ToolDef]:
    """Tools by `<group>__<tool>` in letters, digits, `_` and `-`.

    A name says nothing of other groups, so that it stays when groups come and go; where it had to be cut, or two would
    be the same, a hash of the full name is at its end.
    """
    plain = [_plain(tool) for tool in tools]
    named = {}
    for tool, name in zip(tools, plain, strict=True):
        unique = name if len(name) <= LONGEST and plain.count(name) == 1 else _hashed(name, tool)
        named[unique] = tool
    return named


def full_name(tool: v1.ToolDef) -> str:
    """`group/tool`, as the tools service calls it."""
    return f"{tool.toolgroup_id}/{tool.name}"


def _plain(tool: v1.ToolDef) -> str:
    return f"{_OTHER.sub('_', tool.toolgroup_id)}__{_OTHER.sub('_', tool.name)}"


def _hashed(name: str, tool: v1.ToolDef) -> str:
    digest = hashlib.sha256(full_name(tool).encode()).hexdigest()[:_HASH]
    return f"{name[: LONGEST - _HASH - 1]}-{digest}"

"""What `Agent(...)` was given, as the agents service takes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamastack import v1
from stack_client import content
from stack_client.knowledge import Memory
from stack_client.tools import FunctionTool


def memories(given: str | Path | Memory | Sequence[str | Path | Memory]) -> list[Memory]:
    """What an agent remembers; a single one may stand alone."""
    several = [given] if isinstance(given, str | Path | Memory) else given
    return [one if isinstance(one, Memory) else Memory(one) for one in several]


def retrieval(memory: Sequence[Memory]) -> list[v1.AgentToolGroup]:
    """The tool group that searches memory before each answer."""
    if not memory:
        return []
    args = {"vector_db_ids": [one.bank for one in memory], "query_config": {"mode": "hybrid"}}
    return [v1.AgentToolGroup(name="builtin::rag", args=content.struct(args))]


def function_rules(functions: dict[str, FunctionTool]) -> list[v1.ApprovalRule]:
    """What `@tool(approval=...)` demands, behind what the agent says of a tool."""
    return [
        v1.ApprovalRule(tool=name, approval=tool.approval)
        for name, tool in functions.items()
        if tool.approval not in {v1.TOOL_APPROVAL_UNSPECIFIED, v1.TOOL_APPROVAL_NEVER}
    ]


def response_format(output_type: Any) -> v1.ResponseFormat | None:  # noqa: ANN401 (any type)
    """The JSON Schema of a type; None for None."""
    if output_type is None:
        return None
    from pydantic import TypeAdapter  # noqa: PLC0415 (slow to import)

    schema = TypeAdapter(output_type).json_schema()
    return v1.ResponseFormat(json_schema=content.struct(_closed(schema)))


def _closed(schema: Any) -> Any:  # noqa: ANN401 (JSON)
    """A schema whose objects have no members but the declared ones: a model would go on inventing some."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def names(shields: Sequence[str]) -> Sequence[str]:
    """Names of shields; a single one may be a plain string."""
    return [shields] if isinstance(shields, str) else shields

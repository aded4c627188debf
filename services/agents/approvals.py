"""Which calls a person must allow: the agent's rules, and what the operator demands of a tool."""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from referencing import Registry

from llamastack import v1
from services.agents.offered import Offered, group_of
from stack_client.content import plain
from stack_client.errors import InvalidArgumentError


def needs_approval(call: v1.ToolCall, tool: Offered, config: v1.AgentConfig) -> tuple[bool, float | None]:
    """Whether a person must allow a call, and for how many seconds that is waited for (None: without end).

    What the operator demands of a tool cannot be waived by an agent's rule.
    """
    rule = next((rule for rule in config.approvals if _names(rule, tool) and _fits(rule, call)), None)
    expires = rule.expires_seconds if rule is not None and rule.HasField("expires_seconds") else None
    if _demands(tool.definition.approval, tool):
        return True, expires
    return (rule is not None and _demands(rule.approval, tool)), expires


def check_rules(config: v1.AgentConfig, *, field: str) -> None:
    """Refuse rules that cannot be applied.

    Raises:
        InvalidArgumentError: If a rule lacks its tool or approval, or its schema is none.
    """
    for index, rule in enumerate(config.approvals):
        where = f"{field}[{index}]"
        if not rule.tool:
            message = f"{where}.tool is empty; name a tool, a group, or * for all"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field=f"{where}.tool")
        if not rule.approval:
            message = f"{where}.approval is not set; say never, always or writes"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field=f"{where}.approval")
        if rule.HasField("expires_seconds") and rule.expires_seconds <= 0:
            message = f"{where}.expires_seconds is {rule.expires_seconds:g}; give more than 0, or leave it unset"
            raise InvalidArgumentError(message, field=f"{where}.expires_seconds")
        if rule.HasField("arguments_schema"):
            _check_schema(_schema(rule.arguments_schema), field=f"{where}.arguments_schema")


def arguments_of(call: v1.ToolCall) -> Any:  # noqa: ANN401 (JSON)
    """The arguments of a call; what is no JSON is returned as the text that it is."""
    if not call.arguments_json:
        return _schema(call.arguments)
    try:
        return json.loads(call.arguments_json)
    except ValueError:
        return call.arguments_json


def _check_schema(schema: Any, *, field: str) -> None:  # noqa: ANN401 (JSON)
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InvalidArgumentError(f"{field} is no JSON Schema: {error.message}", field=field) from error
    foreign = next((ref for ref in _references(schema) if not ref.startswith("#")), None)
    if foreign is not None:
        raise InvalidArgumentError(
            f"{field}: {foreign!r} is elsewhere; write it into $defs and refer to that", field=field
        )


def _references(schema: Any) -> Iterator[str]:  # noqa: ANN401 (JSON)
    if isinstance(schema, dict):
        yield from (str(schema[key]) for key in ("$ref", "$dynamicRef") if key in schema)
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _demands(approval: "v1.ToolApproval.ValueType", tool: Offered) -> bool:
    if approval == v1.TOOL_APPROVAL_WRITES:
        return tool.effect != v1.TOOL_EFFECT_READ
    return approval == v1.TOOL_APPROVAL_ALWAYS


def _names(rule: v1.ApprovalRule, tool: Offered) -> bool:
    return rule.tool in {"*", tool.name, tool.tool, group_of(tool.tool)}


def _fits(rule: v1.ApprovalRule, call: v1.ToolCall) -> bool:
    if not rule.HasField("arguments_schema"):
        return True
    validator = _validator(rule.arguments_schema.SerializeToString(deterministic=True))
    return bool(validator.is_valid(arguments_of(call)))


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any:  # noqa: ANN401 (jsonschema has no type for it)
    # A registry of its own: nothing is fetched.
    return jsonschema.Draft202012Validator(_schema(Struct.FromString(schema)), registry=Registry())


def _schema(struct: Struct) -> Any:  # noqa: ANN401 (JSON)
    return plain(json_format.MessageToDict(struct))

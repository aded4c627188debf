"""The arguments of a call: read exactly, merged, made to fit where nothing is lost, and checked."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from jsonschema.exceptions import ValidationError
from referencing.exceptions import Unresolvable

from llamastack import v1
from services.tools.faults import Fault, FaultError
from stack_client.content import plain

Json = dict[str, Any]
MAX_FAULTS = 5
"""Faults told at once."""
MAX_DIGITS = 100
ROUNDS = 3
"""Passes of making arguments fit: a value may be a JSON text that holds another one."""
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def read_arguments(request: v1.InvokeToolRequest) -> Json:
    """The model's arguments.

    Raises:
        FaultError: If they are no JSON object.
    """
    if not request.kwargs_json:
        return from_struct(request.kwargs, name="kwargs")
    try:
        read = json.loads(request.kwargs_json, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        message = f"The arguments are no valid JSON: {error or 'nested too deeply'}. Send one JSON object."
        raise FaultError(Fault.INVALID_ARGUMENTS, message, schema_path=[""]) from None
    if not isinstance(read, dict):
        raise FaultError(Fault.INVALID_ARGUMENTS, "The arguments must be one JSON object.", schema_path=[""])
    return read


def from_struct(values: Struct, *, name: str) -> Json:
    """A Struct as JSON, in which whole numbers are integers again.

    Raises:
        FaultError: If it holds NaN or infinity, which JSON has not.
    """
    try:
        read: Json = plain(json_format.MessageToDict(values))
    except json_format.Error as error:
        raise FaultError(Fault.INVALID_ARGUMENTS, f"{name}: {error}", schema_path=[""]) from None
    return read


def digest(tool_name: str, arguments: Mapping[str, Any], args: Mapping[str, Any]) -> str:
    """What two calls share that are the same: tool, model's arguments, caller's arguments."""
    canonical = json.dumps([tool_name, arguments, args], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()


def fixed(schema: Mapping[str, Any], given: Mapping[str, Any]) -> Json:
    """Of the arguments of a group those that a tool has; the others are the provider's settings."""
    properties = schema.get("properties")
    return {name: value for name, value in given.items() if isinstance(properties, dict) and name in properties}


def fitted(arguments: Json, validator: Any) -> Json:  # noqa: ANN401 (jsonschema makes the class)
    """Arguments that fit the schema; values are changed only where that loses nothing.

    Raises:
        FaultError: If they do not; says where and why, so that a model can repair its call.
    """
    try:
        faults = list(validator.iter_errors(arguments))
        tried = arguments
        for _ in range(ROUNDS):
            if not faults:
                return tried
            changed = _changed(tried, faults)
            if changed is None:
                break
            tried = changed
            faults = list(validator.iter_errors(tried))
        if not faults:
            return tried
    except (RecursionError, Unresolvable):
        raise FaultError(Fault.INVALID_ARGUMENTS, "The tool's schema cannot be used: it refers to itself.") from None
    faults.sort(key=lambda fault: (len(fault.absolute_path), list(map(str, fault.absolute_path))))
    lines = [f"{_pointer(fault) or 'arguments'}: {_said(fault)}" for fault in faults[:MAX_FAULTS]]
    more = f" (and {len(faults) - MAX_FAULTS} more)" if len(faults) > MAX_FAULTS else ""
    message = f"The arguments do not fit the tool's schema. {'; '.join(lines)}{more}. Repair them and call again."
    paths = list(dict.fromkeys(_pointer(fault) for fault in faults[:MAX_FAULTS]))
    raise FaultError(Fault.INVALID_ARGUMENTS, message, schema_path=paths)


def _changed(arguments: Json, faults: Sequence[ValidationError]) -> Json | None:
    """A copy in which values of a wrong type are replaced by the same of the right type; None when there are none."""
    changes: dict[tuple[Any, ...], Any] = {}
    for fault in _type_faults(faults):
        wanted: Any = fault.validator_value
        for kind in [wanted] if isinstance(wanted, str) else wanted:
            found, value = _as(kind, fault.instance)
            if found and fault.absolute_path:
                changes.setdefault(tuple(fault.absolute_path), value)
    if not changes:
        return None
    copy: Json = json.loads(json.dumps(arguments))
    for path, value in changes.items():
        inner: Any = copy
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
    return copy


def _type_faults(faults: Sequence[ValidationError]) -> Iterator[ValidationError]:
    for fault in faults:
        if fault.validator == "type":
            yield fault
        yield from _type_faults(fault.context or ())


def _as(kind: str, value: Any) -> tuple[bool, Any]:  # noqa: ANN401, PLR0911 (JSON; one exit per kind)
    """Whether a value says the same in another type, and that."""
    if isinstance(value, bool | int | float) and kind == "string":
        return True, json.dumps(value)
    if not isinstance(value, str):
        return False, None
    match kind:
        case "integer":
            return (True, int(value)) if len(value) <= MAX_DIGITS and _INTEGER.fullmatch(value) else (False, None)
        case "number":
            return _number(value)
        case "boolean":
            return value.lower() in {"true", "false"}, value.lower() == "true"
        case "null":
            return value == "null", None
        case "array" | "object":
            return _json_text(value, list if kind == "array" else dict)
    return False, None


def _number(text: str) -> tuple[bool, int | float | None]:
    if len(text) > MAX_DIGITS or not _NUMBER.fullmatch(text):
        return False, None
    if _INTEGER.fullmatch(text):
        return True, int(text)
    number = float(text)
    digits = re.sub(r"[eE].*", "", text).replace(".", "").strip("-0")
    return math.isfinite(number) and len(digits) <= 15, number  # doubles keep 15 decimal digits


def _json_text(text: str, kind: type) -> tuple[bool, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError):
        return False, None
    return isinstance(value, kind), value


def _said(fault: ValidationError) -> str:
    if fault.validator == "required":
        return "is missing"
    return fault.message if len(fault.message) <= 300 else f"{fault.message[:200]} ... {fault.message[-90:]}"


def _pointer(fault: ValidationError) -> str:
    """Where in the arguments, as JSON pointer (RFC 6901); of what is missing, where it should be."""
    steps = [str(step) for step in fault.absolute_path]
    if fault.validator == "required" and isinstance(fault.instance, dict):
        required: Any = fault.validator_value
        lacking = [name for name in required if name not in fault.instance and repr(name) in fault.message]
        steps += lacking[:1]
    return "".join(f"/{step.replace('~', '~0').replace('/', '~1')}" for step in steps)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _no_twins(pairs: Sequence[tuple[str, Any]]) -> Json:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return dict(pairs)

"""Single values between JSON and messages: numbers, times, bytes, free JSON; and the errors for wrong ones."""

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from google.protobuf import struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from stack_client.errors import InvalidArgumentError

Json = Any
Encode = Callable[[Any], Json]
Descriptor: TypeAlias = Any
"""A message's descriptor; the stubs have two types for it."""
Field: TypeAlias = Any
"""A field's descriptor, whose parts the stubs call optional."""

MAX_DEPTH = 64
"""Nested values in a request; deeper ones are refused before they exhaust the stack."""
INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
FLOATS = {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE}
_LARGEST_FLOAT = 3.4028234663852886e38


def wrong(path: str, expected: str, value: Json) -> InvalidArgumentError:
    """The error for a value of another type."""
    where = path or "the body"
    return InvalidArgumentError(f"{where}: expected {expected}, found {shown(value)}", field=path)


def shown(value: Json) -> str:
    """A value in an error: short, and no whole documents."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    written = f'"{value}"' if isinstance(value, str) else str(value)
    return written if len(written) <= 80 else f"{written[:77]}..."


def text(value: str, *, path: str) -> str:
    """A string that protobuf can carry.

    Raises:
        InvalidArgumentError: It has half a surrogate pair.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"{path}: the text has half a surrogate pair; send valid Unicode", field=path
        ) from None
    return value


def read_float(value: Json, path: str, *, single: bool) -> float:
    """A number that a 64-bit float holds, or with `single` a 32-bit one.

    Raises:
        InvalidArgumentError: It is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(path, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (single and abs(number) > _LARGEST_FLOAT):
        raise InvalidArgumentError(f"{path}: {shown(value)} is out of range", field=path)
    return number


def read_integer(value: Json, path: str, least: int, most: int) -> int:
    """A whole number within bounds.

    Raises:
        InvalidArgumentError: It is none, or out of range.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(path, "a whole number", value)
    if not least <= value <= most:
        raise InvalidArgumentError(f"{path}: {shown(value)} is out of range; give {least} to {most}", field=path)
    return value


def read_bytes(value: Json, *, path: str) -> bytes:
    """What a base64 string holds.

    Raises:
        InvalidArgumentError: It is no base64.
    """
    if not isinstance(value, str):
        raise wrong(path, "a base64 string", value)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgumentError(f"{path}: no valid base64", field=path) from None


def set_struct(message: struct_pb2.Struct, value: Mapping[str, Json], *, path: str, depth: int = 0) -> None:
    """Write a JSON object into a Struct.

    Raises:
        InvalidArgumentError: It is nested too deep, or holds text that is no Unicode.
    """
    fields = message.fields
    for key, item in value.items():
        set_value(fields[text(key, path=path)], item, path=path, depth=depth + 1)


def set_value(message: struct_pb2.Value, value: Json, *, path: str, depth: int = 0) -> None:
    """Write a JSON value into a Value.

    Raises:
        InvalidArgumentError: As `set_struct` does.
    """
    if depth > MAX_DEPTH:
        raise InvalidArgumentError(f"{path}: nested more than {MAX_DEPTH} deep", field=path)
    if value is None:
        message.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int | float):
        message.number_value = read_float(value, path, single=False)
    elif isinstance(value, str):
        message.string_value = text(value, path=path)
    elif isinstance(value, dict):
        message.struct_value.SetInParent()
        set_struct(message.struct_value, value, path=path, depth=depth)
    else:
        message.list_value.SetInParent()
        for item in value:
            set_value(message.list_value.values.add(), item, path=path, depth=depth + 1)


def struct_json(message: struct_pb2.Struct) -> dict[str, Json]:
    """A Struct as a JSON object; whole numbers are integers again."""
    return {key: value_json(item) for key, item in message.fields.items()}


def value_json(message: struct_pb2.Value) -> Json:
    """A Value as JSON."""
    kind = message.WhichOneof("kind")
    if kind == "string_value":
        return message.string_value
    if kind == "number_value":
        number = message.number_value
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if kind == "bool_value":
        return message.bool_value
    if kind == "struct_value":
        return struct_json(message.struct_value)
    if kind == "list_value":
        return [value_json(item) for item in message.list_value.values]
    return None


def _list_json(message: struct_pb2.ListValue) -> list[Json]:
    return [value_json(item) for item in message.values]


STRUCTS: dict[str, Encode] = {
    "google.protobuf.Struct": struct_json,
    "google.protobuf.Value": value_json,
    "google.protobuf.ListValue": _list_json,
}


def short_float(value: float) -> float:
    """A 32-bit float as the shortest decimal that reads back as the same: 0.7 and not 0.699999988079071."""
    return float(f"{value:.7g}")


def unix(moment: Timestamp) -> int:
    """A time as whole seconds since 1970."""
    return int(moment.seconds)


def rfc3339(moment: Timestamp) -> str:
    """A time as text, in UTC."""
    whole = datetime.fromtimestamp(moment.seconds, tz=UTC).replace(microsecond=moment.nanos // 1000)
    return whole.isoformat()


def read_time(message: Timestamp, value: Json, path: str) -> None:
    """Read a time: RFC 3339, or seconds since 1970.

    Raises:
        InvalidArgumentError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong(path, "a time", value)
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            message.FromDatetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        else:
            message.FromNanoseconds(int(value * 1_000_000_000))
    except (ValueError, OverflowError):
        message_text = f"{path}: {shown(value)} is no time; give RFC 3339 or seconds since 1970"
        raise InvalidArgumentError(message_text, field=path) from None


def is_map(one: Field) -> bool:
    """Whether a field is a map."""
    return one.message_type is not None and one.message_type.GetOptions().map_entry

"""Between messages and JSON values, by descriptor; every message type is compiled once, at its first use.

Why not `google.protobuf.json_format`: it prints 64-bit integers as strings and enums with their prefix, drops or prints
every zero, knows one form of a time, has no hook for unions without a tag, and is several times as slow.
"""

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

from google.protobuf import struct_pb2
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from services.gateway.jsonmap.shapes import Shapes, Union
from stack_client.errors import InvalidArgumentError

MessageT = TypeVar("MessageT", bound=Message)
Json = Any
Encode = Callable[[Any], Json]
Descriptor: TypeAlias = Any
"""A message's descriptor; the stubs have two types for it."""
Field: TypeAlias = Any
"""A field's descriptor, whose parts the stubs call optional."""

_MAX_DEPTH = 64
"""Nested values in a request; deeper ones are refused before they exhaust the stack."""
_INTEGERS = {
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
_FLOATS = {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE}
_LARGEST_FLOAT = 3.4028234663852886e38


@dataclass(kw_only=True)
class Reading:
    """What is noted while a request is read."""

    strict: bool = True
    """Refuse keys that no field has; otherwise they are noted in `ignored`."""
    ignored: list[str] = field(default_factory=list)
    """Paths of keys that no field has."""


class Codec:
    """Reads and writes JSON values.

    Args:
        shapes: Where the JSON differs from the message.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self._encoders: dict[str, Encode] = {}
        self._decoders: dict[str, _Decoder] = {}

    def encode(self, message: Message) -> Json:
        """The message as JSON."""
        return self.encoder(message.DESCRIPTOR)(message)

    def encoder(self, descriptor: Descriptor) -> Encode:
        """What writes messages of a type."""
        found = self._encoders.get(descriptor.full_name)
        if found is None:
            found = self._encoders[descriptor.full_name] = self._make_encoder(descriptor)
        return found

    def decode(self, kind: type[MessageT], value: Json, *, path: str = "", reading: Reading | None = None) -> MessageT:
        """The message that a JSON value describes.

        Args:
            kind: Class of the message.
            value: Parsed JSON.
            path: Where the value stands in the request, for errors.
            reading: Says what to do with unknown keys; none refuses them.

        Raises:
            InvalidArgumentError: The value has another shape; `field` is the path of what is wrong.
        """
        message = kind()
        self.merge(message, value, path=path, reading=reading or Reading())
        return message

    def merge(self, message: Message, value: Json, *, path: str, reading: Reading) -> None:
        """Read a JSON value into a message.

        Raises:
            InvalidArgumentError: As `decode` does.
        """
        if path.count(".") + path.count("[") > _MAX_DEPTH:
            raise InvalidArgumentError(f"{path}: nested more than {_MAX_DEPTH} deep", field=path)
        name = message.DESCRIPTOR.full_name
        adapter = self.shapes.adapters.get(name)
        if adapter is not None:
            adapter.decode(self, message, value, path, reading)
            return
        self.merge_fields(message, value, path=path, reading=reading)

    def decode_into(self, message: Message, value: Json, *, path: str) -> None:
        """Read a JSON value into a message, refusing unknown keys.

        Raises:
            InvalidArgumentError: As `decode` does.
        """
        self.merge(message, value, path=path, reading=Reading())

    def write_struct(self, message: struct_pb2.Struct, value: Mapping[str, Json], *, path: str) -> None:
        """Write a JSON object into a Struct, which is set even when the object is empty.

        Raises:
            InvalidArgumentError: It is nested too deep, or holds text that is no Unicode.
        """
        message.SetInParent()
        set_struct(message, value, path=path)

    def merge_fields(self, message: Message, value: Json, *, path: str, reading: Reading) -> None:
        """Read an object's members into a message's fields, past the adapter of its type.

        Raises:
            InvalidArgumentError: As `decode` does.
        """
        if not isinstance(value, dict):
            raise wrong(path, "an object", value)
        descriptor = message.DESCRIPTOR
        decoder = self._decoders.get(descriptor.full_name)
        if decoder is None:
            decoder = self._decoders[descriptor.full_name] = _Decoder(self, descriptor)
        decoder.read(message, value, path, reading)

    def encode_fields(self, message: Message) -> dict[str, Json]:
        """The message's fields as an object, past the adapter of its type."""
        return dict(self._fields_encoder(message.DESCRIPTOR)(message))

    def enum_name(self, descriptor: EnumDescriptor, number: int) -> str | None:
        """The JSON name of an enum's value; None for the one that stands for unset."""
        return self._enum(descriptor)[0].get(number)

    def enum_number(self, descriptor: EnumDescriptor, value: Json, *, path: str) -> int:
        """The number of an enum's JSON name.

        Raises:
            InvalidArgumentError: It is none of the names.
        """
        names = self._enum(descriptor)[1]
        number = names.get(value) if isinstance(value, str) else None
        if number is None:
            raise InvalidArgumentError(f"{path}: {shown(value)} is none of {', '.join(names)}", field=path)
        return number

    def _enum(self, descriptor: EnumDescriptor) -> tuple[dict[int, str], dict[str, int]]:
        cache: dict[str, tuple[dict[int, str], dict[str, int]]] = self.__dict__.setdefault("_enums", {})
        found = cache.get(descriptor.full_name)
        if found is None:
            prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
            special = self.shapes.enums.get(descriptor.name, {})
            names = {
                value.number: special.get(value.name.removeprefix(prefix), value.name.removeprefix(prefix).lower())
                for value in descriptor.values
                if value.number
            }
            read = {name: number for number, name in names.items()}
            for alias, target in self.shapes.enum_aliases.get(descriptor.name, {}).items():
                read[alias] = read[target]
            found = cache[descriptor.full_name] = (names, read)
        return found

    # Writing

    def _make_encoder(self, descriptor: Descriptor) -> Encode:
        adapter = self.shapes.adapters.get(descriptor.full_name)
        if adapter is not None:
            encode = adapter.encode
            return lambda message: encode(self, message)
        return self._fields_encoder(descriptor)

    def _fields_encoder(self, descriptor: Descriptor) -> Encode:
        key = f"{descriptor.full_name}#fields"
        if key not in self._encoders:
            steps: list[Callable[[Any, dict[str, Json]], None]] = []
            # Known before its members are: messages may hold messages of their own type.
            self._encoders[key] = lambda message: _run(steps, message)
            constants = self.shapes.constants.get(descriptor.name, {})
            if constants:
                steps.append(lambda _message, into: into.update(constants))
            unions = self.shapes.unions.get(descriptor.name, {})
            for one in descriptor.fields:
                oneof = one.containing_oneof
                if oneof is not None and oneof.name in unions:
                    if oneof.fields[0].name == one.name:
                        steps.append(self._union_step(oneof, unions[oneof.name]))
                elif f"{descriptor.name}.{one.name}" not in self.shapes.hidden:
                    steps.append(self._step(descriptor, one))
        return self._encoders[key]

    def _union_step(self, oneof: Any, union: Union) -> Callable[[Any, dict[str, Json]], None]:  # noqa: ANN401
        writers = {}
        for one in oneof.fields:
            inline = one.message_type is not None and one.name not in union.nested
            writers[one.name] = (union.tag_of(one.name), inline, union.key_of(one.name), self._value_encoder(one))
        name, tag_key, under = oneof.name, union.key, union.under

        def step(message: Any, into: dict[str, Json]) -> None:  # noqa: ANN401
            which = message.WhichOneof(name)
            if which is None:
                if under:
                    into[under] = None
                return
            tag, inline, key, encode = writers[which]
            target = into if not under else {}
            target[tag_key] = tag
            value = encode(getattr(message, which))
            if inline:
                for inner, item in value.items():  # what the outer message says of itself comes first
                    target.setdefault(inner, item)
            else:
                target[key] = value
            if under:
                into[under] = target

        return step

    def _step(self, descriptor: Descriptor, one: Field) -> Callable[[Any, dict[str, Json]], None]:
        name, key = one.name, self.shapes.names.get(f"{descriptor.name}.{one.name}", one.name)
        if _is_map(one):
            encode = self._value_encoder(one.message_type.fields_by_name["value"])
            return lambda message, into: into.__setitem__(
                key, {k: encode(v) for k, v in sorted(getattr(message, name).items())}
            )
        encode = self._value_encoder(one, of=descriptor)
        if one.is_repeated:
            return lambda message, into: into.__setitem__(key, [encode(item) for item in getattr(message, name)])
        if not one.has_presence:
            return lambda message, into: into.__setitem__(key, encode(getattr(message, name)))
        if one.containing_oneof is not None and len(one.containing_oneof.fields) > 1:  # absent unless chosen

            def chosen(message: Any, into: dict[str, Json]) -> None:  # noqa: ANN401
                if message.HasField(name):
                    into[key] = encode(getattr(message, name))

            return chosen
        unset = self.shapes.unset.get(f"{descriptor.name}.{one.name}", dict)()
        if f"{descriptor.name}.{one.name}" not in self.shapes.unset:
            unset = None
        absent = f"{descriptor.name}.{one.name}" in self.shapes.absent

        def optional(message: Any, into: dict[str, Json]) -> None:  # noqa: ANN401
            if message.HasField(name):
                into[key] = encode(getattr(message, name))
            elif not absent:
                into[key] = unset

        return optional

    def _value_encoder(  # noqa: PLR0911 - one kind of value each
        self,
        one: Field,
        *,
        of: Descriptor | None = None,
    ) -> Encode:
        if one.type == FieldDescriptor.TYPE_ENUM:
            names = self._enum(one.enum_type)[0]
            return names.get
        if one.type == FieldDescriptor.TYPE_BYTES:
            return lambda value: base64.b64encode(value).decode()
        if one.type == FieldDescriptor.TYPE_FLOAT:
            return _short_float
        if of is not None and f"{of.name}.{one.name}" in self.shapes.whole:
            return int
        if one.message_type is None:
            return lambda value: value
        full = one.message_type.full_name
        if full == "google.protobuf.Timestamp":
            unix = of is not None and (
                of.name in self.shapes.unix_times or f"{of.name}.{one.name}" in self.shapes.unix_times
            )
            return _unix if unix else _rfc3339
        if full in _STRUCTS:
            return _STRUCTS[full]
        encoder: Encode | None = None

        def late(value: Any) -> Json:  # noqa: ANN401 - looked up when first needed, for types may be recursive
            nonlocal encoder
            if encoder is None:
                encoder = self.encoder(one.message_type)
            return encoder(value)

        return late


class _Decoder:
    """Reads objects into messages of one type."""

    def __init__(self, codec: Codec, descriptor: Descriptor) -> None:
        self._codec = codec
        shapes = codec.shapes
        unions = shapes.unions.get(descriptor.name, {})
        self._unions = [(descriptor.oneofs_by_name[name], union) for name, union in unions.items()]
        members = {one.name for oneof, _ in self._unions for one in oneof.fields}
        self._fields: dict[str, Field] = {}
        for one in descriptor.fields:
            if one.name not in members:
                self._fields[shapes.names.get(f"{descriptor.name}.{one.name}", one.name)] = one
        self._aliases = shapes.aliases.get(descriptor.name, {})
        self._known = {
            *self._aliases,
            *shapes.constants.get(descriptor.name, {}),
            *shapes.taken.get(descriptor.name, ()),
        }

    def read(self, message: Any, value: Mapping[str, Json], path: str, reading: Reading) -> None:  # noqa: ANN401
        rest = dict(value)
        for alias, name in self._aliases.items():
            if alias in rest and rest.get(name) is None:
                rest[name] = rest.pop(alias)
        for oneof, union in self._unions:
            self._read_union(message, oneof, union, rest, path, reading)
        for key, item in rest.items():
            one = self._fields.get(key)
            if one is None:
                if key not in self._known:
                    self._unknown(key, path, reading)
            elif item is not None:
                self._read_field(message, one, item, f"{path}.{key}" if path else key, reading)

    def _unknown(self, key: str, path: str, reading: Reading) -> None:
        place = f"{path}.{key}" if path else key
        if reading.strict:
            known = ", ".join(sorted(self._fields)) or "none"
            raise InvalidArgumentError(f"{place}: no such field here; there are: {known}", field=place)
        reading.ignored.append(place)

    def _read_union(  # noqa: C901, PLR0917 - the one place that knows all forms of a tag
        self,
        message: Any,  # noqa: ANN401
        oneof: Any,  # noqa: ANN401
        union: Union,
        rest: dict[str, Json],
        path: str,
        reading: Reading,
    ) -> None:
        source: dict[str, Json] = rest
        if union.under:
            inner = rest.pop(union.under, None)
            if inner is None:
                return
            path = f"{path}.{union.under}" if path else union.under
            if not isinstance(inner, dict):
                raise wrong(path, "an object", inner)
            source = dict(inner)
        tag = source.pop(union.key, None)
        place = f"{path}.{union.key}" if path else union.key
        if tag is None:
            tag = union.guess(source)
        if tag is None:
            if union.optional:
                return
            raise InvalidArgumentError(f"{place}: missing; give one of {', '.join(union.tags)}", field=place)
        name = union.field_of(tag) if isinstance(tag, str) else None
        if name is None:
            raise InvalidArgumentError(f"{place}: {shown(tag)} is none of {', '.join(union.tags)}", field=place)
        if union.key in self._fields:  # an enum beside the oneof says the same
            rest[union.key] = tag
        one = next(item for item in oneof.fields if item.name == name)
        if one.message_type is not None and one.name not in union.nested:
            own = {key: source.pop(key) for key in list(source) if union.under or key not in self._fields}
            member = getattr(message, name)
            member.SetInParent()
            self._codec.merge(member, own, path=path, reading=reading)
            return
        key = union.key_of(name)
        item = source.pop(key, None)
        place = f"{path}.{key}" if path else key
        if item is None:
            raise InvalidArgumentError(f"{place}: missing", field=place)
        self._read_field(message, one, item, place, reading)
        if union.under:
            for other in source:
                self._unknown(other, path, reading)

    def _read_field(
        self,
        message: Any,  # noqa: ANN401
        one: Field,
        item: Json,
        path: str,
        reading: Reading,
    ) -> None:
        if _is_map(one):
            self._read_map(message, one, item, path, reading)
        elif one.is_repeated:
            if not isinstance(item, list):
                raise wrong(path, "a list", item)
            target = getattr(message, one.name)
            if one.message_type is not None:
                for index, inner in enumerate(item):
                    self._read_message(target.add(), inner, f"{path}[{index}]", reading)
            else:
                target.extend(self._scalar(one, inner, f"{path}[{index}]") for index, inner in enumerate(item))
        elif one.message_type is not None:
            member = getattr(message, one.name)
            member.SetInParent()
            self._read_message(member, item, path, reading)
        else:
            setattr(message, one.name, self._scalar(one, item, path))

    def _read_map(self, message: Any, one: Field, item: Json, path: str, reading: Reading) -> None:  # noqa: ANN401
        if not isinstance(item, dict):
            raise wrong(path, "an object", item)
        target = getattr(message, one.name)
        entry = one.message_type
        keys, values = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for key, inner in item.items():
            place = f"{path}.{key}"
            name: Any = key
            if keys.type in _INTEGERS:
                if not key.lstrip("-").isdigit():
                    raise wrong(place, "a whole number as key", key)
                name = self._scalar(keys, int(key), place)
            if values.message_type is None:
                target[name] = self._scalar(values, inner, place)
            elif inner is None:
                target[name].SetInParent()
            else:
                target[name].SetInParent()
                self._read_message(target[name], inner, place, reading)

    def _read_message(self, message: Any, value: Json, path: str, reading: Reading) -> None:  # noqa: ANN401
        full = message.DESCRIPTOR.full_name
        if full == "google.protobuf.Struct":
            if not isinstance(value, dict):
                raise wrong(path, "an object", value)
            set_struct(message, value, path=path)
        elif full == "google.protobuf.Value":
            set_value(message, value, path=path)
        elif full == "google.protobuf.Timestamp":
            _read_time(message, value, path)
        else:
            self._codec.merge(message, value, path=path, reading=reading)

    def _scalar(self, one: Field, value: Json, path: str) -> Any:  # noqa: ANN401
        if one.type == FieldDescriptor.TYPE_STRING:
            if not isinstance(value, str):
                raise wrong(path, "a string", value)
            return text(value, path=path)
        if one.type == FieldDescriptor.TYPE_BOOL:
            if not isinstance(value, bool):
                raise wrong(path, "true or false", value)
            return value
        if one.type in _FLOATS:
            return _read_float(value, path, single=one.type == FieldDescriptor.TYPE_FLOAT)
        if one.type in _INTEGERS:
            return _read_integer(value, path, *_INTEGERS[one.type])
        if one.type == FieldDescriptor.TYPE_ENUM:
            return self._codec.enum_number(one.enum_type, value, path=path)
        return read_bytes(value, path=path)


def _run(steps: list[Callable[[Any, dict[str, Json]], None]], message: Any) -> dict[str, Json]:  # noqa: ANN401
    into: dict[str, Json] = {}
    for step in steps:
        step(message, into)
    return into


def _is_map(one: Field) -> bool:
    return one.message_type is not None and one.message_type.GetOptions().map_entry


# Values


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


def _read_float(value: Json, path: str, *, single: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(path, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (single and abs(number) > _LARGEST_FLOAT):
        raise InvalidArgumentError(f"{path}: {shown(value)} is out of range", field=path)
    return number


def _read_integer(value: Json, path: str, least: int, most: int) -> int:
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
    if depth > _MAX_DEPTH:
        raise InvalidArgumentError(f"{path}: nested more than {_MAX_DEPTH} deep", field=path)
    if value is None:
        message.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int | float):
        message.number_value = _read_float(value, path, single=False)
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


_STRUCTS: dict[str, Encode] = {
    "google.protobuf.Struct": struct_json,
    "google.protobuf.Value": value_json,
    "google.protobuf.ListValue": _list_json,
}


def _short_float(value: float) -> float:
    """A 32-bit float as the shortest decimal that reads back as the same: 0.7 and not 0.699999988079071."""
    return float(f"{value:.7g}")


def _unix(moment: Timestamp) -> int:
    return int(moment.seconds)


def _rfc3339(moment: Timestamp) -> str:
    whole = datetime.fromtimestamp(moment.seconds, tz=UTC).replace(microsecond=moment.nanos // 1000)
    return whole.isoformat()


def _read_time(message: Timestamp, value: Json, path: str) -> None:
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


def message_class(descriptor: Descriptor) -> type[Message]:
    """The class of a message type."""
    return GetMessageClass(descriptor)

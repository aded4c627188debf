"""Between messages and JSON values, by descriptor; every message type is compiled once, at its first use.

Why not `google.protobuf.json_format`: it prints 64-bit integers as strings and enums with their prefix, drops or prints
every zero, knows one form of a time, has no hook for unions without a tag, and is several times as slow.
"""

import base64
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf import struct_pb2
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from services.gateway.jsonmap.decoder import Decoder, Reading
from services.gateway.jsonmap.shapes import Shapes, Union
from services.gateway.jsonmap.values import (
    MAX_DEPTH,
    STRUCTS,
    Descriptor,
    Encode,
    Field,
    Json,
    is_map,
    rfc3339,
    set_struct,
    short_float,
    shown,
    unix,
    wrong,
)
from stack_client.errors import InvalidArgumentError

MessageT = TypeVar("MessageT", bound=Message)


class Codec:
    """Reads and writes JSON values.

    Args:
        shapes: Where the JSON differs from the message.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self._encoders: dict[str, Encode] = {}
        self._decoders: dict[str, Decoder] = {}

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
        if path.count(".") + path.count("[") > MAX_DEPTH:
            raise InvalidArgumentError(f"{path}: nested more than {MAX_DEPTH} deep", field=path)
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
            decoder = self._decoders[descriptor.full_name] = Decoder(self, descriptor)
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
        if is_map(one):
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
            return short_float
        if of is not None and f"{of.name}.{one.name}" in self.shapes.whole:
            return int
        if one.message_type is None:
            return lambda value: value
        full = one.message_type.full_name
        if full == "google.protobuf.Timestamp":
            seconds = of is not None and (
                of.name in self.shapes.unix_times or f"{of.name}.{one.name}" in self.shapes.unix_times
            )
            return unix if seconds else rfc3339
        if full in STRUCTS:
            return STRUCTS[full]
        encoder: Encode | None = None

        def late(value: Any) -> Json:  # noqa: ANN401 - looked up when first needed, for types may be recursive
            nonlocal encoder
            if encoder is None:
                encoder = self.encoder(one.message_type)
            return encoder(value)

        return late


def _run(steps: list[Callable[[Any, dict[str, Json]], None]], message: Any) -> dict[str, Json]:  # noqa: ANN401
    into: dict[str, Json] = {}
    for step in steps:
        step(message, into)
    return into

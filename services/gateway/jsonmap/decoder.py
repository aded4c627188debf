"""Reading JSON objects into messages of one type; made once per type by the codec."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor

from services.gateway.jsonmap.shapes import Union
from services.gateway.jsonmap.values import (
    FLOATS,
    INTEGERS,
    Descriptor,
    Field,
    Json,
    is_map,
    read_bytes,
    read_float,
    read_integer,
    read_time,
    set_struct,
    set_value,
    shown,
    text,
    wrong,
)
from stack_client.errors import InvalidArgumentError

if TYPE_CHECKING:
    from services.gateway.jsonmap.codec import Codec


@dataclass(kw_only=True)
class Reading:
    """What is noted while a request is read."""

    strict: bool = True
    """Refuse keys that no field has; otherwise they are noted in `ignored`."""
    ignored: list[str] = field(default_factory=list)
    """Paths of keys that no field has."""


class Decoder:
    """Reads objects into messages of one type."""

    def __init__(self, codec: "Codec", descriptor: Descriptor) -> None:
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
        """Read an object's members into a message's fields.

        Raises:
            InvalidArgumentError: One of them has another shape.
        """
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
        if is_map(one):
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
            if keys.type in INTEGERS:
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
            read_time(message, value, path)
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
        if one.type in FLOATS:
            return read_float(value, path, single=one.type == FieldDescriptor.TYPE_FLOAT)
        if one.type in INTEGERS:
            return read_integer(value, path, *INTEGERS[one.type])
        if one.type == FieldDescriptor.TYPE_ENUM:
            return self._codec.enum_number(one.enum_type, value, path=path)
        return read_bytes(value, path=path)

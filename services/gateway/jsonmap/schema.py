"""JSON Schemas of messages as the codec reads and writes them, for the OpenAPI document."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor

from services.gateway.jsonmap.codec import Codec
from services.gateway.jsonmap.shapes import Union
from services.gateway.jsonmap.values import Descriptor, Field

_SCALARS: Mapping[int, Mapping[str, Any]] = {
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer"},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "integer", "minimum": 0},
}
_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
}
_PACKAGE = "llamastack.v1."


class Schemas:
    """The schemas that a document needs, made as they are asked for.

    Args:
        codec: Whose shapes they follow.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.components: dict[str, Any] = {}
        """By name of the message."""

    def reference(self, descriptor: Descriptor) -> dict[str, Any]:
        """A reference to the schema of a message."""
        name = descriptor.name
        if name not in self.components:
            self.components[name] = {}  # known before its members are, for they may refer to it
            self.components[name] = self._schema(descriptor)
        return {"$ref": f"#/components/schemas/{name}"}

    def _schema(self, descriptor: Descriptor) -> dict[str, Any]:
        adapter = self._codec.shapes.adapters.get(descriptor.full_name)
        if adapter is not None and adapter.schema:
            return dict(self._filled(adapter.schema))
        return self._object(descriptor)

    def _filled(self, schema: Any) -> Any:  # noqa: ANN401 - a piece of JSON Schema
        """A hand-written schema with the types that it names put in."""
        if isinstance(schema, list):
            return [self._filled(one) for one in schema]
        if not isinstance(schema, Mapping):
            return schema
        for key in ("$message", "$fields"):
            if key in schema:
                found = descriptor_pool.Default().FindMessageTypeByName(f"{_PACKAGE}{schema[key]}")
                return self.reference(found) if key == "$message" else self._object(found)
        return {key: self._filled(value) for key, value in schema.items()}

    def _object(self, descriptor: Descriptor) -> dict[str, Any]:
        shapes = self._codec.shapes
        unions = shapes.unions.get(descriptor.name, {})
        properties: dict[str, Any] = {
            name: {"const": value} for name, value in shapes.constants.get(descriptor.name, {}).items()
        }
        variants: list[dict[str, Any]] = []
        for one in descriptor.fields:
            oneof = one.containing_oneof
            if oneof is not None and oneof.name in unions:
                union = unions[oneof.name]
                if oneof.fields[0].name != one.name:
                    continue
                found = self._union(oneof, union)
                if union.under:
                    properties[union.under] = {"oneOf": [*found, {"type": "null"}]}
                else:
                    variants = found
            else:
                place = f"{descriptor.name}.{one.name}"
                own = shapes.schemas.get(place)
                key = shapes.names.get(place, one.name)
                properties[key] = self._filled(own) if own else self._field(descriptor, one)
        written: dict[str, Any] = {"type": "object", "properties": properties}
        if descriptor.name in shapes.required:
            written["required"] = list(shapes.required[descriptor.name])
        if not variants:
            return written
        return {"oneOf": variants} if not properties else {"allOf": [written, {"oneOf": variants}]}

    def _union(self, oneof: Any, union: Union) -> list[dict[str, Any]]:  # noqa: ANN401
        variants = []
        for one in oneof.fields:
            tag: dict[str, Any] = {
                "type": "object",
                "properties": {union.key: {"enum": [tag for tag, name in union.tags.items() if name == one.name]}},
                "required": [] if union.default or union.optional or union.signs else [union.key],
            }
            if one.message_type is not None and one.name not in union.nested:
                variants.append({"allOf": [tag, self._value(oneof.containing_type, one)]})
            else:
                key = union.key_of(one.name)
                tag["properties"][key] = self._value(oneof.containing_type, one)
                tag["required"].append(key)
                variants.append(tag)
        return variants

    def _field(self, descriptor: Descriptor, one: Field) -> dict[str, Any]:
        if one.message_type is not None and one.message_type.GetOptions().map_entry:
            value = self._value(descriptor, one.message_type.fields_by_name["value"])
            return {"type": ["object", "null"], "additionalProperties": value}
        value = self._value(descriptor, one)
        if one.is_repeated:
            return {"type": ["array", "null"], "items": value}
        return {"anyOf": [value, {"type": "null"}]}

    def _value(self, descriptor: Descriptor, one: Field) -> dict[str, Any]:
        if one.type == FieldDescriptor.TYPE_ENUM:
            names = [self._codec.enum_name(one.enum_type, value.number) for value in one.enum_type.values]
            return {"type": "string", "enum": [name for name in names if name is not None]}
        if one.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        if one.message_type is None:
            whole = f"{descriptor.name}.{one.name}" in self._codec.shapes.whole
            return {"type": "integer"} if whole else dict(_SCALARS[one.cpp_type])
        full = one.message_type.full_name
        if full == "google.protobuf.Timestamp":
            unix = self._codec.shapes.unix_times
            if descriptor.name in unix or f"{descriptor.name}.{one.name}" in unix:
                return {"type": "integer"}
            return {"type": "string", "format": "date-time"}
        return dict(_KNOWN[full]) if full in _KNOWN else self.reference(one.message_type)

"""Where the JSON of a message differs from the protobuf JSON mapping: tables that `codec.py` follows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.gateway.jsonmap.codec import Codec
    from services.gateway.jsonmap.decoder import Reading


@dataclass(frozen=True, kw_only=True)
class Union:
    """A oneof that JSON writes as one object with a tag."""

    key: str = "type"
    """Name of the tag."""
    tags: Mapping[str, str]
    """Field of the oneof by tag; of several tags for one field the first is written."""
    nested: Mapping[str, str] = field(default_factory=dict)
    """Fields that are not poured into the object but stand in it under a key, by field; scalars always do."""
    under: str = ""
    """Key of the object that the union is; empty pours it into the message's own object."""
    optional: bool = False
    """Whether an object without tag is read as none of the members."""
    default: str = ""
    """The tag of an object that has none."""
    signs: Mapping[str, str] = field(default_factory=dict)
    """Tag of an object that has none, by a key that shows it."""

    def tag_of(self, name: str) -> str:
        """The tag that is written for a field."""
        return next(tag for tag, member in self.tags.items() if member == name)

    def field_of(self, tag: str) -> str | None:
        """The field of a tag."""
        return self.tags.get(tag)

    def key_of(self, name: str) -> str:
        """Where a value stands that is not poured in."""
        return self.nested.get(name, name)

    def guess(self, value: Mapping[str, Any]) -> str | None:
        """The tag of an object that has none."""
        for sign, tag in self.signs.items():
            if sign in value:
                return tag
        return self.default or None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One message type read and written by hand."""

    encode: "Callable[[Codec, Any], Any]"
    """The JSON of a message."""
    decode: "Callable[[Codec, Any, Any, str, Reading], None]"
    """Reads JSON into a message; gets the path for errors."""
    schema: Mapping[str, Any] = field(default_factory=dict)
    """JSON Schema of what it reads and writes, for the OpenAPI document; `{"$message": "Name"}` stands for a type."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """All differences. Keys are names of messages, or `Message.field`."""

    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """By full name."""
    unions: Mapping[str, Mapping[str, Union]] = field(default_factory=dict)
    """By message and oneof."""
    enums: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """JSON names of enum values that are not their lower-cased names, by enum and name without prefix."""
    enum_aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Further names that are read, by enum: alias to JSON name."""
    constants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Members that JSON has and the message has not, such as `object`; read and dropped."""
    names: Mapping[str, str] = field(default_factory=dict)
    """JSON names of fields that are not their own."""
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Further names that are read, by message: alias to JSON name."""
    taken: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Members that are read and have no effect, by message: what old clients send and nothing hangs on."""
    hidden: frozenset[str] = frozenset()
    """`Message.field`s that are not written."""
    absent: frozenset[str] = frozenset()
    """`Message.field`s that are left out when unset; all others are null then."""
    unset: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    """What is written for an unset `Message.field` instead of null."""
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """JSON Schemas of `Message.field`s that an adapter reads in more forms, for the OpenAPI document."""
    required: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Members that must be there, by message, for the same."""
    unix_times: frozenset[str] = frozenset()
    """Messages, and `Message.field`s, whose times are whole seconds since 1970; all others are RFC 3339."""
    whole: frozenset[str] = frozenset()
    """`Message.field`s that are floating-point numbers because of their size, and whole: written without a point."""

"""JSON Schemas of tools: compiled once, never fetched from elsewhere, and harmless whatever they say.

Patterns run on RE2, in linear time; what RE2 cannot express (look-around, back references) is left to the tool.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import re2
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from stack_client.errors import InvalidArgumentError

Schema = Mapping[str, Any]
COMPILED = 1024
"""Validators kept."""


class Schemas:
    """Compiled schemas, the most recently used ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Any] = OrderedDict()

    def validator(self, schema: Schema) -> Any:  # noqa: ANN401 (jsonschema makes the class)
        """The validator of a schema.

        Raises:
            InvalidArgumentError: If the schema is not valid, or refers to something outside of itself.
        """
        key = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).digest()
        if key not in self._kept:
            self._kept[key] = compiled(schema)
            while len(self._kept) > COMPILED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def compiled(schema: Schema) -> Any:  # noqa: ANN401 (jsonschema makes the class)
    """A validator.

    Raises:
        InvalidArgumentError: If the schema is not valid, or refers to something outside of itself.
    """
    if not isinstance(schema, Mapping):
        raise InvalidArgumentError("the schema is no object", field="input_schema")
    found = validators.validator_for(schema, default=Draft202012Validator)
    harmless = _without_foreign_patterns(schema)
    registry: Registry[Any] = Registry()  # knows nothing and fetches nothing
    try:
        found.check_schema(harmless)
        extended: Any = validators.extend(found, _KEYWORDS)  # type: ignore[no-untyped-call]
        validator = extended(harmless, registry=registry)
        _resolve_all(validator, harmless)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path))
        raise InvalidArgumentError(
            f"the schema is not valid at /{where}: {error.message}", field="input_schema"
        ) from error
    except Unresolvable as error:
        message = f"the schema refers to {error.ref!r}, which is not in it; schemas are not fetched: include it"
        raise InvalidArgumentError(message, field="input_schema") from error
    except RecursionError:
        raise InvalidArgumentError("the schema is nested too deeply", field="input_schema") from None
    return validator


def _resolve_all(validator: Any, schema: Any) -> None:  # noqa: ANN401
    resolver = validator._resolver  # noqa: SLF001 (the public way resolves at the first use only)
    for ref in _references(schema):
        resolver.lookup(ref)


def _references(schema: Any) -> Iterator[str]:  # noqa: ANN401 (JSON)
    if isinstance(schema, Mapping):
        ref = schema.get("$ref")
        # Below another `$id` references mean something else; they are resolved, and found missing, when used.
        if isinstance(ref, str) and "$id" not in schema:
            yield ref
        for key, value in schema.items():
            if key not in {"const", "enum", "default", "examples"}:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _expressible(pattern: str) -> bool:
    try:
        re2.compile(pattern, _QUIET)
    except re2.error:
        return False
    return True


def _without_foreign_patterns(schema: Any) -> Any:  # noqa: ANN401 (JSON)
    """A schema without the patterns that RE2 does not know; what they would have matched is let pass."""
    if isinstance(schema, list):
        return [_without_foreign_patterns(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {
        key: value if key in {"const", "enum"} else _without_foreign_patterns(value) for key, value in schema.items()
    }
    if isinstance(kept.get("pattern"), str) and not _expressible(kept["pattern"]):
        del kept["pattern"]
    patterns = kept.get("patternProperties")
    if isinstance(patterns, Mapping):
        kept.pop("unevaluatedProperties", None)  # jsonschema would run the patterns on Python's engine
        known = {pattern: inner for pattern, inner in patterns.items() if _expressible(pattern)}
        kept["patternProperties"] = known
        if len(known) < len(patterns):
            kept.pop("additionalProperties", None)
    return kept


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:  # noqa: ANN401
    if isinstance(instance, str) and not re2.search(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _schema: Any) -> Iterator[ValidationError]:  # noqa: ANN401
    if validator.is_type(instance, "object"):
        for pattern, inner in patterns.items():
            for name, value in instance.items():
                if re2.search(pattern, name):
                    yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:  # noqa: ANN401
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), list(schema.get("patternProperties", {}))
    extra = [name for name in instance if name not in named and not any(re2.search(one, name) for one in patterns)]
    if isinstance(allowed, Mapping):
        for name in extra:
            yield from validator.descend(instance[name], allowed, path=name)
    elif allowed is False and extra:
        known = f"; known are {', '.join(named)}" if named else "; there are none"
        yield ValidationError(f"there is no argument {', '.join(map(repr, extra))}{known}")


_QUIET = re2.Options()
_QUIET.log_errors = False
_KEYWORDS = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}

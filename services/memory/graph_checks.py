"""What a graph cannot take is refused here, by name."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from google.protobuf.struct_pb2 import Struct, Value

from llamastack import v1
from services.memory.graph_queries import Direction, Scope
from services.runtime.moments import moment_of, now
from services.runtime.names import check_printable
from stack_client.errors import InvalidArgumentError

MAX_ITEMS = 10_000
MAX_ID = 512
"""Characters of identifiers, types, relations and names."""
MAX_ALIASES = 100
MAX_STARTS = 100
MAX_TEXT = 10_000
MAX_NAMES = 1000
_DIRECTIONS: Mapping[int, Direction] = {
    v1.EDGE_DIRECTION_UNSPECIFIED: "both",
    v1.EDGE_DIRECTION_BOTH: "both",
    v1.EDGE_DIRECTION_OUT: "out",
    v1.EDGE_DIRECTION_IN: "in",
}
ItemT = TypeVar("ItemT", v1.GraphEntity, v1.GraphEdge)


def check_put(request: v1.PutGraphRequest) -> None:
    """Check entities and edges, and clear what the service sets.

    Raises:
        InvalidArgumentError: If one is not as it must be, or is given twice in two forms.
    """
    _check_count(len(request.entities), field="entities")
    _check_count(len(request.edges), field="edges")
    if not request.entities and not request.edges:
        raise InvalidArgumentError("give entities or edges", reason="MISSING_FIELD", field="entities")
    for index, entity in enumerate(request.entities):
        _check_entity(entity, field=f"entities[{index}]")
    for index, edge in enumerate(request.edges):
        _check_edge(edge, field=f"edges[{index}]")
    _check_once({}, [(one.entity_id, one) for one in request.entities], field="entities")
    _check_once({}, [(one.edge_id, one) for one in request.edges if one.edge_id], field="edges")


def check_ids(ids: Sequence[str], *, field: str, most: int) -> list[str]:
    """Identifiers, each once.

    Raises:
        InvalidArgumentError: If there are too many, or one cannot be.
    """
    if len(ids) > most:
        raise InvalidArgumentError(f"{field} has {len(ids)}; at most {most} are allowed", field=field)
    for index, one in enumerate(ids):
        check_id(one, field=f"{field}[{index}]")
    return list(dict.fromkeys(ids))


def check_id(name: str, *, field: str) -> None:
    """Refuse what is no identifier.

    Raises:
        InvalidArgumentError: If it is empty, too long or has characters that cannot be printed.
    """
    if not name:
        raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
    check_printable(name, most=MAX_ID, field=field)


def check_number(value: int | None, *, default: int, least: int, most: int, field: str) -> int:
    """A number of a request, or its default where it is None.

    Raises:
        InvalidArgumentError: If it is out of range.
    """
    if value is None:
        return default
    if not least <= value <= most:
        raise InvalidArgumentError(f"{field} is {value}; allowed: {least} to {most}", field=field)
    return value


def check_text(text: str, *, field: str) -> str:
    """A text that names entities.

    Raises:
        InvalidArgumentError: If it is too long.
    """
    if len(text) > MAX_TEXT:
        raise InvalidArgumentError(f"{field} has {len(text)} characters; at most {MAX_TEXT} are allowed", field=field)
    return text


def scope_of(message: v1.GraphScope) -> Scope:
    """What a read sees.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """
    for field, names in (("scope.relations", message.relations), ("scope.entity_types", message.entity_types)):
        check_ids(names, field=field, most=MAX_NAMES)
    if message.direction not in _DIRECTIONS:
        raise InvalidArgumentError("scope.direction: give out, in or both", field="scope.direction")
    return Scope(
        as_of=moment_of(message.as_of, field="scope.as_of") if message.HasField("as_of") else now(),
        recorded_as_of=(
            moment_of(message.recorded_as_of, field="scope.recorded_as_of")
            if message.HasField("recorded_as_of")
            else None
        ),
        relations=tuple(message.relations),
        entity_types=tuple(message.entity_types),
        direction=_DIRECTIONS[message.direction],
    )


def _check_count(count: int, *, field: str) -> None:
    if count > MAX_ITEMS:
        message = f"{field} has {count}; at most {MAX_ITEMS} go into one request: send several"
        raise InvalidArgumentError(message, field=field)


def _check_entity(entity: v1.GraphEntity, *, field: str) -> None:
    check_id(entity.entity_id, field=f"{field}.entity_id")
    check_printable(entity.type, most=MAX_ID, field=f"{field}.type")
    check_printable(entity.name, most=MAX_ID, field=f"{field}.name")
    if len(entity.aliases) > MAX_ALIASES:
        message = f"{field}.aliases has {len(entity.aliases)}; at most {MAX_ALIASES} are allowed"
        raise InvalidArgumentError(message, field=f"{field}.aliases")
    for alias in entity.aliases:
        check_id(alias, field=f"{field}.aliases")
    _check_facts(entity.properties, field=f"{field}.properties")
    entity.ClearField("recorded_at")


def _check_edge(edge: v1.GraphEdge, *, field: str) -> None:
    check_printable(edge.edge_id, most=MAX_ID, field=f"{field}.edge_id")
    for name in ("source_id", "relation", "target_id"):
        check_id(getattr(edge, name), field=f"{field}.{name}")
    _check_facts(edge.properties, field=f"{field}.properties")
    moment_of(edge.valid_from, field=f"{field}.valid_from")
    moment_of(edge.valid_to, field=f"{field}.valid_to")
    both = edge.HasField("valid_from") and edge.HasField("valid_to")
    if both and moment_of(edge.valid_from) >= moment_of(edge.valid_to):
        message = f"{field}: its validity ends before it begins; valid_to must be after valid_from"
        raise InvalidArgumentError(message, field=f"{field}.valid_to")
    edge.ClearField("recorded_at")


def _check_once(seen: dict[str, ItemT], items: Sequence[tuple[str, ItemT]], *, field: str) -> None:
    for index, (name, item) in enumerate(items):
        if seen.setdefault(name, item) != item:
            message = f"{field}[{index}]: {name!r} is given twice with different contents; send one of them"
            raise InvalidArgumentError(message, field=f"{field}[{index}]")


def _check_facts(facts: Struct, *, field: str) -> None:
    pending = list(facts.fields.values())
    while pending:
        value: Value = pending.pop()
        match value.WhichOneof("kind"):
            case "number_value" if not math.isfinite(value.number_value):
                raise InvalidArgumentError(f"{field}: only finite numbers are JSON", field=field)
            case "struct_value":
                pending += value.struct_value.fields.values()
            case "list_value":
                pending += value.list_value.values

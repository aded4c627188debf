"""Entities as text, for models and for hybrid queries: who or what it is, and a line for each of its edges."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from google.protobuf import json_format

from llamastack import v1
from services.memory.bank import Bank
from services.memory.graph_queries import GraphReader, Scope
from services.runtime.moments import now
from stack_client.content import plain

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_LINES = 50
"""Edges written out for one entity."""


class GraphChunk(NamedTuple):
    """An entity that was found."""

    entity: v1.GraphEntity
    """As it is stored."""
    text: str
    """Its name, type, properties and edges."""
    score: float
    """1 for the best start entity; half with each step away from a start."""


async def chunks(
    reader: GraphReader,
    bank: Bank,
    *,
    entities: Sequence[str] = (),
    text: str = "",
    max_hops: int = 2,
    as_of: int | None = None,
    limit: int = 50,
) -> list[GraphChunk]:
    """Entities around some others as texts, best first, equal ones by identifier.

    Args:
        reader: Of the graphs.
        bank: A graph bank.
        entities: Where to start; empty means the entities that `text` names.
        text: Words of names; not looked at when entities are given.
        max_hops: Steps from the start.
        as_of: Only edges that hold at this moment, microseconds since 1970; None means now.
        limit: Entities at most.

    Raises:
        NotFoundError: If a start entity does not exist.
    """
    scope = Scope(as_of=now() if as_of is None else as_of)
    async with reader.view(bank, scope) as view:
        if entities:
            await view.require(entities, fields=["entity_ids"] * len(entities))
            starts = dict.fromkeys(entities, 1.0)
        else:
            starts = dict(await view.named(text))
        reached, _truncated = await view.around(list(starts), max_hops=max_hops, limit=limit)
        edges = await view.edges_of([one.entity_id for one in reached], limit=MAX_LINES + 1)
        ends = {end for found in edges.values() for edge in found for end in (edge.source_id, edge.target_id)}
        known = await view.entities(sorted(ends.union(edges)))
    scored = [(one.entity_id, starts.get(one.entity_id, 0.5**one.hops)) for one in reached]
    scored.sort(key=lambda one: -one[1])  # stable: by hops and identifier, starts as they were ranked
    names = {entity_id: entity.name or entity_id for entity_id, entity in known.items()}
    return [GraphChunk(known[one], render(known[one], edges[one], names), score) for one, score in scored]


def render(entity: v1.GraphEntity, edges: Sequence[v1.GraphEdge], names: dict[str, str]) -> str:
    """An entity as text.

    Args:
        entity: The entity.
        edges: Its edges in the order in which they are written.
        names: What entities are called, by identifier.
    """
    kind = f" ({entity.type})" if entity.type else ""
    also = f", also {', '.join(entity.aliases)}" if entity.aliases else ""
    lines = [f"{names[entity.entity_id]}{kind}{also}"]
    facts = plain(json_format.MessageToDict(entity.properties))
    lines += [f"{key}: {_value(facts[key])}" for key in sorted(facts)]
    for edge in edges[:MAX_LINES]:
        lines.append(f"{names[edge.source_id]} {edge.relation} {names[edge.target_id]}{_times(edge)}")
    if len(edges) > MAX_LINES:
        lines.append("and more")
    return "\n".join(lines)


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _times(edge: v1.GraphEdge) -> str:
    """When an edge holds, in brackets; empty where it always does."""
    begins = f"from {_day(edge.valid_from.ToMicroseconds())}" if edge.HasField("valid_from") else ""
    ends = f"to {_day(edge.valid_to.ToMicroseconds())}" if edge.HasField("valid_to") else ""
    return f" ({' '.join(filter(None, (begins, ends)))})" if begins or ends else ""


def _day(moment: int) -> str:
    """The day, or day and time where it is not midnight."""
    when = _EPOCH + timedelta(microseconds=moment)  # also before 1970, and exact
    return when.strftime("%Y-%m-%d") if moment % 86_400_000_000 == 0 else when.strftime("%Y-%m-%dT%H:%M:%SZ")

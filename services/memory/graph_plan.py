"""What putting edges changes: which statements are known already, and whose validity a new one ends.

Pure functions over what is stored, so that they can run in a thread. The rules:

- A statement without an identifier is the one with the same source, relation and target that began at the same moment;
  without a beginning, the one that still holds or ends at the moment given. What it leaves unset stays as known.
- The same statement again changes nothing, also when another one has ended it since.
- Of a single-valued relation a source has one edge at a time. A new edge ends those that began before it; when a later
  one is known, it ends where that begins. Without a beginning it begins where it contradicts: now, or when the last
  one ended.
"""

import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from llamastack import v1
from services.runtime.moments import moment_of
from stack_client.errors import InvalidArgumentError

BEGINNING = -(1 << 62)
"""Before all moments."""
FOREVER = 1 << 62
"""After all moments."""

Slot = tuple[str, str]
"""Source and relation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What is known of an edge."""

    edge_id: str
    source: str
    relation: str
    target: str
    valid_from: int
    """Microseconds since 1970, or `BEGINNING`."""
    valid_to: int
    """Exclusive; or `FOREVER`."""
    body: bytes
    """The statement as given: a GraphEdge message."""
    number: int = 0
    """Its row; 0 = none."""
    recorded_at: int = 0
    """When it was stored; 0 = it was not."""


@dataclass(kw_only=True)
class Plan:
    """What is to be written."""

    edge_ids: list[str] = field(default_factory=list)
    """Of each statement, in their order."""
    closed: list[str] = field(default_factory=list)
    """Edges whose validity ended."""
    said: set[str] = field(default_factory=set)
    """Edges that are new or changed by a statement."""
    added: list[Edge] = field(default_factory=list)
    """To be stored."""
    superseded: list[int] = field(default_factory=list)
    """Rows that no longer say what is known."""
    latest: int = 0
    """When the last of these was stored."""


def slot_of(edge: v1.GraphEdge) -> Slot:
    """Where an edge of a single-valued relation excludes others."""
    return edge.source_id, edge.relation


def make_plan(
    statements: Sequence[v1.GraphEdge], *, stored: Iterable[Edge], single_valued: Collection[str], moment: int
) -> Plan:
    """What putting edges changes.

    Args:
        statements: Checked one by one.
        stored: What is known of the edges that they name, and of those of the same triples, or the same slots where
            a relation is single-valued.
        single_valued: Relations of which a source has one edge at a time.
        moment: Now.

    Raises:
        InvalidArgumentError: If a statement contradicts others and cannot be placed in time.
    """
    planner = _Planner(stored, single_valued, moment)
    for index, statement in enumerate(statements):
        planner.put(statement, where=f"edges[{index}]")
    return planner.finish()


class _Planner:
    def __init__(self, stored: Iterable[Edge], single_valued: Collection[str], moment: int) -> None:
        self._single_valued, self._moment = single_valued, moment
        self._edges: dict[str, Edge] = {}
        self._slots: dict[Slot, dict[str, None]] = defaultdict(dict)
        self._rows: dict[str, Edge] = {}
        self._changed: dict[str, None] = {}
        self._plan = Plan()
        for edge in stored:
            self._keep(edge)
            self._rows[edge.edge_id] = edge

    def put(self, statement: v1.GraphEdge, *, where: str) -> None:
        known = self._known(statement)
        said = v1.GraphEdge()
        said.CopyFrom(statement)
        if not said.edge_id:
            said.edge_id = known.edge_id if known else f"edge_{secrets.token_hex(12)}"
            if known:
                _fill(said, v1.GraphEdge.FromString(known.body))
        self._plan.edge_ids.append(said.edge_id)
        body = said.SerializeToString(deterministic=True)
        if known and known.body == body:
            return
        if known and _differ_in_facts_only(said, v1.GraphEdge.FromString(known.body)):
            self._plan.said.add(known.edge_id)
            self._change(replace(known, body=body))
            return
        edge = Edge(
            edge_id=said.edge_id,
            source=said.source_id,
            relation=said.relation,
            target=said.target_id,
            valid_from=moment_of(said.valid_from) if said.HasField("valid_from") else BEGINNING,
            valid_to=moment_of(said.valid_to) if said.HasField("valid_to") else FOREVER,
            body=body,
        )
        if said.relation in self._single_valued:
            edge = self._place(edge, where=where)
        self._plan.said.add(edge.edge_id)
        self._change(edge)

    def finish(self) -> Plan:
        for edge_id in self._changed:
            self._plan.added.append(self._edges[edge_id])
            if edge_id in self._rows:
                row = self._rows[edge_id]
                self._plan.superseded.append(row.number)
                self._plan.latest = max(self._plan.latest, row.recorded_at)
        return self._plan

    def _known(self, statement: v1.GraphEdge) -> Edge | None:
        """The edge that a statement is about."""
        if statement.edge_id:
            return self._edges.get(statement.edge_id)
        same = [self._edges[one] for one in self._slots.get(slot_of(statement), ())]
        for edge in same:
            if edge.target == statement.target_id and _is_about(statement, edge):
                return edge
        return None

    def _place(self, edge: Edge, *, where: str) -> Edge:
        """The edge among the others of its slot, and those ended where it begins."""
        others = [self._edges[one] for one in self._slots.get((edge.source, edge.relation), ()) if one != edge.edge_id]
        others = [one for one in others if one.valid_from < one.valid_to]
        if edge.valid_from == BEGINNING:
            edge = replace(edge, valid_from=_beginning(others, self._moment))
        later = [one.valid_from for one in others if one.valid_from > edge.valid_from]
        edge = replace(edge, valid_to=min([edge.valid_to, *later]))
        if edge.valid_from >= edge.valid_to:
            message = (
                f"{where}: {edge.source!r} has other edges {edge.relation!r}, one at a time, and without valid_from "
                "this one has no place among them; say when it became true"
            )
            raise InvalidArgumentError(message, field=f"{where}.valid_from")
        for one in others:
            if one.valid_from <= edge.valid_from < one.valid_to:
                self._change(replace(one, valid_to=edge.valid_from))
                self._plan.closed.append(one.edge_id)
        return edge

    def _change(self, edge: Edge) -> None:
        before = self._edges.get(edge.edge_id)
        if before is not None:
            self._slots[before.source, before.relation].pop(edge.edge_id, None)
        self._keep(edge)
        self._changed[edge.edge_id] = None

    def _keep(self, edge: Edge) -> None:
        self._edges[edge.edge_id] = edge
        self._slots[edge.source, edge.relation][edge.edge_id] = None


def _is_about(statement: v1.GraphEdge, edge: Edge) -> bool:
    """Whether a statement without identifier is about an edge with the same ends and relation."""
    if statement.HasField("valid_from"):
        return moment_of(statement.valid_from) == edge.valid_from
    ends = edge.valid_to == FOREVER
    if statement.HasField("valid_to"):
        return edge.valid_to == moment_of(statement.valid_to) or (
            ends and moment_of(statement.valid_to) > edge.valid_from
        )
    return ends


def _fill(said: v1.GraphEdge, known: v1.GraphEdge) -> None:
    """What a statement without identifier leaves unset stays as known."""
    for name in ("valid_from", "valid_to"):
        if known.HasField(name) and not said.HasField(name):
            getattr(said, name).CopyFrom(getattr(known, name))


def _differ_in_facts_only(said: v1.GraphEdge, known: v1.GraphEdge) -> bool:
    return all(
        getattr(said, name) == getattr(known, name)
        for name in ("source_id", "relation", "target_id", "valid_from", "valid_to")
    ) and [said.HasField("valid_from"), said.HasField("valid_to")] == [
        known.HasField("valid_from"),
        known.HasField("valid_to"),
    ]


def _beginning(others: Sequence[Edge], moment: int) -> int:
    """Since when a statement can hold that does not say it."""
    if any(one.valid_from <= moment < one.valid_to for one in others):
        return moment
    return max((one.valid_to for one in others if one.valid_to <= moment), default=BEGINNING)

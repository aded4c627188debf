"""Graph banks, against an oracle in plain Python."""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from llamastack import v1
from services.memory.graph_queries import GraphReader
from services.memory.graph_text import chunks
from services.memory.graph_words import words_of
from services.runtime.moments import moment_of, now, stamp
from stack_client.calls import unary
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, StackError
from tests.memory.mesh import MemoryMesh

Name = Callable[[], str]
DAY = 86_400_000_000


class Graph:
    """A graph bank and short calls of it."""

    def __init__(self, mesh: MemoryMesh, bank_id: str, tenant: str = "") -> None:
        self.mesh, self.stub, self.bank_id = mesh, mesh.banks, bank_id
        self.metadata = [("x-tenant", tenant)] if tenant else None

    async def call(self, method: str, **fields: Any) -> Any:
        request = getattr(v1, f"{method}Request")(bank_id=self.bank_id, **fields)
        return await unary(getattr(self.stub, method)(request, metadata=self.metadata))

    async def put(self, *edges: v1.GraphEdge, entities: Sequence[v1.GraphEntity] = (), **fields: Any) -> Any:
        return await self.call("PutGraph", entities=entities, edges=edges, **fields)

    async def neighbours(self, *starts: str, **fields: Any) -> list[tuple[str, int, str]]:
        answer = await self.call("QueryNeighbours", entity_ids=starts, **fields)
        return [(one.entity.entity_id, one.hops, one.via.edge_id) for one in answer.neighbours]

    async def targets(self, source: str, **scope: Any) -> list[str]:
        scope = {"direction": v1.EDGE_DIRECTION_OUT, **scope}
        return [one for one, _hops, _via in await self.neighbours(source, scope=v1.GraphScope(**scope))]


async def new(mesh: MemoryMesh, name: Name, *single_valued: str) -> Graph:
    bank = await mesh.bank(name(), graph={"single_valued_relations": single_valued})
    return Graph(mesh, bank.identifier)


def edge(source: str, relation: str, target: str, **fields: Any) -> v1.GraphEdge:
    for field in ("valid_from", "valid_to"):
        if fields.get(field) is not None:
            fields[field] = stamp(fields[field] * DAY)
    return v1.GraphEdge(source_id=source, relation=relation, target_id=target, **fields)


def people(*names: str) -> list[v1.GraphEntity]:
    return [v1.GraphEntity(entity_id=name, name=name) for name in names]


@dataclass(frozen=True)
class Fact:
    """An edge of the oracle; days, None = open."""

    edge_id: str
    source: str
    relation: str
    target: str
    valid_from: int | None
    valid_to: int | None

    def holds(self, day: float) -> bool:
        begun = self.valid_from is None or self.valid_from <= day
        return begun and (self.valid_to is None or day < self.valid_to)


def statement(fact: Fact) -> v1.GraphEdge:
    times = {"valid_from": fact.valid_from, "valid_to": fact.valid_to}
    return edge(fact.source, fact.relation, fact.target, edge_id=fact.edge_id, **times)


@dataclass
class Oracle:
    """What is known of a graph."""

    types: Mapping[str, str]
    facts: Mapping[str, Fact]

    def steps(self, day: float, relations: Sequence[str], types: Sequence[str], direction: int) -> Iterator[Any]:
        """Origin, edge, neighbour, and whether the neighbour has one of the types."""
        for fact in self.facts.values():
            if not fact.holds(day) or (relations and fact.relation not in relations):
                continue
            both = direction == v1.EDGE_DIRECTION_BOTH
            if both or direction == v1.EDGE_DIRECTION_OUT:
                yield fact.source, fact.edge_id, fact.target, not types or self.types[fact.target] in types
            if both or direction == v1.EDGE_DIRECTION_IN:
                yield fact.target, fact.edge_id, fact.source, not types or self.types[fact.source] in types

    def around(self, starts: Sequence[str], max_hops: int, *scope: Any) -> list[tuple[str, int, str]]:
        steps = [step[:3] for step in self.steps(*scope) if step[3]]
        found, frontier, visited = [], set(starts), set(starts)
        for hops in range(1, max_hops + 1):
            via: dict[str, str] = {}
            for origin, edge_id, neighbour in steps:
                if origin in frontier and neighbour not in visited:
                    via[neighbour] = min(via.get(neighbour, edge_id), edge_id)
            found += [(entity, hops, via[entity]) for entity in sorted(via)]
            frontier = set(via)
            visited |= frontier
        return found

    def paths(self, source: str, target: str, max_hops: int, *scope: Any) -> list[list[str]]:
        """Entities and edges in turn."""
        steps = [step[:3] for step in self.steps(*scope) if step[3] or step[2] in (source, target)]
        found: list[list[str]] = []

        def walk(path: list[str]) -> None:
            if path[-1] == target:
                found.append(path)
            elif len(path) // 2 < max_hops:
                for origin, edge_id, neighbour in steps:
                    if origin == path[-1] and neighbour not in path[::2]:
                        walk([*path, edge_id, neighbour])

        walk([source])
        # By entity and then edge at each place along the way.
        return sorted(found, key=lambda path: (len(path), list(zip(path[2::2], path[1::2], strict=True))))


def between(facts: Mapping[str, Fact], entities: set[str], day: float, relations: Sequence[str]) -> set[str]:
    return {
        fact.edge_id
        for fact in facts.values()
        if fact.holds(day) and {fact.source, fact.target} <= entities and (not relations or fact.relation in relations)
    }


async def random_history(graph: Graph, chance: random.Random, *, rounds: int) -> tuple[dict[str, str], list[Any]]:
    """Put and erase at random; answers the entities' types and what was known at some moments."""
    names = [f"e{index:02}" for index in range(14)]
    types = {name: chance.choice(["person", "place"]) for name in names}
    await graph.put(entities=[v1.GraphEntity(entity_id=name, type=types[name]) for name in names])
    known: dict[str, Fact] = {}
    history: list[tuple[int, dict[str, Fact]]] = []
    for _ in range(rounds):
        facts = {}
        for _ in range(8):
            begins = chance.choice([None, chance.randrange(50)])
            ends = chance.choice([None, (begins or 0) + chance.randrange(1, 50)])
            edge_id, relation = f"x{chance.randrange(60):02}", chance.choice(["knows", "likes", "near"])
            facts[edge_id] = Fact(edge_id, chance.choice(names), relation, chance.choice(names), begins, ends)
        await graph.put(*map(statement, facts.values()))
        known |= facts
        if chance.random() < 0.3:
            gone = chance.sample(sorted(known), 2)
            await graph.call("DeleteGraph", edge_ids=gone)
            for state in (known, *(state for _moment, state in history)):
                for edge_id in gone:
                    state.pop(edge_id, None)
        history.append((now(), dict(known)))
    return types, history


@pytest.mark.parametrize("seed", range(3))
async def test_random_graphs_answer_at_all_times_as_the_oracle_does(either: MemoryMesh, name: Name, seed: int) -> None:
    chance, graph = random.Random(seed), await new(either, name)
    types, history = await random_history(graph, chance, rounds=10)
    for _ in range(60):
        moment, facts = chance.choice([*history, (None, history[-1][1])])
        oracle, day = Oracle(types, facts), chance.randrange(-5, 105)
        relations = chance.choice([[], ["knows"], ["knows", "likes"]])
        wanted_types = chance.choice([[], [], ["person"]])
        direction = chance.choice([v1.EDGE_DIRECTION_BOTH, v1.EDGE_DIRECTION_OUT, v1.EDGE_DIRECTION_IN])
        scope = (day, relations, wanted_types, direction)
        sent = v1.GraphScope(
            as_of=stamp(day * DAY), recorded_as_of=stamp(moment), relations=relations, entity_types=wanted_types,
            direction=direction,
        )  # fmt: skip
        starts, hops = chance.sample(sorted(types), chance.randint(1, 2)), chance.randint(1, 4)
        limit = chance.choice([3, 100])

        near = oracle.around(starts, hops, *scope)
        answer = await graph.call("QueryNeighbours", entity_ids=starts, max_hops=hops, scope=sent, limit=limit)
        have = [(one.entity.entity_id, one.hops, one.via.edge_id) for one in answer.neighbours]
        assert (have, answer.truncated) == (near[:limit], len(near) > limit)

        part = [*starts, *(one for one, _hops, _via in near)]
        answer = await graph.call("QuerySubgraph", entity_ids=starts, max_hops=hops, scope=sent, limit=limit)
        assert [one.entity_id for one in answer.entities] == part[:limit]
        edges = [one.edge_id for one in answer.edges]
        assert sorted(edges) == sorted(between(facts, set(part[:limit]), day, relations))

        source, target = chance.sample(sorted(types), 2)
        paths = oracle.paths(source, target, hops, *scope)
        answer = await graph.call(
            "QueryPaths", source_id=source, target_id=target, max_hops=hops, scope=sent, limit=limit
        )
        walked = [
            [one for pair in zip(path.entities, [*path.edges, None], strict=True) for one in pair if one is not None]
            for path in answer.paths
        ]
        ids = [[getattr(one, "entity_id", "") or one.edge_id for one in path] for path in walked]
        assert (ids, answer.truncated) == (paths[:limit], len(paths) > limit)


async def test_the_same_statements_again_change_nothing(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name, "lives_in")
    given = people("a", "b", "c")
    statements = [
        edge("a", "knows", "b"),
        edge("a", "knows", "c", valid_from=3),
        edge("a", "lives_in", "b", valid_to=9),
    ]
    first = await graph.put(*statements, entities=given)
    assert (first.entities_written, first.edges_written) == (3, 3)
    again = await graph.put(*statements, entities=given)
    assert (again.entities_written, again.edges_written) == (0, 0)
    assert again.edge_ids == first.edge_ids
    facts = Struct()
    facts.update({"since": "school"})
    changed = await graph.put(edge("a", "knows", "b", properties=facts), entities=given)
    assert (changed.edges_written, changed.edge_ids) == (1, first.edge_ids[:1])


async def test_a_repeated_request_is_answered_as_before(mesh: MemoryMesh, name: Name) -> None:
    graph = await new(mesh, name)
    one = name()
    first = await graph.put(edge("a", "r", "b"), entities=people("a", "b"), request_id=one)
    assert await graph.put(edge("a", "r", "b"), entities=people("a", "b"), request_id=one) == first
    with pytest.raises(InvalidArgumentError, match="another body"):
        await graph.put(edge("a", "r", "b"), request_id=one)


async def test_a_new_value_ends_the_old_one_and_the_past_stays_readable(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name, "works_at")
    first = await graph.put(edge("ada", "works_at", "x", valid_from=10), entities=people("ada", "x", "y", "z"))
    before = now()
    second = await graph.put(edge("ada", "works_at", "y", valid_from=20), edge("ada", "knows", "z"))
    assert list(second.closed_edge_ids) == list(first.edge_ids)
    both = {"relations": ["works_at"]}
    assert await graph.targets("ada", **both) == ["y"]
    assert await graph.targets("ada", as_of=stamp(15 * DAY), **both) == ["x"]
    assert await graph.targets("ada", as_of=stamp(20 * DAY), **both) == ["y"]
    assert await graph.targets("ada", as_of=stamp(25 * DAY), recorded_as_of=stamp(before), **both) == ["x"]
    assert await graph.targets("ada", as_of=stamp(9 * DAY), **both) == []
    # An old statement that comes again, or later than a newer one, does not undo it.
    again = await graph.put(edge("ada", "works_at", "x", valid_from=10))
    assert (again.edges_written, list(again.closed_edge_ids)) == (0, [])
    await graph.put(edge("ada", "works_at", "z", valid_from=5))
    assert await graph.targets("ada", as_of=stamp(7 * DAY), **both) == ["z"]
    assert await graph.targets("ada", as_of=stamp(12 * DAY), **both) == ["x"]
    assert await graph.targets("ada", **both) == ["y"]


async def test_values_without_times_follow_one_another(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name, "likes_best")
    await graph.put(edge("ada", "likes_best", "x"), entities=people("ada", "x", "y"))
    one = now()
    second = await graph.put(edge("ada", "likes_best", "y"))
    two = now()
    third = await graph.put(edge("ada", "likes_best", "x"))
    assert list(third.closed_edge_ids) == list(second.edge_ids)
    assert await graph.targets("ada") == ["x"]
    assert [await graph.targets("ada", as_of=stamp(moment)) for moment in (one, two)] == [["x"], ["y"]]
    again = await graph.put(edge("ada", "likes_best", "x"))
    assert (again.edges_written, again.edge_ids) == (0, third.edge_ids)


async def test_an_edge_is_ended_by_saying_when(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name)
    first = await graph.put(edge("a", "r", "b", valid_from=1), entities=people("a", "b"))
    before = now()
    ended = await graph.put(edge("a", "r", "b", valid_to=5))
    assert (ended.edge_ids, ended.edges_written) == (first.edge_ids, 1)
    assert await graph.targets("a") == []
    assert await graph.targets("a", as_of=stamp(4 * DAY)) == ["b"]
    assert await graph.targets("a", as_of=stamp(6 * DAY), recorded_as_of=stamp(before)) == ["b"]
    answer = await graph.call("QuerySubgraph", entity_ids=["a"], scope=v1.GraphScope(as_of=stamp(DAY)))
    assert [moment_of(moment) for moment in (answer.edges[0].valid_from, answer.edges[0].valid_to)] == [DAY, 5 * DAY]


async def test_one_of_many_values_that_never_overlap_holds_at_any_time(either: MemoryMesh, name: Name) -> None:
    chance, graph = random.Random(7), await new(either, name, "lives_in")
    await graph.put(entities=people("ada", *(f"p{index}" for index in range(5))))
    for index in range(30):
        begins, ends = chance.randrange(40), chance.choice([None, 60])
        await graph.put(edge("ada", "lives_in", f"p{index % 5}", valid_from=begins, valid_to=ends))
        for day in range(0, 60, 7):
            places = await graph.targets("ada", as_of=stamp(day * DAY))
            assert len(places) <= 1
            if day == begins // 7 * 7 == begins:
                assert places == [f"p{index % 5}"]


async def test_ten_clients_at_once_leave_one_value(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name, "owner")
    await graph.put(entities=people("it", *"abcdefghij"))
    answers = await asyncio.gather(*(graph.put(edge("it", "owner", one)) for one in "abcdefghij"))
    assert sum(len(answer.closed_edge_ids) for answer in answers) == 9
    assert len(await graph.targets("it")) == 1


async def test_erased_entities_take_their_edges_and_their_past_with_them(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name)
    await graph.put(edge("a", "r", "b"), edge("b", "r", "c"), edge("a", "r", "c"), entities=people("a", "b", "c"))
    moment = now()
    gone = await graph.call("DeleteGraph", entity_ids=["b", "nobody"])
    assert (gone.entities_deleted, gone.edges_deleted) == (1, 2)
    gone = await graph.call("DeleteGraph", entity_ids=["b"])
    assert (gone.entities_deleted, gone.edges_deleted) == (0, 0)
    assert await graph.targets("a", recorded_as_of=stamp(moment)) == ["c"]
    answer = await graph.call("QuerySubgraph", text="b")
    assert not answer.entities


async def test_entities_are_found_by_words_without_case_and_accents(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name)
    entities = [
        v1.GraphEntity(entity_id="1", name="Émilie du Châtelet", type="person"),
        v1.GraphEntity(entity_id="2", name="Ada Lovelace", aliases=["Countess of Lovelace"], type="person"),
        v1.GraphEntity(entity_id="3", name="Ada Smith", type="person"),
        v1.GraphEntity(entity_id="4", name="東京", type="place"),
        v1.GraphEntity(entity_id="5", name="Straße des 17. Juni", type="place"),
        *(v1.GraphEntity(entity_id=f"the{index}", name=f"The Thing {index}") for index in range(20)),
    ]
    await graph.put(entities=entities)

    async def found(text: str, **scope: Any) -> list[str]:
        answer = await graph.call("QuerySubgraph", text=text, max_hops=0, scope=v1.GraphScope(**scope))
        return [one.entity_id for one in answer.entities]

    assert await found("who was EMILIE DU CHATELET?") == ["1"]
    assert await found("the ada lovelace engine") == ["2"]
    assert await found("ADA") == ["2", "3"]
    assert await found("Countess") == ["2"]
    assert await found("東京はどこ") == ["4"]
    assert await found("strasse") == ["5"]
    assert await found("ada", entity_types=["place"]) == []
    assert await found("?!. ") == []
    assert await found("' OR ''=' --") == []


def test_words_are_cut_where_scripts_cut_them() -> None:
    assert words_of("Crème-brûlée, 3½ x_y 東京 한국어") == [
        "creme",
        "brulee",
        "31",
        "2",
        "x",
        "y",
        "東",
        "京",
        "한국어",
    ]


async def test_renamed_entities_are_found_by_the_new_name_only(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name)
    for one in ("Old", "New"):
        await graph.put(entities=[v1.GraphEntity(entity_id="a", name=one)])
    answers = [await graph.call("QuerySubgraph", text=text) for text in ("old", "new")]
    assert [[one.name for one in answer.entities] for answer in answers] == [[], ["New"]]


async def test_entities_become_texts_for_hybrid_queries(mesh: MemoryMesh, name: Name) -> None:
    graph = await new(mesh, name)
    facts = Struct()
    facts.update({"born": 1815, "fields": ["maths", "poetry"]})
    ada = v1.GraphEntity(entity_id="ada", name="Ada", type="person", aliases=["Countess"], properties=facts)
    await graph.put(
        edge("ada", "knows", "charles", valid_from=0),
        edge("charles", "built", "engine", valid_from=1, valid_to=50_000),
        entities=[ada, *people("charles", "engine")],
    )
    bank = await mesh.node._banks.get(graph.bank_id, tenant="")
    reader = GraphReader(mesh.node._database)
    found = await chunks(reader, bank, text="ada", max_hops=2, limit=10)
    assert [(one.entity.entity_id, one.score) for one in found] == [("ada", 1.0), ("charles", 0.5), ("engine", 0.25)]
    assert found[0].text == (
        "Ada (person), also Countess\nborn: 1815\nfields: maths, poetry\nAda knows charles (from 1970-01-01)"
    )
    assert found[2].text == "engine\ncharles built engine (from 1970-01-02 to 2106-11-24)"
    assert [one.entity.entity_id for one in await chunks(reader, bank, entities=["engine"], max_hops=0)] == ["engine"]


@pytest.mark.parametrize(
    ("method", "fields", "words"),
    [
        ("PutGraph", {}, "give entities or edges"),
        ("PutGraph", {"entities": [v1.GraphEntity()]}, r"entities\[0\].entity_id is empty"),
        ("PutGraph", {"entities": [v1.GraphEntity(entity_id="a\1")]}, "cannot be printed"),
        ("PutGraph", {"entities": [v1.GraphEntity(entity_id="x" * 513)]}, "at most 512 are allowed"),
        ("PutGraph", {"entities": [*people("n"), v1.GraphEntity(entity_id="n")]}, "given twice"),
        ("PutGraph", {"edges": [edge("a", "", "a")]}, "relation is empty"),
        ("PutGraph", {"edges": [edge("a", "r", "nobody")]}, r"edges\[0\].target_id: the graph has no entity 'nobody'"),
        ("PutGraph", {"edges": [edge("a", "r", "a", valid_from=2, valid_to=2)]}, "ends before it begins"),
        *(
            (
                "PutGraph",
                {"edges": [v1.GraphEdge(source_id="a", relation="r", target_id="a", valid_from=moment)]},
                words,
            )
            for moment in (*(Timestamp(seconds=one) for one in (10**15, -(10**15), 2**63 - 1)), Timestamp(nanos=-5))
            for words in [r"edges\[0\].valid_from is no moment"]
        ),
        (
            "QueryNeighbours",
            {"entity_ids": ["a"], "scope": v1.GraphScope(as_of=Timestamp(seconds=2**62))},
            "scope.as_of is no moment",
        ),
        ("PutGraph", {"edges": [edge("a", "r", "a")] * 10_001}, "at most 10000"),
        ("DeleteGraph", {}, "give entity_ids or edge_ids"),
        ("QueryNeighbours", {}, "entity_ids is empty"),
        ("QueryNeighbours", {"entity_ids": ["a"] * 101}, "at most 100"),
        ("QueryNeighbours", {"entity_ids": ["a"], "max_hops": 6}, "max_hops is 6; allowed: 1 to 5"),
        ("QueryNeighbours", {"entity_ids": ["a"], "max_hops": 0}, "max_hops is 0"),
        ("QueryNeighbours", {"entity_ids": ["a"], "limit": 5001}, "limit is 5001"),
        ("QueryNeighbours", {"entity_ids": ["a"], "scope": v1.GraphScope(relations=[""])}, "scope.relations"),
        ("QueryPaths", {"source_id": "a"}, "target_id is empty"),
        ("QueryPaths", {"source_id": "a", "target_id": "a", "max_hops": 9}, "max_hops is 9"),
        ("QueryPaths", {"source_id": "a", "target_id": "a", "limit": 0}, "limit is 0"),
        ("QuerySubgraph", {}, "give entity_ids or text"),
        ("QuerySubgraph", {"entity_ids": ["a"], "text": "a"}, "give entity_ids or text"),
        ("QuerySubgraph", {"text": "a" * 10_001}, "10001 characters"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    mesh: MemoryMesh, name: Name, method: str, fields: dict[str, Any], words: str
) -> None:
    graph = await new(mesh, name)
    await graph.put(entities=people("a"))
    with pytest.raises(InvalidArgumentError, match=words):
        await graph.call(method, **fields)


async def test_a_refused_request_changes_nothing(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name, "r")
    await graph.put(edge("a", "r", "b"), entities=people("a", "b"))
    with pytest.raises(InvalidArgumentError, match="nobody"):
        await graph.put(edge("a", "r", "c"), edge("a", "r", "nobody"), entities=people("c"))
    with pytest.raises(InvalidArgumentError, match="say when it became true"):
        await graph.put(edge("a", "r", "c", valid_to=1), entities=people("c"))
    assert await graph.targets("a") == ["b"]
    with pytest.raises(NotFoundError, match="no entity 'c'"):
        await graph.neighbours("c")


async def test_paths_from_an_entity_to_itself_and_to_nowhere(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name)
    await graph.put(edge("a", "r", "a"), edge("a", "r", "b"), entities=people("a", "b", "c"))
    answer = await graph.call("QueryPaths", source_id="a", target_id="a")
    assert [len(path.entities) for path in answer.paths] == [1]
    assert not (await graph.call("QueryPaths", source_id="a", target_id="c")).paths
    with pytest.raises(NotFoundError, match="nobody"):
        await graph.call("QueryPaths", source_id="a", target_id="nobody")


async def test_a_hub_with_many_ways_answers_the_shortest_and_says_that_there_are_more(
    mesh: MemoryMesh, name: Name
) -> None:
    graph = await new(mesh, name)
    middle = [f"m{index:04}" for index in range(3000)]
    await graph.put(entities=people("a", "b", *middle))
    await graph.put(*(edge("a", "r", one) for one in middle), *(edge(one, "r", "b") for one in middle))
    await graph.put(*(edge(one, "s", other) for one, other in pairwise(middle)))
    answer = await graph.call("QueryPaths", source_id="a", target_id="b", max_hops=8, limit=5)
    assert answer.truncated
    assert [path.entities[1].entity_id for path in answer.paths] == middle[:5]
    assert {len(path.edges) for path in answer.paths} == {2}


async def test_other_kinds_of_banks_and_unknown_ones_are_refused(mesh: MemoryMesh, name: Name) -> None:
    bank = Graph(mesh, (await mesh.bank(name(), keyvalue={})).identifier)
    with pytest.raises(FailedPreconditionError, match="needs graph"):
        await bank.put(entities=people("a"))
    with pytest.raises(NotFoundError, match="nowhere"):
        await Graph(mesh, "nowhere").put(entities=people("a"))


async def test_tenants_never_see_each_others_graphs(either: MemoryMesh, name: Name) -> None:
    bank_id = name()
    request = v1.RegisterMemoryBankRequest(memory_bank_id=bank_id, params=v1.BankParams(graph=v1.GraphBankParams()))
    red, blue = (Graph(either, bank_id, tenant) for tenant in ("red", "blue"))
    for graph in (red, blue):
        await unary(either.banks.RegisterMemoryBank(request, metadata=graph.metadata))
    await red.put(edge("a", "r", "b"), entities=people("a", "b"))
    with pytest.raises(StackError):
        await blue.neighbours("a")
    await blue.put(entities=people("a"))
    assert await blue.neighbours("a") == []
    await blue.call("DeleteGraph", entity_ids=["a"])
    assert await red.targets("a") == ["b"]


async def test_an_unregistered_graph_leaves_nothing(either: MemoryMesh, name: Name) -> None:
    graph = await new(either, name)
    await graph.put(edge("a", "r", "b"), entities=people("a", "b"))
    await unary(graph.stub.UnregisterMemoryBank(v1.UnregisterMemoryBankRequest(memory_bank_id=graph.bank_id)))
    await either.bank(graph.bank_id, graph={})
    assert not (await graph.call("QuerySubgraph", text="a b")).entities

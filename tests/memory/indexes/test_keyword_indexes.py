"""Every index of words against BM25 in plain Python."""

import math
import random
import string
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llamastack import v1
from services.memory.analysis import Analyser
from services.memory.catalog import Catalog
from services.memory.chunks import Changes, Found, KeywordQuery, Phrase
from services.memory.database import Database
from services.memory.filters import Compare, Filter, Not, matches
from services.memory.index import LocalIndex
from services.memory.indexes.upkeep import trim_before
from stack_client.errors import InvalidArgumentError
from tests.memory.indexes.random_facts import facts, some_filter
from tests.memory.indexes.world import World

NOW = 1_000
OpenCatalog = Callable[..., Awaitable[Catalog]]
MakeWorld = Callable[..., Awaitable[World]]
VOCABULARY = [
    "run", "running", "runs", "dog", "dogs", "the", "of", "and", "a", "flow", "flows", "wing", "boundary", "layer",
    "layers", "heat", "transfer", "Résumé", "café", "naïve", "zürich", "mach", "number", "supersonic", "hypersonic",
    "NEAR", "OR", "NOT", "AND", "x2", "2024", "猫", "黒い猫", "한국어", "don't", "re-entry", "é", "well", "weather",
]  # fmt: skip
PARAMS = v1.BankParams(
    keyword=v1.KeywordBankParams(
        fields=[
            v1.KeywordField(name="content"),
            v1.KeywordField(name="title", boost=2.5),
            v1.KeywordField(name="a:b\"'"),
        ]
    )
)


@dataclass
class Setup:
    """One index over one database."""

    database: Database
    config: dict[str, Any]

    @property
    def local(self) -> bool:
        return bool(self.config["keyword_index"] == "tantivy")


@pytest.fixture(params=["fts5", "tsvector", "tantivy", "tantivy-postgresql"])
def setup(request: pytest.FixtureRequest) -> Setup:
    name = str(request.param)
    postgres = name in {"tsvector", "tantivy-postgresql"}
    database = request.getfixturevalue("postgres_database" if postgres else "sqlite_database")
    return Setup(database, {"keyword_index": name.removesuffix("-postgresql")})


class Oracle:
    """What a bank answers, computed chunk by chunk by the definition in `index`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.analyser = Analyser("en")
        self.names = list(world.bank.keyword_fields)
        self.words = {number: [self._tokens(row, name) for name in self.names] for number, row in world.held.items()}
        self.count = max(len(self.words), 1)
        self.average = [
            sum(len(fields[place]) for fields in self.words.values()) / self.count for place in range(len(self.names))
        ]

    def query(self, query: KeywordQuery, *, where: Filter | None, now: int) -> list[Found]:
        found = []
        for number, row in self.world.held.items():
            alive = row.get("expires_at") is None or row["expires_at"] > now
            if alive and matches(where, row.get("facts", {})) and self.matches(query, number):
                found.append(Found(number, sum(self.shares(query, number).values())))
        return sorted(found, key=lambda one: (-round(one.score, 9), one.number))

    def matches(self, query: KeywordQuery, number: int) -> bool:
        fields = [self.words[number][self.names.index(name)] for name in (query.fields or self.names)]
        stems = {token.stem for field in fields for token in field}
        text = self._telling(query)
        if any(stem in stems for word in query.excluded for stem in self._stems(word)):
            return False
        if any(stem not in stems for word in query.required for stem in self._stems(word)):
            return False
        for phrase in query.phrases:
            where = [self.words[number][self.names.index(phrase.field)]] if phrase.field else fields
            wanted = self._stems(phrase.text)
            if wanted and not any(
                self._phrase([token.stem for token in field], wanted, phrase.slop) for field in where
            ):
                return False
        prefixes = [tokens for prefix in query.prefixes if (tokens := self.analyser.tokens(prefix))]
        if prefixes and not any(self._begins(field, tokens) for tokens in prefixes for field in fields):
            return False
        demanding = prefixes or any(map(self._stems, query.required)) or any(self._stems(p.text) for p in query.phrases)
        return bool(demanding) or any(stem in stems for stem in text)

    def shares(self, query: KeywordQuery, number: int) -> dict[str, float]:
        result: dict[str, float] = {}
        for (text, prefix), places in self._scored(query).items():
            for place in places:
                name = self.names[place]
                times = self._times(number, place, text, prefix=prefix)
                if times:
                    holding = sum(bool(self._times(other, place, text, prefix=prefix)) for other in self.words)
                    boost = query.fields.get(name, self.world.bank.keyword_fields[name])
                    idf = math.log(1 + (len(self.words) - holding + 0.5) / (holding + 0.5))
                    length = len(self.words[number][place]) / self.average[place]
                    share = boost * idf * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length))
                    result[text] = result.get(text, 0) + share
        return result

    def _scored(self, query: KeywordQuery) -> dict[tuple[str, bool], set[int]]:
        everywhere = {self.names.index(name) for name in (query.fields or self.names)}
        result: dict[tuple[str, bool], set[int]] = {}
        stops = set()
        given = [(query.text, everywhere), *((word, everywhere) for word in query.required)]
        given += [(p.text, {self.names.index(p.field)} if p.field else everywhere) for p in query.phrases]
        for text, places in given:
            for token in self.analyser.tokens(text):
                result.setdefault((token.stem, False), set()).update(places)
                if self.analyser.is_stop_word(token.form):
                    stops.add((token.stem, False))
        for prefix in query.prefixes:
            if tokens := self.analyser.tokens(prefix):
                result.setdefault((tokens[-1].form, True), set()).update(everywhere)
        return {key: places for key, places in result.items() if key not in stops} or result

    def _telling(self, query: KeywordQuery) -> set[str]:
        return {stem for stem in self._stems(query.text) if (stem, False) in self._scored(query)}

    def _times(self, number: int, place: int, text: str, *, prefix: bool) -> int:
        tokens = self.words[number][place]
        if prefix:
            return int(any(token.form.startswith(text) for token in tokens))
        return sum(token.stem == text for token in tokens)

    def _begins(self, field: list[Any], tokens: list[Any]) -> bool:
        stems = {token.stem for token in field}
        return any(token.form.startswith(tokens[-1].form) for token in field) and all(
            token.stem in stems for token in tokens[:-1]
        )

    @staticmethod
    def _phrase(stems: list[str], wanted: list[str], slop: int) -> bool:
        def ends(place: int, rest: list[str]) -> list[int]:
            if not rest:
                return [place]
            following = [n for n in range(place + 1, len(stems)) if stems[n] == rest[0]]
            return [end for n in following[:1] for end in ends(n, rest[1:])]

        starts = [n for n, stem in enumerate(stems) if stem == wanted[0]]
        return any(end - start + 1 - len(wanted) <= slop for start in starts for end in ends(start, wanted[1:]))

    def _stems(self, text: str) -> list[str]:
        return [token.stem for token in self.analyser.tokens(text)]

    def _tokens(self, row: dict[str, Any], name: str) -> list[Any]:
        text = row.get("text", "") if name == "content" else row.get("metadata", {}).get(name, "")
        return self.analyser.tokens(text)


def sentence(rng: random.Random, longest: int = 30) -> str:
    words = rng.choices(VOCABULARY, weights=[1 / (n + 1) for n in range(len(VOCABULARY))], k=rng.randint(0, longest))
    return rng.choice([" ", "  ", ", ", "-", "\n"]).join(words)


def row(rng: random.Random) -> dict[str, Any]:
    metadata = {name: sentence(rng, 5) for name in ("title", "a:b\"'") if rng.random() < 0.6}
    expires_at = rng.choice([None, None, None, NOW - 1, NOW, NOW + 1])
    return {"text": sentence(rng), "metadata": metadata, "facts": facts(rng), "expires_at": expires_at}


def some_query(rng: random.Random) -> KeywordQuery:
    def maybe(chance: float, make: Callable[[], Any]) -> list[Any]:
        return [make() for _ in range(rng.randint(1, 2))] if rng.random() < chance else []

    def phrase() -> Phrase:
        field = rng.choice(["", "", "content", "title"])
        return Phrase(
            text=" ".join(rng.choices(VOCABULARY[:12], k=rng.randint(1, 3))), slop=rng.choice([0, 0, 1, 3]), field=field
        )

    fields: dict[str, float] = rng.choice([{}, {}, {"title": 1.0}, {"content": 0.5, "title": 3.0}])
    return KeywordQuery(
        text=sentence(rng, 6) if rng.random() < 0.8 else "",
        fields=fields,
        phrases=maybe(0.25, phrase),
        prefixes=maybe(0.2, lambda: rng.choice(["ru", "w", "boun", "the b", "hyper", "ré", "猫", "zz", "re-en"])),
        required=maybe(0.2, lambda: rng.choice(VOCABULARY[:10])),
        excluded=maybe(0.2, lambda: rng.choice(VOCABULARY)),
    )


async def check(
    world: World, query: KeywordQuery, *, limit: int, where: Filter | None = None, now: int = NOW, explain: bool = False
) -> int:
    """A query answers what the definition does; how many match."""
    index = await world.catalog.keyword(world.bank)
    found, total = await index.query(query, limit=limit, where=where, now=now)
    oracle = Oracle(world)
    wanted = oracle.query(query, where=where, now=now)
    assert total == len(wanted), query
    assert len(found) == min(limit, len(wanted))
    assert [one.score for one in found] == pytest.approx([one.score for one in wanted[: len(found)]], abs=1e-6), query
    assert [one.number for one in sorted(found, key=lambda one: (-round(one.score, 6), one.number))] == [
        one.number for one in found
    ]
    scores = {one.number: one.score for one in wanted}
    for one in found:
        assert one.score == pytest.approx(scores[one.number], abs=1e-6)
    if explain and found:
        shares = await index.terms(query, found[0].number)
        assert sum(shares.values()) == pytest.approx(found[0].score, abs=1e-6)
        assert len(shares) == len(oracle.shares(query, found[0].number))
    return total


async def test_queries_answer_what_the_definition_says(
    setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    rng = random.Random(3)
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config), params=PARAMS)
    await check(world, KeywordQuery(text="dog"), limit=5)  # empty
    for count in (1, 2, 60, 120):
        await world.add([row(rng) for _ in range(count)])
        for _ in range(20):
            await check(world, some_query(rng), limit=rng.choice([1, 5, 500]), explain=True)
    for _ in range(40):
        await check(world, some_query(rng), limit=rng.choice([1, 5, 500]), where=some_filter(rng))


async def test_removed_chunks_count_no_more(setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld) -> None:
    rng = random.Random(4)
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config), params=PARAMS)
    for _ in range(5):
        await world.add([row(rng) for _ in range(40)])
        await world.remove(rng.sample(sorted(world.held), 25))
        for _ in range(8):
            await check(world, some_query(rng), limit=rng.choice([3, 500]))
    index = await world.catalog.keyword(world.bank)
    if isinstance(index, LocalIndex):
        await index.apply(Changes(revision=await index.position(), removed=[1 << 40]))
    await check(world, KeywordQuery(text="run dog flow"), limit=500)


TEXTS = [
    *string.punctuation, "", "   ", '"', '""""', "'", "AND", "NEAR(dog, 5)", "dog AND", "* OR", "content:dog", "s0:dog",
    "{a b}:c", "^dog", "dog*", "\x00", "😀", "\ud800", "__", "-", "%", ":x", "dog & !cat | (bird <-> fish):*", "\\",
    "a'b\\'c", "the", "of the and",
]  # fmt: skip


async def test_any_text_is_a_query(setup: Setup, shared_world: World) -> None:
    for text in TEXTS:
        for query in (
            KeywordQuery(text=text),
            KeywordQuery(phrases=[Phrase(text=text), Phrase(text=f"the {text} dog", slop=2)]),
            KeywordQuery(text="dog", prefixes=[text], required=[text], excluded=[text]),
            KeywordQuery(text=f"What does{text}the dog{text}run?"),
        ):
            await check(shared_world, query, limit=5)


@pytest.fixture
async def shared_world(setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld) -> World:
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config), params=PARAMS)
    rng = random.Random(5)
    await world.add([{"text": "the dog runs, of course and the cat"}, *(row(rng) for _ in range(10))])
    return world


async def test_ten_thousand_words_are_searched_by_the_rarest(setup: Setup, shared_world: World) -> None:
    await shared_world.add([{"text": "quaint zebra"}])
    text = " ".join(["dog", "zebra", *(f"word{number}" for number in range(10_000))])
    index = await shared_world.catalog.keyword(shared_world.bank)
    found, _ = await index.query(KeywordQuery(text=text), limit=3, where=None, now=NOW)
    assert found[0].number == max(shared_world.held)
    phrase = KeywordQuery(phrases=[Phrase(text=text)], required=[text])
    assert await index.query(phrase, limit=3, where=None, now=NOW) == ([], 0)


async def test_a_word_of_many_occurrences_counts_them_all(setup: Setup, shared_world: World) -> None:
    for times in (11, 12, 13, 254, 255, 256, 700):
        await shared_world.add([{"text": "dog " * times + "sees cat"}])
    await check(shared_world, KeywordQuery(text="dog"), limit=100)
    await check(shared_world, KeywordQuery(phrases=[Phrase(text="dog sees cat")]), limit=100)
    await check(
        shared_world, KeywordQuery(phrases=[Phrase(text="dog dog dog"), Phrase(text="cat dog", slop=1)]), limit=100
    )


async def test_one_with_all_words_is_better_than_one_with_a_single_word(
    setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config))
    texts = ["heat of the wing", "heat transfer in a boundary layer", "a boundary", "nothing of it"]
    numbers = await world.add([{"text": text} for text in texts])
    index = await world.catalog.keyword(world.bank)
    found, total = await index.query(
        KeywordQuery(text="What is the heat transfer of boundary layers?"), limit=10, where=None, now=NOW
    )
    assert found[0].number == numbers[1]
    assert total == 3
    assert all(one.score > 0 for one in found)


async def test_every_selectivity_answers_as_many_as_there_are(
    setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld
) -> None:
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config))
    rng = random.Random(6)
    await world.add([{"text": "dog " + sentence(rng, 6), "facts": {"n": n}} for n in range(300)])
    for matching in (1, 2, 60, 299, 300):
        for where in (Compare("lt", "n", float(matching)), Not(Compare("gte", "n", float(matching)))):
            for limit in (1, 10, 1000):
                assert await check(world, KeywordQuery(text="dog wing"), limit=limit, where=where) == matching


async def test_a_restart_a_second_replica_and_lost_files_change_nothing(
    setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld, tmp_path: Path
) -> None:
    rng = random.Random(7)
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config), params=PARAMS)
    await world.add([row(rng) for _ in range(50)])
    await check(world, some_query(rng), limit=100)
    other = world.seen_by(await open_catalog(setup.database, **setup.config))
    await other.add([row(rng) for _ in range(20)])
    await world.remove(rng.sample(sorted(world.held), 20))
    for one in (world, other):
        for _ in range(5):
            await check(one, some_query(rng), limit=100)
    for harm in ("none", "gone", "damaged"):
        await world.catalog.__aexit__(None, None, None)
        for path in sorted((tmp_path / "indexes" / "0").rglob("*"), reverse=True):
            if harm == "damaged" and path.is_file():
                path.write_bytes(b"\x00damaged" * 3)
            elif harm == "gone":
                path.rmdir() if path.is_dir() else path.unlink()
        world = world.seen_by(await open_catalog(setup.database, **setup.config))
        await world.add([row(rng) for _ in range(5)])
        for _ in range(5):
            await check(world, some_query(rng), limit=100)


async def test_trimmed_removals_are_not_missed(setup: Setup, open_catalog: OpenCatalog, make_world: MakeWorld) -> None:
    rng = random.Random(9)
    world = await make_world(setup.database, await open_catalog(setup.database, **setup.config))
    await world.add([row(rng) for _ in range(40)])
    await check(world, KeywordQuery(text="run"), limit=100)
    await world.remove(sorted(world.held)[:20])
    async with setup.database.write() as connection:
        await trim_before(connection, world.bank, revision=2)
    await check(world, KeywordQuery(text="run"), limit=100)


async def test_a_field_that_is_not_searched_is_refused_by_name(setup: Setup, shared_world: World) -> None:
    index = await shared_world.catalog.keyword(shared_world.bank)
    for query in (
        KeywordQuery(text="x", fields={"colour": 1.0}),
        KeywordQuery(phrases=[Phrase(text="x", field="colour")]),
    ):
        with pytest.raises(InvalidArgumentError, match="no field 'colour'"):
            await index.query(query, limit=1, where=None, now=NOW)


async def test_a_dropped_bank_leaves_nothing(setup: Setup, shared_world: World, tmp_path: Path) -> None:
    await check(shared_world, KeywordQuery(text="dog"), limit=5)
    await shared_world.erase()
    assert [path for path in (tmp_path / "indexes" / "0").rglob("*") if path.is_file()] == []

"""Random facts, and random filters that meet them."""

import random
from typing import Any

from services.memory.filters import And, Compare, Filter, Not, Operator, Or, facts_of

KEYS = ["year", "name", "tags", "open", "mixed", 'a"b', "c.d[0]", "$e'", "käse", "back\\slash", "sp ace"]
VALUES: list[Any] = [
    0, -0.0, 1, int(float(1234567890123456789)), 1999, 2000.5, -int(1e23), 0.1, int(1e300), 1714557600.123456,
    "", "a", "A", "ab", "b", "Ada", "é", "z", "Ω", "😀", "1", "true", "it's", 'quo"te', "null", "back\\slash",
    True, False,
    [], ["a"], ["a", "b"], ["b", 1, True], [int(1e300), 2.5], [["a"]], ["é", "Ω"],
    {"a": "a"}, {"deep": {"b": 1}},
]  # fmt: skip
SCALARS = [value for value in VALUES if not isinstance(value, list | dict)]
OPERATORS: list[Operator] = ["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "exists"]


def facts(rng: random.Random) -> dict[str, Any]:
    return stored({key: rng.choice(VALUES) for key in KEYS if rng.random() < 0.6})


def stored(metadata: dict[str, Any]) -> dict[str, Any]:
    """Facts as banks keep them."""
    return facts_of(metadata, fields={}, field="metadata")


def some_filter(rng: random.Random, *, depth: int = 0) -> Filter:
    if depth < 3 and rng.random() < 0.4:
        kind = rng.randrange(3)
        if kind == 2:
            return Not(some_filter(rng, depth=depth + 1))
        inner = tuple(some_filter(rng, depth=depth + 1) for _ in range(rng.randint(1, 3)))
        return And(inner) if kind == 0 else Or(inner)
    return comparison(rng, rng.choice(OPERATORS), rng.choice([*KEYS, "missing"]))


def comparison(rng: random.Random, operator: Operator, key: str) -> Compare:
    if operator == "exists":
        return Compare(operator, key, rng.random() < 0.5)
    if operator in {"in", "nin"}:
        return Compare(operator, key, tuple(_scalar(rng) for _ in range(rng.randint(0, 4))))
    return Compare(operator, key, _scalar(rng))


def _scalar(rng: random.Random) -> Any:
    value = rng.choice(SCALARS)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

"""JSON Schemas of strangers."""

from typing import Any

import pytest

from services.tools.arguments import fitted
from services.tools.faults import FaultError
from services.tools.schemas import compiled
from stack_client.errors import InvalidArgumentError


def check(schema: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return fitted(arguments, compiled(schema))


@pytest.mark.parametrize(
    ("schema", "given", "fits"),
    [
        ({"type": "integer"}, "10", 10),
        ({"type": "integer"}, "-3", -3),
        ({"type": "number"}, "1.5", 1.5),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": "string"}, 10, "10"),
        ({"type": "string"}, True, "true"),
        ({"type": "array", "items": {"type": "integer"}}, '["1", 2]', [1, 2]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "7", 7),
        ({"$ref": "#/$defs/n"}, "7", 7),
        ({"type": "string"}, "10", "10"),
    ],
)
def test_values_that_say_the_same_are_taken(schema: dict[str, Any], given: Any, fits: Any) -> None:
    whole = {"properties": {"x": schema}, "$defs": {"n": {"type": "integer"}}}
    assert check(whole, {"x": given}) == {"x": fits}


@pytest.mark.parametrize(
    ("schema", "given"),
    [
        ({"type": "integer"}, "ten"),
        ({"type": "integer"}, "1.5"),
        ({"type": "integer"}, "010"),
        ({"type": "integer"}, "1" * 200),
        ({"type": "number"}, "0.1234567890123456789"),
        ({"type": "number"}, "1e999"),
        ({"type": "boolean"}, "yes"),
        ({"type": "boolean"}, 1),
        ({"type": "array"}, "1, 2"),
        ({"type": "object"}, "[1]"),
    ],
)
def test_nothing_is_taken_that_would_lose_something(schema: dict[str, Any], given: Any) -> None:
    with pytest.raises(FaultError) as caught:
        check({"properties": {"x": schema}}, {"x": given})
    assert caught.value.schema_path == ["/x"]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": 1}, "not valid"),
        ({"properties": {"x": {"$ref": "https://evil.example/schema.json"}}}, "not fetched"),
        ({"properties": {"x": {"$ref": "file:///etc/passwd"}}}, "not fetched"),
        ({"properties": {"x": {"$ref": "#/$defs/nothing"}}}, "not in it"),
    ],
)
def test_schemas_that_cannot_be_used_are_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        compiled(schema)


def test_a_schema_that_refers_to_itself_ends() -> None:
    with pytest.raises(FaultError, match="refers to itself"):
        check({"$ref": "#"}, {"x": 1})


def test_patterns_run_in_linear_time() -> None:
    evil = "a" * 50_000 + "!"
    with pytest.raises(FaultError, match="does not match"):
        check({"properties": {"x": {"pattern": "^(a+)+$"}}}, {"x": evil})
    names = {"patternProperties": {"^(a+)+$": False}}
    assert check(names, {evil: 1}) == {evil: 1}
    with pytest.raises(FaultError, match="there is no argument"):
        check({**names, "additionalProperties": False}, {evil: 1})


def test_patterns_that_are_not_understood_are_left_to_the_tool() -> None:
    assert check({"properties": {"x": {"type": "string", "pattern": "(?=a)b"}}}, {"x": "c"}) == {"x": "c"}


def test_at_most_five_faults_are_told_and_pointers_are_escaped() -> None:
    names = [f"a/{n}~" for n in range(8)]
    with pytest.raises(FaultError, match="and 3 more") as caught:
        check({"properties": {name: {"type": "integer"} for name in names}}, dict.fromkeys(names, "x"))
    assert caught.value.schema_path[0] == "/a~10~0"
    assert len(caught.value.message) < 2000


def test_deep_arguments_are_refused_and_do_no_harm() -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    schema = {"$defs": {"t": {"items": {"$ref": "#/$defs/t"}}}, "properties": {"x": {"$ref": "#/$defs/t"}}}
    with pytest.raises(FaultError, match="cannot be used"):
        check(schema, {"x": deep})

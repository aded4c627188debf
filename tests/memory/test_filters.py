"""What filters mean, and what is refused."""

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value

from llamastack import v1
from services.memory.filters import Compare, Not, declared, facts_of, matches, parse
from stack_client.errors import InvalidArgumentError

FACTS = {"year": 1999.0, "name": "Ada", "tags": ["a", "b"], "open": True, "none": {"deep": 1}}


def comparison(operator: str, key: str, value: Any = None) -> v1.MetadataFilter:
    message = v1.ComparisonFilter(type=v1.FilterOperator.Value(f"FILTER_OPERATOR_{operator.upper()}"), key=key)
    if value is not None:
        json_format.ParseDict(value, message.value)
    return v1.MetadataFilter(comparison=message)


@pytest.mark.parametrize(
    ("operator", "key", "value", "expected"),
    [
        ("eq", "year", 1999, True),
        ("eq", "year", "1999", False),
        ("eq", "open", 1, False),
        ("eq", "tags", "b", True),
        ("ne", "tags", "b", False),
        ("ne", "missing", 3, True),
        ("nin", "missing", [3], True),
        ("in", "name", ["Bob", "Ada"], True),
        ("gt", "name", "AbC", True),
        ("gt", "year", "1000", False),
        ("lte", "year", 1999, True),
        ("lt", "tags", "z", False),
        ("exists", "none", True, True),
        ("exists", "missing", False, True),
        ("exists", "missing", None, False),
        ("in", "name", [], False),
    ],
)
def test_comparisons_follow_the_written_rules(operator: str, key: str, value: Any, expected: bool) -> None:
    wanted = parse(comparison(operator, key, value), fields={}, field="filter")
    assert matches(wanted, FACTS) is expected
    assert wanted is not None
    assert matches(Not(wanted), FACTS) is not expected


def test_a_declared_time_is_compared_as_a_moment() -> None:
    fields = declared([v1.MetadataField(name="day", type=v1.METADATA_FIELD_TYPE_TIME)])
    facts = facts_of({"day": "2024-05-01T12:00:00+02:00"}, fields=fields, field="metadata")
    assert parse(comparison("eq", "day", "2024-05-01T10:00:00Z"), fields=fields, field="filter") == Compare(
        "eq", "day", facts["day"]
    )


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (comparison("eq", "colour", 1), "declares no 'colour'"),
        (comparison("eq", "year", "x"), "declared as a number"),
        (comparison("in", "year", 3), "takes a list"),
        (comparison("gt", "", 3), "key is empty"),
        (
            v1.MetadataFilter(
                comparison=v1.ComparisonFilter(
                    type=v1.FILTER_OPERATOR_EQ, key="year", value=Value(number_value=float("inf"))
                )
            ),
            "finite",
        ),
        (v1.MetadataFilter(compound=v1.CompoundFilter(type=v1.COMPOUND_OPERATOR_AND)), "allowed: 1 to"),
    ],
)
def test_what_no_bank_could_answer_is_refused_by_name(message: v1.MetadataFilter, words: str) -> None:
    fields = declared([v1.MetadataField(name="year", type=v1.METADATA_FIELD_TYPE_NUMBER)])
    with pytest.raises(InvalidArgumentError, match=words):
        parse(message, fields=fields, field="filter")


def test_a_filter_of_too_many_comparisons_or_values_is_refused_with_the_bound() -> None:
    def compound(*inner: v1.MetadataFilter) -> v1.MetadataFilter:
        kind = v1.COMPOUND_OPERATOR_AND
        return v1.MetadataFilter(compound=v1.CompoundFilter(type=kind, filters=inner))

    hundred = compound(*[comparison("eq", "year", 1)] * 100)
    assert parse(compound(*[hundred] * 5), fields={}, field="filter") is not None
    with pytest.raises(InvalidArgumentError, match="more than 500 comparisons"):
        parse(compound(*[hundred] * 5, comparison("eq", "year", 1)), fields={}, field="filter")
    many = comparison("in", "year", [float(number) for number in range(5001)])
    with pytest.raises(InvalidArgumentError, match="more than 10000 values"):
        parse(compound(many, many), fields={}, field="filter")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2024-05-01t10:00:00z", "2024-05-01T10:00:00Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T23:59:60.5+00:00", "2017-01-01T00:00:00.5Z"),
    ],
)
def test_every_form_of_rfc_3339_is_a_moment(text: str, same: str) -> None:
    fields = declared([v1.MetadataField(name="day", type=v1.METADATA_FIELD_TYPE_TIME)])
    facts = [facts_of({"day": one}, fields=fields, field="metadata") for one in (text, same)]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("text", ["2024-W01", "20240101", "2024-01-01", "2024-01-01T10", "2024-13-01T10:00:00Z", ""])
def test_what_is_no_date_and_time_of_rfc_3339_is_refused(text: str) -> None:
    fields = declared([v1.MetadataField(name="day", type=v1.METADATA_FIELD_TYPE_TIME)])
    with pytest.raises(InvalidArgumentError, match="RFC 3339"):
        facts_of({"day": text}, fields=fields, field="metadata")

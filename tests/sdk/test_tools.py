"""Python functions as tools: the schema that a model sees, and what becomes of its calls."""

import asyncio
import dataclasses
import json
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal

import pydantic
import pytest

from llamastack import v1
from stack_client import content
from stack_client.errors import InvalidArgumentError
from stack_client.tools import FunctionTool, parse_docstring


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Order(pydantic.BaseModel):
    item: str
    count: int = pydantic.Field(default=1, ge=1)


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    properties: dict[str, Any] = FunctionTool(function).schema["properties"]
    return properties


async def respond(function: Callable[..., Any], arguments: str) -> v1.ToolResponse:
    call = v1.ToolCall(call_id="call_1", tool_name=function.__name__, arguments_json=arguments)
    return await FunctionTool(function).respond(call, run=asyncio.to_thread)


async def answer(function: Callable[..., Any], **arguments: object) -> str:
    return content.text_of((await respond(function, json.dumps(arguments))).content)


def test_the_definition_has_name_description_and_schema() -> None:
    def get_weather(city: str, days: int = 1) -> str:
        """The weather of a city.

        Args:
            city: Name of the city.
            days: How many days ahead.
        """
        return f"{city} {days}"

    definition = FunctionTool(get_weather).definition()
    assert definition.name == "get_weather"
    assert definition.description == "The weather of a city."
    assert FunctionTool(get_weather).schema == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city."},
            "days": {"type": "integer", "default": 1, "description": "How many days ahead."},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_hints_become_schemas() -> None:
    def tool(  # noqa: PLR0917 (one of each)
        maybe: str | None,
        numbers: list[int],
        unit: Literal["c", "f"],
        color: Color,
        point: Point,
        order: Order,
        share: Annotated[float, pydantic.Field(le=1)] = 0.5,
    ) -> None: ...

    schema = FunctionTool(tool).schema
    properties = schema["properties"]
    assert properties["maybe"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert properties["numbers"] == {"type": "array", "items": {"type": "integer"}}
    assert properties["unit"] == {"type": "string", "enum": ["c", "f"]}
    assert schema["$defs"]["Color"]["enum"] == ["red", "blue"]
    assert schema["$defs"]["Point"]["required"] == ["x"]
    assert schema["$defs"]["Order"]["properties"]["count"]["minimum"] == 1
    assert properties["share"] == {"type": "number", "maximum": 1, "default": 0.5}
    assert schema["required"] == ["maybe", "numbers", "unit", "color", "point", "order"]


def test_a_function_without_parameters_has_an_empty_object() -> None:
    def now() -> str:
        return ""

    assert FunctionTool(now).schema == {"type": "object", "properties": {}, "additionalProperties": False}


async def test_arguments_arrive_as_the_types_of_the_hints() -> None:
    seen: list[object] = []

    def tool(color: Color, point: Point, order: Order, numbers: list[int], unit: Literal["c"] = "c") -> str:
        seen.extend([color, point, order, numbers, unit])
        return "ok"

    text = await answer(tool, color="red", point={"x": 1}, order={"item": "tea", "count": 2}, numbers=[1, 2])
    assert text == "ok"
    assert seen == [Color.RED, Point(1, 0), Order(item="tea", count=2), [1, 2], "c"]


async def test_parameters_may_have_names_that_models_of_pydantic_cannot() -> None:
    def tool(schema: str, json: int, _hidden: bool, model_config: str, field_0: str, copy: str = "c") -> str:
        return f"{schema} {json} {_hidden} {model_config} {field_0} {copy}"

    assert list(describe(tool)) == ["schema", "json", "_hidden", "model_config", "field_0", "copy"]
    assert await answer(tool, schema="s", json=1, _hidden=True, model_config="m", field_0="f") == "s 1 True m f c"


async def test_asynchronous_functions_are_awaited() -> None:
    async def tool(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    assert await answer(tool, x=1) == "2"


async def test_a_method_is_a_tool() -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self, count: int) -> int:
            """Add to the counter."""
            self.count += count
            return self.count

    counter = Counter()
    assert await answer(counter.add, count=3) == "3"
    assert counter.count == 3


async def test_results_become_json_unless_they_are_text() -> None:
    def point() -> Point:
        return Point(1, 2)

    def order() -> Order:
        return Order(item="tea")

    def nothing() -> None:
        return None

    def text() -> str:
        return "plain"

    assert json.loads(await answer(point)) == {"x": 1, "y": 2}
    assert json.loads(await answer(order)) == {"item": "tea", "count": 1}
    assert await answer(nothing) == "null"
    assert await answer(text) == "plain"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"city": "Oslo", "days": "many"}', "days: Input should be a valid integer"),
        ("{}", "city: Field required"),
        ('{"city": "Oslo", "country": "NO"}', "country: Extra inputs are not permitted"),
        ('{"city": ', "arguments: Invalid JSON"),
        ('["Oslo"]', "arguments: Input should be an object"),
    ],
)
async def test_wrong_arguments_are_answered_not_raised(arguments: str, said: str) -> None:
    def get_weather(city: str, days: int = 1) -> str:
        raise AssertionError("must not be called")

    response = await respond(get_weather, arguments)
    assert said in content.text_of(response.content)
    assert response.metadata["error"] is True
    assert (response.call_id, response.tool_name) == ("call_1", "get_weather")


async def test_a_raising_tool_is_answered_not_raised() -> None:
    def tool() -> str:
        raise RuntimeError("the sensor is broken")

    response = await respond(tool, "{}")
    assert content.text_of(response.content) == "RuntimeError: the sensor is broken"
    assert response.metadata["error"] is True


async def test_arguments_without_their_json_are_read_from_the_struct() -> None:
    def tool(count: int) -> int:
        return count

    call = v1.ToolCall(call_id="1", tool_name="tool", arguments=content.struct({"count": 3}))
    response = await FunctionTool(tool).respond(call, run=asyncio.to_thread)
    assert content.text_of(response.content) == "3"


def no_hint(x) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001
def positional_only(x: int, /) -> None: ...
def variadic(*x: int) -> None: ...
def unknown_hint(x: "Missing") -> None: ...  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_hint, "parameter 'x' needs a type hint"),
        (positional_only, "parameter 'x' must be one that can be given by name"),
        (variadic, "parameter 'x' must be one that can be given by name"),
        (unknown_hint, "a type hint cannot be resolved: name 'Missing'"),
        (lambda: None, "it has no name"),
    ],
)
def test_a_function_that_no_model_could_call_is_refused(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        FunctionTool(function)


GOOGLE = """Look something up.

Searches everywhere.

Args:
    query (str): What to look for,
        in any language.
        note: not a parameter.
    limit:
        How many results.
    **options: More.

Returns:
    The results: a list.
"""
SPHINX = """Look something up.

Searches everywhere.

:param str query: What to look for,
    in any language. note: not a parameter.
:param limit: How many results.
:type limit: int
:param options: More.
:returns: The results: a list.
"""


@pytest.mark.parametrize("docstring", [GOOGLE, SPHINX], ids=["google", "sphinx"])
def test_docstrings_are_read(docstring: str) -> None:
    description, parameters = parse_docstring(docstring)
    assert description == "Look something up.\n\nSearches everywhere."
    assert parameters == {
        "query": "What to look for, in any language. note: not a parameter.",
        "limit": "How many results.",
        "options": "More.",
    }


def test_a_docstring_of_one_line_is_the_description() -> None:
    assert parse_docstring("Roll a die.") == ("Roll a die.", {})
    assert parse_docstring("") == ("", {})

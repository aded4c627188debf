# ruff: noqa: E501 - a case a line reads best
import json
from typing import Any

import pytest

from services.llama.messages import ToolCall, ToolPromptFormat
from services.llama.tool_formats import calls_text
from services.llama.tool_parser import parse_tool_calls

NAMES = ("get_weather", "brave_search", "files.read", "code_interpreter")


def _parsed(text: str, **options: Any) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    rest, calls = parse_tool_calls(text, tool_names=NAMES, **options)
    assert len({call.call_id for call in calls}) == len(calls)
    return rest, [(call.tool_name, json.loads(call.arguments_json)) for call in calls]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('brave_search.call(query="gold price")', [("brave_search", {"query": "gold price"})]),
        ('brave_search.call(query="who said "hi (all)" first")', [("brave_search", {"query": 'who said "hi (all)" first'})]),
        (r'brave_search.call(query="a \"b\" c")', [("brave_search", {"query": 'a "b" c'})]),
        ('{"type": "function", "name": "get_weather", "parameters": {"city": "SF"}}', [("get_weather", {"city": "SF"})]),
        ('{"name": "get_weather", "arguments": {"city": {"a": [1, null]}}}', [("get_weather", {"city": {"a": [1, None]}})]),
        ('{"name": "get_weather", "arguments": "{\\"city\\": \\"SF\\"}"}', [("get_weather", {"city": "SF"})]),
        ('{"type": "function", "name": "get_weather"}', [("get_weather", {})]),
        ('{"type": "function", "function": {"name": "get_weather", "parameters": {}}}', [("get_weather", {})]),
        ("<function=get_weather>{\"city\": \"L'Aquila\", \"x\": [{}]}</function>", [("get_weather", {"city": "L'Aquila", "x": [{}]})]),
        ("[get_weather(city='SF', ok=True, n=null), get_weather(city=\"B\", x={'a': (1, -2.5)})]",
         [("get_weather", {"city": "SF", "ok": True, "n": None}), ("get_weather", {"city": "B", "x": {"a": [1, -2.5]}})]),
        ("[files.read(path='[a](b)]')]", [("files.read", {"path": "[a](b)]"})]),
        ("[get_weather()]", [("get_weather", {})]),
        ('```json\n{"name": "get_weather", "parameters": {"city": "SF"}}\n```', [("get_weather", {"city": "SF"})]),
        ('<tool_call>{"name": "get_weather", "arguments": {"n": "5"}}</tool_call>', [("get_weather", {"n": "5"})]),
        ('{"name": "get_weather", "parameters": {"n": 1}}; {"name": "get_weather", "parameters": {"n": 2}}',
         [("get_weather", {"n": 1}), ("get_weather", {"n": 2})]),
        ('{"name": "get_weather", "parameters": {"n": 1, "n": 123456789012345678901234567890}}',
         [("get_weather", {"n": 123456789012345678901234567890})]),
    ],
)  # fmt: skip
def test_calls_are_read_in_every_form(text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert _parsed(text) == ("", calls)


@pytest.mark.parametrize(
    "text",
    [
        "Just an answer.",
        '{"name": "Ada", "parameters": {"born": 1815}}',
        '{"name": "get_weather", "born": 1815}',
        '{"name": "get_weather", "parameters": [1]}',
        '{"people": [{"name": "get_weather", "parameters": {}}]}',
        '{"name": "get_weather", "parameters": {"x": NaN}}',
        '{"name": "get_weather", "parameters": {"city": "S',
        '<function=get_weather>{"city": "SF"}',
        "[get_weather(city='SF'",
        "[get_weather('SF')]",
        "[get_weather(city=open('x'))]",
        "[other(a=1)]",
        "[1, 2] and (3)",
        'other.call(query="x")',
        'You could write brave_search.call(query="x") here.',
        "[" * 5000,
        '{"a":' * 5000,
    ],
)
def test_all_else_is_text(text: str) -> None:
    assert _parsed(text) == (text, [])


def test_without_declared_tools_everything_is_text() -> None:
    text = '{"name": "get_weather", "parameters": {}}'
    assert parse_tool_calls(text, tool_names=()) == (text, [])


def test_text_around_a_call_is_kept() -> None:
    assert _parsed('Let me see.\n<function=get_weather>{"n": 1}</function>\nDone.') == (
        "Let me see.\n\nDone.",
        [("get_weather", {"n": 1})],
    )


def test_python_after_the_python_tag_is_for_the_code_interpreter() -> None:
    assert _parsed("print(1)", python_tag=True) == ("", [("code_interpreter", {"code": "print(1)"})])
    assert _parsed("print(1)") == ("print(1)", [])


@pytest.mark.parametrize("form", ["json", "function_tag", "python_list"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"city": "São \"Paulo\"\n\\ 'x'"},
        {"a": {"b": [1, 2.5, None, True]}, "emoji": "👍"},
        {"n": -3, "s": "])}</function>"},
    ],
)
def test_what_is_written_into_the_history_is_read_back(form: ToolPromptFormat, arguments: dict[str, Any]) -> None:
    call = ToolCall(call_id="1", tool_name="get_weather", arguments_json=json.dumps(arguments))
    text = calls_text([call, call], tools=(), tool_prompt_format=form)
    assert _parsed(text) == ("", [("get_weather", arguments)] * 2)

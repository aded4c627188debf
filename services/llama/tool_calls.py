"""Read what a finished call says: names and arguments, from JSON, Python literals and the built-in form.

Numbers sent as strings stay strings, the last of two equal keys counts, integers are exact however long. What JSON
cannot say (NaN, numbers beyond the range of doubles) is no argument, and the text no call.
"""

import ast
import json
import math
import re
import uuid
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from services.llama.messages import ToolCall

Read = list[tuple[str, dict[str, Any]]]
"""Names and arguments of calls."""
Span = tuple[str, int, int]
"""A keyword, and where its value lies in the text."""

MOST_DEPTH = 30
"""Brackets inside each other at most: the protos carry arguments as a Struct, whose readers stop at 100 messages, and
an object in an object is three."""
_WORDS = {"true": True, "false": False, "null": None}
_BUILTIN = re.compile(r'\s*([\w.\-]+)\.call\(\s*query\s*=\s*"')
_BUILTIN_END = re.compile(r'"\s*\)\s*')


def new_call(name: str, arguments: dict[str, Any]) -> ToolCall:
    """A call with a fresh id. Halves of characters, which no message can carry, become U+FFFD."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return ToolCall(call_id=f"call_{uuid.uuid4().hex[:24]}", tool_name=name, arguments_json=text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond the range of numbers")
    return value


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer)


def json_arguments(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; no text is one without members. None for anything else."""
    value = json_value(text) if text.strip() else {}
    return value if isinstance(value, dict) else None


def json_value(text: str) -> Any:  # noqa: ANN401 - JSON
    """The JSON value that a text is; None for none."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def json_calls(text: str, *, shape_is_enough: bool = False) -> Read | None:
    """The calls that a JSON object or a list of them says; None if one of them is no call.

    Args:
        text: the JSON.
        shape_is_enough: whether what stands around has said that it is a call, so that it may lack its parameters.
    """
    value = json_value(text)
    items = value if isinstance(value, list) else [value]
    calls = [_json_call(item, shape_is_enough=shape_is_enough) for item in items]
    return [call for call in calls if call] if calls and all(calls) else None


def _json_call(value: object, *, shape_is_enough: bool) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(value, dict):
        return None
    if value.get("type") == "function" and isinstance(value.get("function"), dict):
        value = {"type": "function", **value["function"]}
    name = value.get("name")
    arguments = value.get("parameters", value.get("arguments"))
    if isinstance(arguments, str):
        arguments = json_arguments(arguments)
    elif arguments is None and (shape_is_enough or value.get("type") == "function"):
        arguments = {}
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def builtin_call(line: str) -> Read | None:
    """The call that a line like `NAME.call(query="...")` is; the query runs to the last quote."""
    head = _BUILTIN.fullmatch(line, 0, line.find('"') + 1)
    last = line.rfind('"')
    if head is None or last < head.end() or not _BUILTIN_END.fullmatch(line, last):
        return None
    query = line[head.end() : last]
    if (len(query) - len(query.rstrip("\\"))) % 2:
        return None  # the last quote is an escaped one
    return [(head[1], {"query": _unquoted(query)})]


def _unquoted(query: str) -> str:
    """The text of a JSON string; of one with other escapes or bare quotes inside, as far as it can be made out."""
    try:
        return str(json.loads(f'"{query}"'))
    except ValueError:
        return re.sub(r'\\(["\\])', r"\1", query)


def python_calls(text: str, calls: Sequence[tuple[str, Sequence[Span]]]) -> Read | None:
    """The calls in a Python list of them, whose values lie where `calls` says; None if a value is no literal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about doubtful escapes in the model's strings
            return [(name, {key: _literal(text[start:end]) for key, start, end in spans}) for name, spans in calls]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _literal(text: str) -> Any:  # noqa: ANN401 - JSON
    value = _value(ast.parse(text.strip(), mode="eval").body)
    json.dumps(value, allow_nan=False)
    return value


def _value(node: ast.expr) -> Any:  # noqa: ANN401 - JSON
    """A literal, in Python's or in JSON's spelling."""
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {str(_value(key)): _value(item) for key, item in zip(node.keys, node.values, strict=True) if key}
    value = ast.literal_eval(node)
    if isinstance(value, int) and not isinstance(value, bool):
        _finite(str(value))
    return value

"""Read the tool calls in a model's finished answer.

All the Llama 3 forms are understood whichever was asked for, since models mix them; the guard against false alarms is
that the name must be a declared tool and the shape complete. Everything else is ordinary text.
"""

import ast
import json
import math
import re
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn

from services.llama.messages import ToolCall, ToolPromptFormat
from services.llama.tool_prompts import CODE_INTERPRETER

Found = tuple[int, int, list[tuple[str, dict[str, Any]]]]
"""Where calls begin and end in the text, and their names and arguments."""

_FUNCTION_TAG = re.compile(r"<function=([\w.\-]+)>\s*")
_FUNCTION_END = re.compile(r"\s*</function>")
_PYTHON_LIST = re.compile(r"\[\s*([A-Za-z_][\w.]*)\s*\(")
# A line that is nothing but the call; the query runs to the last quote before the closing bracket.
_BUILTIN = re.compile(
    r'^[ \t]*(\w+)\.call\(\s*query\s*=\s*"((?:[^"\\\n]|\\.|"(?!\)[ \t]*$))*)"\s*\)[ \t]*$', re.MULTILINE
)
# What stands around and between calls without saying anything.
_WRAPPING = re.compile(r"</?tool_call>|```(?:json|python|tool_code)?|[\s;,\[\]]+")
_LEAD = re.compile(r"\s*(?:<tool_call>\s*|```(?:json)?\s*)?")
_LONGEST = 100_000  # characters of a Python list that are given to the parser
_WORDS = {"true": True, "false": False, "null": None}


def parse_tool_calls(
    text: str,
    *,
    tool_names: Collection[str],
    tool_prompt_format: ToolPromptFormat | None = None,
    python_tag: bool = False,
) -> tuple[str, list[ToolCall]]:
    """Split an answer into its text and its calls.

    Args:
        text: the whole answer, special tokens left out.
        tool_names: tools that were declared; with none, everything is text.
        tool_prompt_format: the form asked for, looked for first unless the answer begins in another one.
        python_tag: whether the answer began with Llama 3's python tag. What is then not a call of another form is
            Python for the code interpreter, if that is declared.

    Returns:
        The text outside the calls, and the calls in order, with fresh ids.
    """
    if not tool_names:
        return text, []
    readers: dict[str, Callable[[str, Collection[str]], Iterator[Found]]] = {
        "function_tag": _function_tags, "python_list": _python_lists, "builtin": _builtins, "json": _json_objects,
    }  # fmt: skip
    begun = _form_of(text)  # or calls of other forms inside its strings would be taken for calls
    order = sorted(readers, key=lambda name: (name != begun, name != tool_prompt_format))
    for name in order:
        if found := list(readers[name](text, tool_names)):
            calls = [_call(tool, arguments) for _, _, group in found for tool, arguments in group]
            return _outside(text, found), calls
    if python_tag and CODE_INTERPRETER in tool_names and text.strip():
        return "", [_call(CODE_INTERPRETER, {"code": text})]
    return text, []


def _form_of(text: str) -> str:
    """The form that an answer begins in; "" for none."""
    start = _LEAD.match(text)
    rest = text[start.end() :] if start else text
    forms = (("json", r"\[?\s*\{"), ("function_tag", "<function="), ("python_list", r"\["), ("builtin", r"\w+\.call\("))
    return next((form for form, opening in forms if re.match(opening, rest)), "")


def _call(name: str, arguments: dict[str, Any]) -> ToolCall:
    text = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(call_id=f"call_{uuid.uuid4().hex[:24]}", tool_name=name, arguments_json=text)


def _outside(text: str, found: list[Found]) -> str:
    """The text around the calls; nothing where only brackets, fences and blanks are left."""
    pieces, at = [], 0
    for start, end, _ in found:
        pieces.append(text[at:start])
        at = end
    pieces.append(text[at:])
    return "".join(piece for piece in pieces if _WRAPPING.sub("", piece)).strip()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond the range of numbers")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _object_at(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """The JSON object that begins at `start`, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return (value, end) if isinstance(value, dict) else None


def _function_tags(text: str, tool_names: Collection[str]) -> Iterator[Found]:
    at = 0
    while tag := _FUNCTION_TAG.search(text, at):
        at = tag.end()
        read = _object_at(text, tag.end())
        end = read and _FUNCTION_END.match(text, read[1])
        if read and end and tag[1] in tool_names:
            yield tag.start(), end.end(), [(tag[1], read[0])]
            at = end.end()


def _builtins(text: str, tool_names: Collection[str]) -> Iterator[Found]:
    for match in _BUILTIN.finditer(text):
        if match[1] in tool_names:
            quoted = match[0][match[0].index('"') : match[0].rindex('"') + 1]
            yield match.start(), match.end(), [(match[1], {"query": _unquoted(quoted)})]


def _unquoted(quoted: str) -> str:
    """The text of a JSON string; of one with other escapes or bare quotes inside, as far as it can be made out."""
    try:
        return str(json.loads(quoted))
    except ValueError:
        return re.sub(r'\\(["\\])', r"\1", quoted[1:-1])


def _json_objects(text: str, tool_names: Collection[str]) -> Iterator[Found]:
    at = text.find("{")
    while at != -1:
        read = _object_at(text, at)
        if read and (call := _json_call(read[0], tool_names)):
            yield at, read[1], [call]
        # An object that is no call is skipped whole: what looks like a call inside it is data.
        at = text.find("{", read[1] if read else at + 1)


def _json_call(value: dict[str, Any], tool_names: Collection[str]) -> tuple[str, dict[str, Any]] | None:
    if value.get("type") == "function" and isinstance(value.get("function"), dict):
        value = {"type": "function", **value["function"]}
    name = value.get("name")
    if not isinstance(name, str) or name not in tool_names:
        return None
    arguments = value.get("parameters", value.get("arguments"))
    if isinstance(arguments, str):
        read = _object_at(arguments.strip(), 0)
        arguments = read[0] if read else arguments
    if arguments is None and value.get("type") == "function":
        arguments = {}
    return (name, arguments) if isinstance(arguments, dict) else None


def _python_lists(text: str, tool_names: Collection[str]) -> Iterator[Found]:
    at = 0
    while match := _PYTHON_LIST.search(text, at):
        at = match.end()
        if match[1] not in tool_names:
            continue
        for bracket in re.finditer(r"\)\s*\]", text[match.start() : match.start() + _LONGEST]):
            end = match.start() + bracket.end()
            calls = _python_calls(text[match.start() : end])
            if calls and all(name in tool_names for name, _ in calls):
                yield match.start(), end, calls
                at = end
                break


def _python_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls in a Python list of them; empty for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about doubtful escapes in the model's strings
            tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List):
            return []
        return [_python_call(node) for node in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _python_call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call by keywords")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("** is no keyword")
        arguments[keyword.arg] = _value(keyword.value)
    json.dumps(arguments, allow_nan=False)  # sets, bytes and the like are no arguments
    return ast.unparse(node.func), arguments


def _value(node: ast.expr) -> Any:  # noqa: ANN401 - JSON
    """A literal, in Python's or in JSON's spelling."""
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        if any(key is None for key in node.keys):
            raise ValueError("** is no key")
        return {str(_value(key)): _value(item) for key, item in zip(node.keys, node.values, strict=True) if key}
    return ast.literal_eval(node)

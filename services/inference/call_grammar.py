"""Grammars of tool calls: of a call that the caller demands, and of an answer that may be a call or text.

What a grammar lets pass, `services.llama.tool_parser` reads back, with arguments that obey the tool's schema.
"""

import json
import keyword
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llguidance import LLMatcher

from services.inference.constraints import WHITE_SPACE, check_grammar, check_schema
from services.inference.engine.request import Calls
from services.llama.messages import ToolDefinition, ToolPromptFormat
from services.llama.tool_formats import TOOL_FORMATS
from services.llama.tool_openings import BLANK, FUNCTION_KEY, NAME_KEY, TYPE_KEY, AnyName, Opening, openings
from services.llama.tool_prompts import BUILTIN_TOOLS, CODE_INTERPRETER
from stack_client.errors import UnsupportedError

ArgumentKey = Literal["arguments", "parameters"]
"""The key under which a family's JSON calls carry the arguments: Llama 3 writes `parameters`, others `arguments`."""

# What a schema may say for its properties to be a Python call's keywords, and a string's to be any text.
_KEYWORD_SCHEMA = {
    "type", "properties", "required", "additionalProperties", "title", "description", "$defs", "definitions", "$schema",
}  # fmt: skip
# What lets arguments be listed elsewhere than in `properties`, or allows others by itself.
_OPEN_SCHEMA = {"additionalProperties", "patternProperties", "anyOf", "oneOf", "allOf", "$ref"}
_ANY_STRING = {"type", "title", "description", "default", "examples"}


@dataclass(frozen=True)
class _Tool:
    """A tool in a grammar; the names of its rules carry its number."""

    number: int
    name: str
    schema: Mapping[str, Any]

    @property
    def properties(self) -> Mapping[str, Any]:
        return self.schema.get("properties") or {}

    @property
    def required(self) -> frozenset[str]:
        return frozenset(self.schema.get("required") or ())

    @property
    def pythonic(self) -> bool:
        """Whether a Python call's keywords can be its arguments."""
        return (
            self.schema.keys() <= _KEYWORD_SCHEMA
            and self.required <= self.properties.keys()
            and all(map(_is_identifier, (*self.name.split("."), *self.properties)))
        )

    @property
    def builtin(self) -> bool:
        """Whether Llama 3 was trained to call it as `NAME.call(query="...")`, and that obeys its schema."""
        return self.name in BUILTIN_TOOLS - {CODE_INTERPRETER} and self._takes_alone("query")

    @property
    def runs_code(self) -> bool:
        """Whether any text after Llama 3's python tag is a call of it."""
        return (
            self.name == CODE_INTERPRETER
            and self._takes_alone("code")
            and self.properties["code"].keys() <= _ANY_STRING
        )

    def _takes_alone(self, argument: str) -> bool:
        """Whether a string under this name is all that it needs."""
        schema = self.properties.get(argument)
        is_text = isinstance(schema, Mapping) and schema.get("type") == "string"
        return self.pythonic and self.required <= {argument} and is_text

    def value(self, name: str) -> str:
        """The grammar of one argument. The escapes in JSON's strings mean the same in Python's."""
        definitions = {key: self.schema[key] for key in ("$defs", "definitions") if key in self.schema}
        schema = self.properties[name]
        return _json({**definitions, **schema} if isinstance(schema, Mapping) else schema)


def demanded_call(
    tools: Sequence[ToolDefinition],
    *,
    choice: str,
    argument_key: ArgumentKey,
    tool_prompt_format: ToolPromptFormat,
    python_tag: int | None = None,
    several: bool = True,
) -> str:
    """The grammar of a call of any tool where `choice` is required, else of the one that it names.

    It is one call, or in a Python list one or more.

    Args:
        tools: All tools of the request.
        choice: `required` or a tool's name.
        argument_key: Of the model's family.
        tool_prompt_format: The form of the call.
        python_tag: Id of Llama 3's python tag, which may stand before JSON and Python lists there.
        several: Whether a Python list may have several calls.

    Raises:
        InvalidArgumentError: If a tool's schema cannot be compiled.
        UnsupportedError: If a tool cannot be called in this form.
    """
    wanted = [tool for tool in _checked(tools) if choice in {"required", tool.name}]
    form = TOOL_FORMATS[tool_prompt_format]
    tag = _optional_tag(python_tag) if form.tagged else ""
    rules = [f"args{tool.number}: {_json(tool.schema)}" for tool in wanted]
    match tool_prompt_format:
        case "function_tag":
            call = _any(_function_tag(tool) for tool in wanted)
        case "python_list":
            for tool in wanted:
                if not tool.pythonic:
                    field = f"tools[{tool.number}]"
                    message = f"{field}: {tool.name} cannot be written as a Python call; use tool_prompt_format json"
                    raise UnsupportedError(message, field=field)
            rules = [rule for tool in wanted for rule in _python_rules(tool)]
            calls = [_python_call(tool) for tool in wanted]
            call = _listed(calls, several=several and form.several)
        case "json":
            typed = TYPE_KEY if argument_key == "parameters" else ()
            named = _any(_named(tool, argument_keys=[argument_key]) for tool in wanted)
            call = f'{_lark(("{", BLANK, *typed, *NAME_KEY))} {named} BLANK "}}"'
    return _grammar(f"{tag} {call}", rules)


def offered_calls(tools: Sequence[ToolDefinition], *, python_tag: int | None = None, several: bool = True) -> Calls:
    """What a model may answer that is free to call tools, in whichever form it begins to.

    Args:
        tools: All tools of the request.
        python_tag: Id of Llama 3's python tag, where the model has one.
        several: Whether an answer may have several calls.

    Raises:
        InvalidArgumentError: If a tool's schema cannot be compiled.
    """
    known = _checked(tools)
    tag = _optional_tag(python_tag)
    begun = openings(
        [tool.name for tool in known],
        python_names=[tool.name for tool in known if tool.pythonic],
        builtin_names=[tool.name for tool in known if tool.builtin],
    )
    forms, rules = _offered_forms(known, several=several)
    # Without forcing: else a call that the model spells in unusual tokens would pass for text, and go on as it likes.
    rules.append('%llguidance {"no_forcing": true}')
    calls = _grammar(f"{tag} BLANK {_any(forms)} BLANK", rules)
    # What follows the tag and is no call of another form is code.
    text = _grammar(
        f"{tag if any(tool.runs_code for tool in known) else ''} TEXT",
        [f"BEGUN: {' | '.join(map(_lark, begun))}", r"TEXT: /(.|\n)*/ & ~(BEGUN /(.|\n)*/)"],
    )
    return Calls(calls=calls, text=text)


def _offered_forms(known: Sequence[_Tool], *, several: bool) -> tuple[list[str], list[str]]:
    """Every form of one call, or of several too, and the rules that they need."""

    def repeated(form: str, between: str) -> str:
        return f"{form} (BLANK {between} {form})*" if several else form

    named = _any(_named(tool, argument_keys=["parameters", "arguments"]) for tool in known)
    forms = [
        repeated("object", "/[;,]/ BLANK"),
        '("```json" | "```") BLANK object BLANK "```"',
        "objects",
        repeated("hermes", ""),
        repeated("tagged", '(";" BLANK)?'),
    ]
    rules = [
        *(f"args{tool.number}: {_json(tool.schema)}" for tool in known),
        f"plain: {_lark(NAME_KEY)} {named}",
        f'nested: {_lark(FUNCTION_KEY)} plain BLANK "}}"',
        f'object: "{{" BLANK (plain | {_lark(TYPE_KEY)} (plain | nested)) BLANK "}}"',
        f"objects: {_listed(['object'], several=several)}",
        'hermes: "<tool_call>" BLANK (object | objects) BLANK "</tool_call>"',
        f"tagged: {_any(map(_function_tag, known))}",
    ]
    pythonic = [tool for tool in known if tool.pythonic]
    if pythonic:
        forms.append(_listed(map(_python_call, pythonic), several=several))
        rules += [rule for tool in pythonic for rule in _python_rules(tool)]
    for tool in known:
        if tool.builtin:
            forms.append(f'{json.dumps(f"{tool.name}.call(query=")} query{tool.number} ")"')
            rules.append(f"query{tool.number}: {tool.value('query')}")
    return forms, rules


def _checked(tools: Sequence[ToolDefinition]) -> list[_Tool]:
    """The tools; where a schema lists its arguments and does not say otherwise, it allows no others."""
    known = []
    for number, tool in enumerate(tools):
        schema = {"type": "object", **tool.parameters}
        if not schema.keys() & _OPEN_SCHEMA:
            schema["additionalProperties"] = False
        check_schema(schema, field=f"tools[{number}].input_schema")
        known.append(_Tool(number, tool.name, schema))
    return known


def _grammar(start: str, rules: Iterable[str]) -> str:
    lines = [f"start: {start}", rf"BLANK: /{WHITE_SPACE}/", *rules]
    return check_grammar(LLMatcher.grammar_from_lark("\n".join(lines)), field="tools")


def _lark(atoms: Opening) -> str:
    """An opening as a part of a rule."""
    parts = []
    for atom in atoms:
        if atom is BLANK:
            parts.append("BLANK")
        else:
            assert not isinstance(atom, AnyName)  # a grammar knows its tools
            parts.append(_any(json.dumps(option) for option in ((atom,) if isinstance(atom, str) else atom)))
    return " ".join(parts)


def _any(alternatives: Iterable[str]) -> str:
    return f"({' | '.join(alternatives)})"


def _optional_tag(python_tag: int | None) -> str:
    return "" if python_tag is None else f"<[{python_tag}]>?"


def _json(schema: object) -> str:
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    assert isinstance(schema, Mapping)
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': WHITE_SPACE}})}"


def _named(tool: _Tool, *, argument_keys: Sequence[str]) -> str:
    """What follows `"name":` in a JSON call."""
    keys = tuple(json.dumps(key) for key in argument_keys)
    return f"{_lark((json.dumps(tool.name), BLANK, ',', BLANK, keys, BLANK, ':', BLANK))} args{tool.number}"


def _function_tag(tool: _Tool) -> str:
    return f'{json.dumps(f"<function={tool.name}>")} args{tool.number} "</function>"'


def _listed(items: Iterable[str], *, several: bool) -> str:
    item = _any(items)
    more = f'(BLANK "," BLANK {item})*' if several else ""
    return f'"[" BLANK {item} {more} BLANK "]"'


def _python_call(tool: _Tool) -> str:
    return f'{json.dumps(f"{tool.name}(")} keywords{tool.number} ")"'


def _python_rules(tool: _Tool) -> list[str]:
    """Rules of a call's keywords, in the order of the schema; those that are not required may be left out."""
    names, number = list(tool.properties), tool.number
    rules = [f"value{number}_{place}: {_python_argument(tool, name)}" for place, name in enumerate(names)]
    for place, name in enumerate(names):
        item = f'BLANK "," BLANK value{number}_{place}'
        after = f"more{number}_{place + 1}" if place + 1 < len(names) else ""
        rules.append(f"more{number}_{place}: {item if name in tool.required else f'({item})?'} {after}")
    first = next((place for place, name in enumerate(names) if name in tool.required), len(names) - 1)
    heads = [
        f"value{number}_{place} " + (f"more{number}_{place + 1}" if place + 1 < len(names) else "")
        for place in range(first + 1)
    ]
    optional = "" if tool.required else "?"
    rules.append(f"keywords{number}: {_any(heads)}{optional}" if heads else f'keywords{number}: ""')
    return rules


def _python_argument(tool: _Tool, name: str) -> str:
    """`name=value`; the value is JSON, of which Python reads all but three words, which may be Python's too."""
    schema = tool.properties[name]
    kinds = _kinds(schema)
    words = [word for word, kind in (("True", "boolean"), ("False", "boolean"), ("None", "null")) if kind in kinds]
    value = _any([tool.value(name), *map(json.dumps, words)]) if words else tool.value(name)
    return f"{json.dumps(f'{name}=')} {value}"


def _kinds(schema: object) -> set[str]:
    """Types that a schema allows without further conditions."""
    if not isinstance(schema, Mapping) or schema.keys() & {"enum", "const", "allOf", "not"}:
        return set()
    kinds = schema.get("type", ())
    found = {kinds} if isinstance(kinds, str) else set(kinds)
    return found.union(*map(_kinds, schema.get("anyOf", ())))


def _is_identifier(name: str) -> bool:
    """Whether Python reads it back as a name, unchanged."""
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name

"""What an answer must look like, as a grammar: response formats, and tool calls that the caller demands.

Everything is checked here, before the request reaches the engine, so that a fault is named where it is.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from llguidance import LLMatcher

from llamastack import v1
from services.inference import dialog
from services.llama.messages import ToolDefinition, ToolPromptFormat
from stack_client.errors import InvalidArgumentError, UnsupportedError

WHITE_SPACE = r"[ \t\n]{0,12}"
ArgumentKey = Literal["arguments", "parameters"]
"""The key under which a family's JSON calls carry the arguments: Llama 3 writes `parameters`, others `arguments`."""


def format_grammar(request: v1.ResponseFormat) -> str:
    """The grammar of a response format.

    Raises:
        InvalidArgumentError: If schema, expression or grammar cannot be compiled; `field` is the path of the fault.
        UnsupportedError: For grammars in Llama Stack's untyped `bnf` form, which was never specified.
    """
    match request.WhichOneof("format"):
        case "json_schema":
            return _schema_grammar(dialog.schema_of(request.json_schema), field="response_format.json_schema")
        case "json_object":
            return _schema_grammar({"type": "object"}, field="response_format.json_object")
        case "regex":
            return _checked(LLMatcher.grammar_from_regex(request.regex), field="response_format.regex")
        case "choice":
            return _choice_grammar(request.choice.choices)
        case "grammar" if request.grammar.lark:
            grammar = LLMatcher.grammar_from_lark(request.grammar.lark)
            return _checked(grammar, field="response_format.grammar.lark")
        case "grammar":
            field = "response_format.grammar.bnf"
            raise UnsupportedError(f"{field}: this form was never specified; give the grammar as lark", field=field)
        case _:
            raise InvalidArgumentError(
                "response_format is empty; set json_schema, json_object, regex, choice or grammar",
                reason="MISSING_FIELD",
                field="response_format",
            )


def call_grammar(
    tools: Sequence[ToolDefinition], *, choice: str, argument_key: ArgumentKey, tool_prompt_format: ToolPromptFormat
) -> str:
    """The grammar of one call of a tool: of any tool where `choice` is required, else of the one that it names.

    Raises:
        InvalidArgumentError: If a tool's schema cannot be compiled.
        UnsupportedError: For Python lists, whose grammar is not built yet.
    """
    if tool_prompt_format == "python_list":
        field = "tool_config.tool_prompt_format"
        raise UnsupportedError(f"{field}: python_list calls cannot be forced yet; use json", field=field)
    places = [place for place, tool in enumerate(tools) if choice in {"required", tool.name}]
    for place in places:
        _schema_grammar(_arguments(tools[place]), field=f"tools[{place}].input_schema")
    wanted = [tools[place] for place in places]
    if tool_prompt_format == "function_tag":
        lines = [
            f'call{n}: {json.dumps(f"<function={tool.name}>")} %json {json.dumps(_arguments(tool))} "</function>"'
            for n, tool in enumerate(wanted)
        ]
        start = " | ".join(f"call{n}" for n in range(len(wanted)))
        return LLMatcher.grammar_from_lark(f"start: {start}\n" + "\n".join(lines))
    calls = [_json_call(tool, argument_key=argument_key) for tool in wanted]
    return _compile({"anyOf": calls} if len(calls) > 1 else calls[0])


def _json_call(tool: ToolDefinition, *, argument_key: ArgumentKey) -> dict[str, Any]:
    properties = {"name": {"const": tool.name}, argument_key: _arguments(tool)}
    if argument_key == "parameters":
        properties = {"type": {"const": "function"}, **properties}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _arguments(tool: ToolDefinition) -> dict[str, Any]:
    """The tool's schema; where it does not say otherwise, no arguments but the declared ones."""
    return {"type": "object", "additionalProperties": False, **tool.parameters}


def _choice_grammar(choices: Sequence[str]) -> str:
    if not choices or not all(choices):
        field = "response_format.choice.choices"
        raise InvalidArgumentError(f"{field}: give at least one choice, none of them empty", field=field)
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in choices))


def _schema_grammar(schema: Mapping[str, Any], *, field: str) -> str:
    grammar = _compile(schema)
    fault = _fault(grammar)
    if fault:
        path = _locate(schema, fault)
        where = ".".join([field, *path])
        raise InvalidArgumentError(f"{where}: {fault}", field=where)
    return grammar


def _compile(schema: Mapping[str, Any]) -> str:
    """The grammar of a schema. White space is bounded, or a small model could go on with it to the token limit."""
    grammar: str = LLMatcher.grammar_from_json_schema(dict(schema), defaults={"whitespace_pattern": WHITE_SPACE})
    return grammar


def _checked(grammar: str, *, field: str) -> str:
    fault = _fault(grammar)
    if fault:
        raise InvalidArgumentError(f"{field}: {fault}", field=field)
    return grammar


@lru_cache(maxsize=256)
def _fault(grammar: str) -> str:
    """Why a grammar cannot be compiled; "" if it can."""
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return messages[0].strip() if is_error else ""


def _locate(schema: object, fault: str) -> list[str]:
    """Path of the innermost part of a schema that has the same fault by itself."""
    parts: list[tuple[str, object]] = []
    if isinstance(schema, Mapping):
        parts = [(str(key), value) for key, value in schema.items()]
    elif isinstance(schema, list):
        parts = [(str(place), value) for place, value in enumerate(schema)]
    for key, value in parts:
        if isinstance(value, Mapping) and _fault(_compile(value)) == fault:
            return [key, *_locate(value, fault)]
        if isinstance(value, Mapping | list) and (inner := _locate(value, fault)):
            return [key, *inner]
    return []

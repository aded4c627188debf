"""What an answer must look like, as a grammar. Tool calls have theirs in `call_grammar`.

Everything is checked here, before the request reaches the engine, so that a fault is named where it is.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from llamastack import v1
from services.inference import dialog
from stack_client.errors import InvalidArgumentError, UnsupportedError

WHITE_SPACE = r"[ \t\n]{0,12}"


def format_grammar(request: v1.ResponseFormat) -> str:
    """The grammar of a response format.

    Raises:
        InvalidArgumentError: If schema, expression or grammar cannot be compiled; `field` is the path of the fault.
        UnsupportedError: For grammars in Llama Stack's untyped `bnf` form, which was never specified.
    """
    match request.WhichOneof("format"):
        case "json_schema":
            return check_schema(dialog.schema_of(request.json_schema), field="response_format.json_schema")
        case "json_object":
            return check_schema({"type": "object"}, field="response_format.json_object")
        case "regex":
            return check_grammar(LLMatcher.grammar_from_regex(request.regex), field="response_format.regex")
        case "choice":
            return _choice_grammar(request.choice.choices)
        case "grammar" if request.grammar.lark:
            grammar = LLMatcher.grammar_from_lark(request.grammar.lark)
            return check_grammar(grammar, field="response_format.grammar.lark")
        case "grammar":
            field = "response_format.grammar.bnf"
            raise UnsupportedError(f"{field}: this form was never specified; give the grammar as lark", field=field)
        case _:
            raise InvalidArgumentError(
                "response_format is empty; set json_schema, json_object, regex, choice or grammar",
                reason="MISSING_FIELD",
                field="response_format",
            )


def _choice_grammar(choices: Sequence[str]) -> str:
    if not choices or not all(choices):
        field = "response_format.choice.choices"
        raise InvalidArgumentError(f"{field}: give at least one choice, none of them empty", field=field)
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in choices))


def check_schema(schema: Mapping[str, Any], *, field: str) -> str:
    """The grammar of a JSON Schema.

    Raises:
        InvalidArgumentError: If it cannot be compiled; its `field` is `field` and the path of the fault in it.
    """
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


def check_grammar(grammar: str, *, field: str) -> str:
    """The grammar.

    Raises:
        InvalidArgumentError: If it cannot be compiled.
    """
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

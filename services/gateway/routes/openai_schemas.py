"""JSON Schemas of OpenAI's bodies that are no message of ours, for the OpenAPI document."""

from collections.abc import Mapping
from typing import Any

from services.gateway.routes.sampling import STOPS

Schema = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_OBJECT: Schema = {"type": "object"}
_TEXT_PART: Schema = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": _TEXT},
}
_IMAGE_PART: Schema = {
    "type": "object",
    "required": ["type", "image_url"],
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "required": ["url"],
            "properties": {"url": _TEXT, "detail": {"enum": ["auto", "low", "high", None]}},
        },
    },
}


def _or_null(schema: Schema) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _whole(least: int, most: int) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most}


def _number(least: float, most: float) -> dict[str, Any]:
    return {"type": ["number", "null"], "minimum": least, "maximum": most}


_FUNCTION: Schema = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
        "strict": _FLAG,
    },
}
_CALL: Schema = {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": _TEXT, "arguments": _TEXT},
        },
    },
}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
        "content": {
            "anyOf": [
                _TEXT,
                {"type": "array", "items": {"anyOf": [_TEXT_PART, _IMAGE_PART]}, "minItems": 1},
                {"type": "null"},
            ]
        },
        "name": {"type": ["string", "null"]},
        "tool_calls": _or_null({"type": "array", "items": _CALL}),
        "tool_call_id": {"type": ["string", "null"]},
        "refusal": {"type": ["string", "null"]},
    },
}
_SAMPLING: Schema = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _whole(-1, 2**31 - 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "repetition_penalty": _number(0.01, 10),
    "max_tokens": _whole(1, 2**31 - 1),
    "seed": {"type": ["integer", "null"]},
    "n": _whole(1, 128),
    "stop": _or_null({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": STOPS}]}),
    "logit_bias": _or_null(
        {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}
    ),
    "stream": _FLAG,
    "stream_options": _or_null({"type": "object", "properties": {"include_usage": _FLAG}}),
    "response_format": _or_null(
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]},
                "json_schema": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": _TEXT, "schema": _OBJECT, "strict": _FLAG},
                },
            },
        }
    ),
    "guided_json": {"type": ["object", "null"]},
    "guided_regex": {"type": ["string", "null"]},
    "guided_choice": _or_null({"type": "array", "items": _TEXT, "minItems": 1}),
    "guided_grammar": {"type": ["string", "null"]},
    "user": {"type": ["string", "null"]},
}
CHAT_REQUEST: Schema = {
    "type": "object",
    "required": ["model", "messages"],
    "additionalProperties": True,
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
        **_SAMPLING,
        "max_completion_tokens": _whole(1, 2**31 - 1),
        "logprobs": _FLAG,
        "top_logprobs": _whole(0, 20),
        "tools": _or_null(
            {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["type", "function"],
                    "properties": {"type": {"const": "function"}, "function": _FUNCTION},
                },
            }
        ),
        "tool_choice": {"anyOf": [{"enum": ["auto", "none", "required", None]}, _OBJECT]},
        "parallel_tool_calls": _FLAG,
        "store": _FLAG,
        "metadata": _or_null({"type": "object", "additionalProperties": _TEXT}),
        "service_tier": {"enum": ["auto", "default", "flex", "priority", None]},
        "input_shields": _or_null({"type": "array", "items": _TEXT}),
        "output_shields": _or_null({"type": "array", "items": _TEXT}),
    },
}
COMPLETION_REQUEST: Schema = {
    "type": "object",
    "required": ["model", "prompt"],
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "prompt": {
            "anyOf": [
                _TEXT,
                {"type": "array", "items": _TEXT, "minItems": 1},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                    "minItems": 1,
                },
            ]
        },
        **_SAMPLING,
        "echo": _FLAG,
        "logprobs": {"anyOf": [{"type": "boolean"}, _whole(0, 20)]},
        "best_of": _whole(1, 128),
    },
}
_USAGE: Schema = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        name: {"type": "integer", "minimum": 0} for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    },
}
_FINISH = ["stop", "length", "tool_calls", "content_filter", "function_call"]
CHAT_RESPONSE: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": _TEXT,
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": _TEXT,
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "message", "finish_reason", "logprobs"],
                "properties": {
                    "index": {"type": "integer"},
                    "message": {
                        "type": "object",
                        "required": ["role", "content"],
                        "properties": {
                            "role": {"const": "assistant"},
                            "content": {"type": ["string", "null"]},
                            "refusal": {"type": ["string", "null"]},
                            "tool_calls": _or_null({"type": "array", "items": _CALL}),
                        },
                    },
                    "finish_reason": {"enum": _FINISH},
                    "logprobs": {"type": ["object", "null"]},
                },
            },
        },
        "usage": _USAGE,
    },
}
COMPLETION_RESPONSE: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": _TEXT,
        "object": {"const": "text_completion"},
        "created": {"type": "integer"},
        "model": _TEXT,
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "text", "finish_reason", "logprobs"],
                "properties": {
                    "index": {"type": "integer"},
                    "text": _TEXT,
                    "finish_reason": {"enum": _FINISH},
                    "logprobs": {"type": ["object", "null"]},
                },
            },
        },
        "usage": _USAGE,
    },
}
MODERATION_REQUEST: Schema = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [_TEXT, _TEXT_PART]}, "minItems": 1}]},
        "model": {"type": ["string", "null"]},
    },
}

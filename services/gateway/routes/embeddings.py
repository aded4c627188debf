"""Embeddings: OpenAI's, with base64."""

import base64
import struct
from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.jsonmap.values import text, wrong
from services.gateway.request import JsonReply, Reply, Request
from services.gateway.routes.fields import FieldReader
from services.gateway.routing import OPENAI, Route
from services.gateway.upstream import Rpc
from stack_client.errors import InvalidArgumentError

EMBED = Rpc("InferenceService.Embed")
DETOKENIZE = Rpc("InferenceService.Detokenize")
MOST = 2048


def routes(edge: Edge) -> list[Route]:
    """The rows."""

    async def embed(request: Request) -> Reply:
        fields = FieldReader(request.json())
        model = fields.text("model", required=True)
        given = fields.take("input")
        encoding = fields.choice("encoding_format", ("float", "base64")) or "float"
        dimensions = fields.whole("dimensions", least=1)
        fields.drop("user")
        fields.finish()
        message = v1.EmbedRequest(model_id=model, output_dimension=dimensions)
        for item in await texts_of(edge, model, given, request):
            message.contents.add().items.add(text=item)
        response = await edge.upstream.unary(EMBED, message, request=request)
        request.tokens += response.usage.total_tokens
        data = [
            {"object": "embedding", "index": index, "embedding": _written(one.values, encoding)}
            for index, one in enumerate(response.embeddings)
        ]
        usage = {"prompt_tokens": response.usage.prompt_tokens, "total_tokens": response.usage.total_tokens}
        return JsonReply(value={"object": "list", "data": data, "model": response.model_id or model, "usage": usage})

    return [
        Route(
            method="POST",
            path="/embeddings",
            handler=embed,
            mounts=OPENAI,
            api="inference",
            scope="inference",
            summary="Embed texts",
            request=REQUEST,
            response=RESPONSE,
        )
    ]


async def texts_of(edge: Edge, model: str, given: Any, request: Request) -> list[str]:  # noqa: ANN401
    """The texts of `input`: a text, texts, or their tokens.

    Raises:
        InvalidArgumentError: It is none of these, empty, or too long.
    """
    entries = given if isinstance(given, list) else [given]
    if isinstance(given, list) and given and all(type(item) is int for item in given):
        entries = [given]
    if not entries or len(entries) > MOST:
        raise InvalidArgumentError(f"input: give 1 to {MOST} texts", field="input")
    found = []
    for index, entry in enumerate(entries):
        path = f"input[{index}]" if isinstance(given, list) else "input"
        if isinstance(entry, str):
            if not entry:
                raise InvalidArgumentError(f"{path}: empty; there is nothing to embed", field=path)
            found.append(text(entry, path=path))
        elif isinstance(entry, list) and entry and all(type(item) is int and 0 <= item < 2**31 for item in entry):
            message = v1.DetokenizeRequest(model_id=model, token_ids=entry)
            found.append((await edge.upstream.unary(DETOKENIZE, message, request=request)).text)
        else:
            raise wrong(path, "a text or a list of token ids", entry)
    return found


def _written(values: Any, encoding: str) -> Any:  # noqa: ANN401
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    return list(values)


REQUEST = {
    "type": "object",
    "required": ["model", "input"],
    "additionalProperties": False,
    "properties": {
        "model": {"type": "string"},
        "input": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MOST},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                    "minItems": 1,
                },
            ]
        },
        "encoding_format": {"type": ["string", "null"], "enum": ["float", "base64", None]},
        "dimensions": {"type": ["integer", "null"], "minimum": 1},
        "user": {"type": ["string", "null"]},
    },
}
RESPONSE = {
    "type": "object",
    "required": ["object", "data", "model", "usage"],
    "properties": {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {
                    "object": {"const": "embedding"},
                    "index": {"type": "integer"},
                    "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]},
                },
            },
        },
        "model": {"type": "string"},
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "total_tokens"],
            "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
        },
    },
}

"""The OpenAPI document, made of the table of routes and the descriptors of the messages."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from services.gateway.jsonmap import Codec
from services.gateway.jsonmap.schema import Schemas
from services.gateway.routing import Route
from stack_client.version import version

_PLACEHOLDER = re.compile(r"\{(\w+)(?::path)?\}")
_ERROR = {
    "type": "object",
    "required": ["error", "detail"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
            },
        },
        "detail": {"type": "string"},
    },
}
_UPLOAD = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
}


def document(routes: Sequence[Route], codec: Codec) -> dict[str, Any]:
    """The document.

    Args:
        routes: The table.
        codec: Whose shapes bodies have.
    """
    schemas = Schemas(codec)
    schemas.components["Error"] = _ERROR
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for mount in route.mounts:
            path = _PLACEHOLDER.sub(r"{\1}", mount + route.path)
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Llama Stack mesh",
            "version": version(),
            "description": "Llama Stack's and OpenAI's REST routes; every one is a call of a gRPC service.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}, {}],
    }


def _operation(route: Route, path: str, schemas: Schemas) -> dict[str, Any]:
    words = re.sub(r"[^a-zA-Z0-9]+", "_", f"{route.method.lower()}{path}").strip("_")
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PLACEHOLDER.findall(route.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in route.query.items()]
    written: dict[str, Any] = {
        "operationId": words,
        "summary": route.summary,
        "tags": [route.api],
        "parameters": parameters,
        "responses": {
            **_answers(route, schemas),
            "default": {
                "description": "It failed; the body says why.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if not route.scope:
        written["security"] = []
    if route.raw:
        written["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}}
    elif route.request is not None:
        schema = _body(route.request, schemas, route)
        written["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return written


def _answers(route: Route, schemas: Schemas) -> dict[str, Any]:
    if route.response is None:
        return {"200": {"description": "It is done."}, "204": {"description": "It is done."}}
    schema = _schema(route.response, schemas)
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if route.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"200": {"description": "The answer.", "content": content}}


def _body(request: Any, schemas: Schemas, route: Route) -> dict[str, Any]:  # noqa: ANN401 - a message or a schema
    schema = _schema(request, schemas)
    if not route.streams or "properties" in schema:
        return schema
    return {"allOf": [schema, {"type": "object", "properties": {"stream": {"type": ["boolean", "null"]}}}]}


def _schema(kind: Any, schemas: Schemas) -> dict[str, Any]:  # noqa: ANN401 - a message or a schema
    return dict(kind) if isinstance(kind, Mapping) else schemas.reference(kind.DESCRIPTOR)

"""Reading an OpenAPI 3.0 or 3.1 document: its operations, their parameters and bodies as JSON Schema.

After the OpenAPI Specification 3.0.4 and 3.1.1. Nothing is fetched: references lead to places in the document.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import yaml

from llamastack import v1
from stack_client.errors import InvalidArgumentError

Json = Mapping[str, Any]
MAX_OPERATIONS = 500
MAX_HOPS = 20
"""References that lead to references."""
METHODS = ("get", "put", "post", "delete", "options", "head", "patch")
PLACES = ("path", "query", "header")
EFFECTS = {
    "get": v1.TOOL_EFFECT_READ,
    "head": v1.TOOL_EFFECT_READ,
    "options": v1.TOOL_EFFECT_READ,
    "put": v1.TOOL_EFFECT_IDEMPOTENT_WRITE,
    "delete": v1.TOOL_EFFECT_IDEMPOTENT_WRITE,
}
"""After RFC 9110, section 9.2; other methods write."""
JSON_TYPES = re.compile(r"application/([\w.+-]+\+)?json(;.*)?", re.IGNORECASE)
FORM = "application/x-www-form-urlencoded"
BODY = "body"
_FORBIDDEN = {"accept", "content-type", "authorization", "host", "content-length", "cookie", "idempotency-key"}
"""Headers that are not a model's to set; OpenAPI itself ignores the first three."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of an operation."""

    argument: str
    """Name of the tool's argument."""
    name: str
    """Name in the request."""
    place: str
    """path, query or header."""
    style: str
    explode: bool
    as_json: bool
    """Whether its value is written as JSON."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation as a tool."""

    tool: v1.ToolDef
    method: str
    path: str
    parameters: tuple[Parameter, ...]
    media_type: str
    """Of the body; empty means none."""
    security: tuple[Mapping[str, Any], ...]
    """Alternatives: scheme names that are needed together."""


@dataclass(frozen=True, kw_only=True)
class Api:
    """A document as tools."""

    server: str
    """Base URL, without a slash at its end."""
    operations: Mapping[str, Operation]
    """By the tool's name."""
    schemes: Mapping[str, Json]
    """Security schemes by name."""
    left_out: tuple[str, ...]
    """Operations that cannot be tools, and why."""


def load(text: str) -> Json:
    """A document from JSON or YAML.

    Raises:
        InvalidArgumentError: If it is neither, or no OpenAPI 3.
    """
    try:
        read = json.loads(text) if text.lstrip().startswith("{") else yaml.load(text, Loader=_NoAliases)  # noqa: S506
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InvalidArgumentError(f"args.openapi is neither JSON nor YAML: {error}", field="args.openapi") from error
    return checked(read)


def checked(document: object) -> Json:
    """A document whose version is understood.

    Raises:
        InvalidArgumentError: If it is none.
    """
    if not isinstance(document, Mapping):
        raise InvalidArgumentError("args.openapi is no object", field="args.openapi")
    version = str(document.get("openapi", ""))
    if not version.startswith(("3.0", "3.1")):
        message = f"args.openapi: its `openapi` is {version[:20]!r}; 3.0 and 3.1 are understood"
        raise InvalidArgumentError(message, field="args.openapi")
    return document


def api_of(document: Json, *, source: str, server: str, chosen: frozenset[str]) -> Api:
    """The operations of a document.

    Args:
        document: As loaded.
        source: URL of the document, from which relative servers are seen; empty means inline.
        server: Base URL that the group gives; empty means the document's first.
        chosen: Names of the operations that are wanted; empty means all.

    Raises:
        InvalidArgumentError: If it has no server, or no operation of those wanted.
    """
    operations: dict[str, Operation] = {}
    left_out = []
    reader = _Document(document)
    paths = document.get("paths")
    for path, item in paths.items() if isinstance(paths, Mapping) else ():
        for method, operation in _methods(reader, item):
            name = _name(operation, method, path)
            if chosen and name not in chosen:
                continue
            try:
                read = _operation(reader, item, operation, method=method, path=path, name=name)
            except InvalidArgumentError as error:
                left_out.append(f"{method.upper()} {path}: {error.message}")
                continue
            if name in operations or len(operations) >= MAX_OPERATIONS:
                why = "another has its name" if name in operations else f"over {MAX_OPERATIONS} operations"
                left_out.append(f"{method.upper()} {path}: {why}")
                continue
            operations[name] = read
    lacking = sorted(chosen - set(operations))
    if lacking or not operations:
        what = f"args.operations: no operation {lacking[0]!r}" if lacking else "args.openapi has no operation"
        reasons = f"; left out: {'; '.join(left_out[:5])}" if left_out else ""
        field = "args.operations" if lacking else "args.openapi"
        raise InvalidArgumentError(f"{what} that can be a tool{reasons}", field=field)
    components = document.get("components")
    schemes = components.get("securitySchemes", {}) if isinstance(components, Mapping) else {}
    return Api(
        server=_server(document, source=source, given=server),
        operations=operations,
        schemes={name: reader.resolved(scheme) for name, scheme in schemes.items()},
        left_out=tuple(left_out),
    )


class _NoAliases(yaml.SafeLoader):
    """YAML without aliases, with which a small text could stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


class _Document:
    """Follows references, and writes schemas so that they stand alone."""

    def __init__(self, root: Json) -> None:
        self.root = root
        self.old = str(root.get("openapi", "")).startswith("3.0")

    def resolved(self, node: Any) -> Json:  # noqa: ANN401 (JSON)
        """A node, or what it refers to.

        Raises:
            InvalidArgumentError: If that is not in the document.
        """
        for _ in range(MAX_HOPS):
            if not isinstance(node, Mapping):
                raise InvalidArgumentError("an object is expected where there is none")
            if not isinstance(node.get("$ref"), str):
                return node
            node = self.at(node["$ref"])
        raise InvalidArgumentError("references lead in a circle")

    def at(self, ref: str) -> Any:  # noqa: ANN401 (JSON)
        """What a reference names.

        Raises:
            InvalidArgumentError: If that is not in the document.
        """
        if not ref.startswith("#/"):
            raise InvalidArgumentError(f"{ref[:100]!r} is outside of the document, and nothing is fetched")
        node: Any = self.root
        for step in ref[2:].split("/"):
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, Mapping) or key not in node:
                raise InvalidArgumentError(f"{ref[:100]!r} is not in the document")
            node = node[key]
        return node

    def schema(self, node: Any, found: dict[str, Any]) -> Any:  # noqa: ANN401 (JSON)
        """A schema in JSON Schema 2020-12, whose references lead to `$defs`, which are put into `found`."""
        if isinstance(node, list):
            return [self.schema(one, found) for one in node]
        if not isinstance(node, Mapping):
            return node
        ref = node.get("$ref")
        if isinstance(ref, str):
            name = re.sub(r"\W+", "_", ref.removeprefix("#/components/schemas/").strip("#/"))
            if name not in found:
                found[name] = {}  # so that a schema may refer to itself
                found[name] = self.schema(self.at(ref), found)
            return {"$ref": f"#/$defs/{name}"}
        kept = {
            key: value if key in {"enum", "const", "default"} else self._members(key, value, found)
            for key, value in node.items()
            if key not in {"example", "examples", "discriminator", "xml", "externalDocs", "readOnly", "writeOnly"}
            and not key.startswith("x-")
        }
        return _modern(kept) if self.old else kept

    def _members(self, key: str, value: Any, found: dict[str, Any]) -> Any:  # noqa: ANN401 (JSON)
        if key in {"properties", "patternProperties", "$defs"} and isinstance(value, Mapping):
            return {name: self.schema(inner, found) for name, inner in value.items()}  # names are no keywords
        return self.schema(value, found)


def _modern(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of OpenAPI 3.0 as JSON Schema: `nullable`, and bounds that are flags."""
    if schema.pop("nullable", False):
        if isinstance(schema.get("type"), str):
            schema["type"] = [schema["type"], "null"]
        if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(exclusive), bool) and schema.pop(exclusive) and bound in schema:
            schema[exclusive] = schema.pop(bound)
    return schema


def _methods(reader: _Document, item: Any) -> Iterator[tuple[str, Json]]:  # noqa: ANN401
    try:
        methods = reader.resolved(item)
    except InvalidArgumentError:
        return
    for method in METHODS:
        if isinstance(methods.get(method), Mapping):
            yield method, methods[method]


def _operation(reader: _Document, item: Json, operation: Json, *, method: str, path: str, name: str) -> Operation:
    parameters: list[Parameter] = []
    found: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    required: list[str] = []
    given = {
        (str(one.get("in")), str(one.get("name"))): one
        for one in map(
            reader.resolved, [*reader.resolved(item).get("parameters", []), *operation.get("parameters", [])]
        )
    }
    for (place, real), one in given.items():
        if place not in PLACES or (place == "header" and real.lower() in _FORBIDDEN):
            if one.get("required") and place not in PLACES:
                raise InvalidArgumentError(f"it needs the {place} parameter {real!r}, which is not supported")
            continue
        argument = real if real not in properties and real != BODY else f"{real}_{place}"
        parameter, schema = _parameter(reader, one, argument=argument, place=place, found=found)
        parameters.append(parameter)
        properties[argument] = schema
        if one.get("required") or place == "path":
            required.append(argument)
    missing = [one for one in re.findall(r"\{([^}]+)\}", path) if ("path", one) not in given]
    if missing:
        raise InvalidArgumentError(f"its path parameter {missing[0]!r} is not described")
    media_type = ""
    if isinstance(operation.get("requestBody"), Mapping):
        body = reader.resolved(operation["requestBody"])
        media_type, schema = _body(reader, body, found)
        properties[BODY] = schema
        if body.get("required"):
            required.append(BODY)
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    schema |= {"required": required} if required else {}
    schema |= {"$defs": found} if found else {}
    described = [str(operation.get(key, "")).strip() for key in ("summary", "description")]
    tool = v1.ToolDef(
        name=name,
        description="\n".join(dict.fromkeys(text for text in described if text))[:4000] or f"{method.upper()} {path}",
        effect=EFFECTS.get(method, v1.TOOL_EFFECT_WRITE),
    )
    tool.input_schema.update(_plain_json(schema))
    tool.metadata.update({"method": method.upper(), "path": path})
    security = operation.get("security", reader.root.get("security", []))
    return Operation(
        tool=tool,
        method=method.upper(),
        path=path,
        parameters=tuple(parameters),
        media_type=media_type,
        security=tuple(one for one in security if isinstance(one, Mapping)),
    )


def _parameter(
    reader: _Document, one: Json, *, argument: str, place: str, found: dict[str, Any]
) -> tuple[Parameter, Any]:
    style = str(one.get("style", "form" if place == "query" else "simple"))
    if style not in {"form", "simple", "deepObject", "spaceDelimited", "pipeDelimited"}:
        raise InvalidArgumentError(f"the parameter {argument!r} has the style {style!r}, which is not supported")
    raw, as_json = one.get("schema"), False
    if raw is None and isinstance(one.get("content"), Mapping) and one["content"]:
        media_type, entry = next(iter(one["content"].items()))
        raw, as_json = entry.get("schema"), bool(JSON_TYPES.fullmatch(media_type))
    schema = reader.schema(raw if raw is not None else {}, found)
    if one.get("description") and isinstance(schema, dict) and "$ref" not in schema:
        schema.setdefault("description", str(one["description"]))
    parameter = Parameter(
        argument=argument,
        name=str(one["name"]),
        place=place,
        style=style,
        explode=bool(one.get("explode", style in {"form", "deepObject"})),
        as_json=as_json,
    )
    return parameter, schema


def _body(reader: _Document, body: Json, found: dict[str, Any]) -> tuple[str, Any]:
    contents = body.get("content")
    if not isinstance(contents, Mapping) or not contents:
        raise InvalidArgumentError("its body has no media type")
    for media_type, entry in contents.items():
        if JSON_TYPES.fullmatch(media_type):
            return media_type, reader.schema(entry.get("schema", {}), found)
    for media_type, entry in contents.items():
        kind = media_type.partition(";")[0].strip().lower()
        if kind == FORM:
            return FORM, reader.schema(entry.get("schema", {"type": "object"}), found)
        if kind.startswith("text/"):
            return media_type, {"type": "string"}
    raise InvalidArgumentError(f"its body is {', '.join(contents)}; JSON, forms and text are supported")


def _name(operation: Json, method: str, path: str) -> str:
    given = str(operation.get("operationId") or f"{method}_{path}")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", given).strip("_")[:64] or method


def _server(document: Json, *, source: str, given: str) -> str:
    url = given
    if not url:
        servers = document.get("servers")
        first = servers[0] if isinstance(servers, list) and servers and isinstance(servers[0], Mapping) else {}
        url = str(first.get("url", "/"))
        for name, variable in (first.get("variables") or {}).items():
            url = url.replace(f"{{{name}}}", str(variable.get("default", "")))
    url = urljoin(source, url) if source else url
    if not re.match(r"https?://[^/]+", url):
        message = (
            f"args.server: the document's server is {url[:100]!r}; give the API's address, https://api.example.com"
        )
        raise InvalidArgumentError(message, field="args.server")
    return url.rstrip("/")


def _plain_json(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """JSON without what YAML knows beside it, such as dates."""
    return json.loads(json.dumps(value, default=str))

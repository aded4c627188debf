"""Python functions as tools: the schema comes from type hints and docstring, arguments are checked before the call."""

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any, get_type_hints

from google.protobuf import json_format

from llamastack import v1
from stack_client.content import content, struct
from stack_client.errors import InvalidArgumentError

ToolFunction = Callable[..., Any]

_ARGS_HEADING = re.compile(r"^\s*(Args|Arguments|Parameters):\s*$")
_GOOGLE_ENTRY = re.compile(r"^\s+\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s+(.*)$")
_SPHINX_ENTRY = re.compile(r"^\s*:param\s+(?:[\w\[\], |]+\s+)?(\w+):\s*(.*)$")


class FunctionTool:
    """A function that a model may call.

    Args:
        function: Plain or asynchronous; its name, docstring and type hints describe it to the model.

    Raises:
        InvalidArgumentError: If a parameter has no type hint, or is positional-only or variadic.
    """

    def __init__(self, function: ToolFunction) -> None:
        self.function = function
        self.name = function.__name__
        summary, self._parameter_docs = parse_docstring(inspect.getdoc(function) or "")
        self.description = summary
        self._model = _arguments_model(function, self._parameter_docs)

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments object."""
        schema: dict[str, Any] = self._model.model_json_schema()
        schema.pop("title", None)
        for parameter in schema.get("properties", {}).values():
            parameter.pop("title", None)
        return schema

    def definition(self) -> v1.ToolDef:
        """The tool as agents are told of it."""
        return v1.ToolDef(name=self.name, description=self.description, input_schema=struct(self.schema))

    async def respond(self, call: v1.ToolCall, *, run: Callable[..., Awaitable[Any]]) -> v1.ToolResponse:
        """Run a call; a fault becomes an answer that the model can read, never an exception.

        Args:
            call: The model's call.
            run: Runs a synchronous function without blocking, for example `asyncio.to_thread`.
        """
        from pydantic import ValidationError  # noqa: PLC0415 (imported when the first tool is used)

        arguments = call.arguments_json or json_format.MessageToJson(call.arguments)
        try:
            values = self._model.model_validate_json(arguments)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}" for fault in error.errors()]
            return _response(call, f"The arguments are not valid. {'; '.join(faults)}", failed=True)
        keywords = {name: getattr(values, name) for name in type(values).model_fields}
        try:
            if inspect.iscoroutinefunction(self.function):
                result = await self.function(**keywords)
            else:
                result = await run(self.function, **keywords)
        except Exception as error:  # noqa: BLE001 (the user's own code: whatever it raises is the tool's answer)
            return _response(call, f"{type(error).__name__}: {error}", failed=True)
        return _response(call, result if isinstance(result, str) else _json(result))


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description before the first section, and the parameters' descriptions (Google or Sphinx style)."""
    description: list[str] = []
    parameters: dict[str, str] = {}
    current, inside, described = "", False, False
    for line in text.splitlines():
        sphinx = _SPHINX_ENTRY.match(line)
        google = _GOOGLE_ENTRY.match(line) if inside else None
        if _ARGS_HEADING.match(line):
            inside, described = True, True
        elif entry := sphinx or google:
            described = True
            current = entry[1]
            parameters[current] = entry[2].strip()
        elif inside and line.startswith(" ") and current:
            parameters[current] += " " + line.strip()
        elif line.strip().endswith(":") and not line.startswith(" ") and line.strip()[:-1].isalpha():
            inside, described, current = False, True, ""
        elif not described:
            description.append(line)
    return "\n".join(description).strip(), parameters


def _arguments_model(function: ToolFunction, docs: dict[str, str]) -> Any:  # noqa: ANN401 (a model class)
    """A pydantic model of the function's parameters."""
    from pydantic import Field, create_model  # noqa: PLC0415 (imported when the first tool is used)

    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY}:
            message = f"tool {function.__name__!r}: parameter {name!r} must be one that can be given by name"
            raise InvalidArgumentError(message)
        if name not in hints:
            message = f"tool {function.__name__!r}: parameter {name!r} needs a type hint, so that the model knows it"
            raise InvalidArgumentError(message)
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints[name], Field(default, description=docs.get(name)))
    return create_model(function.__name__, **fields)


def _response(call: v1.ToolCall, text: str, *, failed: bool = False) -> v1.ToolResponse:
    return v1.ToolResponse(
        call_id=call.call_id,
        tool_name=call.tool_name,
        content=content(text),
        metadata=struct({"error": True}) if failed else None,
    )


def _json(result: object) -> str:
    from pydantic_core import to_json  # noqa: PLC0415 (imported when the first tool is used)

    return to_json(result, fallback=str).decode()

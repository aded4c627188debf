"""Python functions as tools: the schema comes from type hints and docstring, arguments are checked before the call."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, get_type_hints, overload

from google.protobuf import json_format

from llamastack import v1
from stack_client.content import content, struct
from stack_client.errors import InvalidArgumentError

ToolFunction = Callable[..., Any]

_SECTION = re.compile(r"^(\w+( \w+)?):\s*$")
_ARGS = {"Args:", "Arguments:", "Parameters:"}
_GOOGLE_ENTRY = re.compile(r"^\*{0,2}(\w+)\s*(?:\(.*?\))?:(?:\s+(.*))?$")
_SPHINX_ENTRY = re.compile(r"^:param\s+(?:[^:]*\s)?\*{0,2}(\w+):\s*(.*)$")


class ToolFailedError(Exception):
    """A function could not be called or raised; the message is for the model."""


EFFECTS = {
    "read": v1.TOOL_EFFECT_READ,
    "idempotent": v1.TOOL_EFFECT_IDEMPOTENT_WRITE,
    "unsafe": v1.TOOL_EFFECT_WRITE,
}
APPROVALS = {
    "never": v1.TOOL_APPROVAL_NEVER,
    "always": v1.TOOL_APPROVAL_ALWAYS,
    "writes": v1.TOOL_APPROVAL_WRITES,
}
_SETTINGS = "__stack_tool__"


F = TypeVar("F", bound=ToolFunction)


@overload
def tool(function: F) -> F: ...


@overload
def tool(
    *, effect: str = "unsafe", approval: str = "never", timeout: float | None = None, name: str = ""
) -> Callable[[F], F]: ...


def tool(
    function: ToolFunction | None = None,
    *,
    effect: str = "unsafe",
    approval: str = "never",
    timeout: float | None = None,
    name: str = "",
) -> Any:
    """Say more of a function that is a tool: `@tool(effect="idempotent", approval="always", timeout=10)`.

    Args:
        function: The function, where the decorator has no arguments.
        effect: `read` changes nothing; `idempotent` changes something once, however often the same call is made;
            `unsafe` is neither.
        approval: When a person must allow a call: `never`, `always`, or `writes` for all but `read`.
        timeout: Seconds after which a call counts as failed; a plain function's thread runs on.
        name: What the model calls it; empty takes the function's.

    Raises:
        InvalidArgumentError: If a value is none of these.
    """
    for field, given, known in (("effect", effect, EFFECTS), ("approval", approval, APPROVALS)):
        if given not in known:
            raise InvalidArgumentError(f"{field}: {given!r} is none of {', '.join(known)}", field=field)
    if timeout is not None and timeout <= 0:
        raise InvalidArgumentError(f"timeout: {timeout:g} s is too short", field="timeout")
    settings = {"effect": effect, "approval": approval, "timeout": timeout, "name": name}

    def mark(marked: ToolFunction) -> ToolFunction:
        setattr(marked, _SETTINGS, settings)
        return marked

    return mark if function is None else mark(function)


class FunctionTool:
    """A function that a model may call.

    Args:
        function: Plain or asynchronous; its name, docstring and type hints describe it to the model.

    Raises:
        InvalidArgumentError: If it has no name, or a parameter has no type hint, or is positional-only or variadic.
    """

    def __init__(self, function: ToolFunction) -> None:
        self.function = function
        settings: dict[str, Any] = getattr(function, _SETTINGS, {})
        self.name: str = settings.get("name", "") or getattr(function, "__name__", "")
        # What nobody said is left open: where the function is part of a group, the group's settings decide.
        self.effect = EFFECTS.get(settings.get("effect", ""), v1.TOOL_EFFECT_UNSPECIFIED)
        self.approval = APPROVALS.get(settings.get("approval", ""), v1.TOOL_APPROVAL_UNSPECIFIED)
        self.timeout: float | None = settings.get("timeout")
        if not self.name.isidentifier():
            raise InvalidArgumentError(f"{function!r} cannot be a tool: it has no name; define it with `def`")
        self.description, docs = parse_docstring(inspect.getdoc(function) or "")
        self._parameters = _parameters(function, name=self.name)
        self._model = _arguments_model(self.name, self._parameters, docs)

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
        return v1.ToolDef(
            name=self.name,
            description=self.description,
            input_schema=struct(self.schema),
            effect=self.effect,
            approval=self.approval,
            timeout_seconds=self.timeout,
        )

    async def respond(self, call: v1.ToolCall, *, run: Callable[..., Awaitable[Any]]) -> v1.ToolResponse:
        """Run a call; a fault becomes an answer that the model can read, never an exception.

        Args:
            call: The model's call.
            run: Runs a synchronous function without blocking, for example `asyncio.to_thread`.
        """
        arguments = call.arguments_json or json_format.MessageToJson(call.arguments)
        try:
            async with asyncio.timeout(self.timeout):
                return _response(call, answer(await self.call(arguments, run=run)))
        except TimeoutError:  # the function's own is a ToolFailedError
            return _response(call, f"{self.name} took longer than {self.timeout:g} s", failed=True)
        except ToolFailedError as error:
            return _response(call, str(error), failed=True)

    async def call(self, arguments: str, *, run: Callable[..., Awaitable[Any]]) -> Any:  # noqa: ANN401 (the function's)
        """What the function returns.

        Args:
            arguments: A JSON object.
            run: Runs a synchronous function without blocking, for example `asyncio.to_thread`.

        Raises:
            ToolFailedError: If the arguments do not fit, or the function raised; says so for a model.
        """
        from pydantic import ValidationError  # noqa: PLC0415 (imported when the first tool is used)

        try:
            values = self._model.model_validate_json(arguments)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}" for fault in error.errors()]
            raise ToolFailedError(f"The arguments are not valid. {'; '.join(faults)}") from error
        keywords = {name: getattr(values, f"field_{place}") for place, name in enumerate(self._parameters)}
        try:
            if inspect.iscoroutinefunction(self.function):
                return await self.function(**keywords)
            result = await run(self.function, **keywords)
            # A plain function may wrap an asynchronous one.
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            raise ToolFailedError(f"{type(error).__name__}: {error}") from error


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description before the first section, and the parameters' descriptions (Google or Sphinx style)."""
    description: list[str] = []
    parameters: dict[str, str] = {}
    current, indent = "", 0
    section = ""  # the heading that we are under; ":" among Sphinx fields
    for line in text.splitlines():
        words, depth = line.strip(), len(line) - len(line.lstrip())
        entry = _SPHINX_ENTRY.match(words)
        if entry is None and section in _ARGS and depth and depth <= (indent or depth):
            entry, indent = _GOOGLE_ENTRY.match(words), depth
        if entry:
            section = section or ":"
            current = entry[1]
            parameters[current] = entry[2] or ""
        elif depth == 0 and (words in _ARGS or _SECTION.match(words) or words.startswith(":")):
            section, current, indent = words, "", 0
        elif current and depth and words:
            parameters[current] = f"{parameters[current]} {words}".strip()
        elif not section:
            description.append(line)
    return "\n".join(description).strip(), parameters


def _parameters(function: ToolFunction, *, name: str) -> dict[str, tuple[Any, Any]]:
    """Type and default (`...`: none) of each parameter."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InvalidArgumentError(f"tool {name!r}: a type hint cannot be resolved: {error}") from error
    found: dict[str, tuple[Any, Any]] = {}
    for parameter in inspect.signature(function).parameters.values():
        where = f"tool {name!r}: parameter {parameter.name!r}"
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY}:
            raise InvalidArgumentError(f"{where} must be one that can be given by name")
        if parameter.name not in hints:
            raise InvalidArgumentError(f"{where} needs a type hint, so that the model knows it")
        default = ... if parameter.default is parameter.empty else parameter.default
        found[parameter.name] = (hints[parameter.name], default)
    return found


def _arguments_model(name: str, parameters: dict[str, tuple[Any, Any]], docs: dict[str, str]) -> Any:  # noqa: ANN401
    """A pydantic model of the arguments; fields are numbered, as `schema` or `_x` cannot be names of fields."""
    from pydantic import ConfigDict, Field, create_model  # noqa: PLC0415 (imported when the first tool is used)

    fields: dict[str, Any] = {
        f"field_{place}": (hint, Field(default, alias=parameter, description=docs.get(parameter) or None))
        for place, (parameter, (hint, default)) in enumerate(parameters.items())
    }
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)


def _response(call: v1.ToolCall, text: str, *, failed: bool = False) -> v1.ToolResponse:
    return v1.ToolResponse(
        call_id=call.call_id,
        tool_name=call.tool_name,
        content=content(text),
        metadata=struct({"error": True}) if failed else None,
    )


def answer(result: object) -> str:
    """What a function returned as text: JSON, unless it is text already; what JSON does not know as `str` says it.

    Raises:
        ToolFailedError: If it cannot be said.
    """
    from pydantic_core import to_json  # noqa: PLC0415 (imported when the first tool is used)

    if isinstance(result, str):
        return result
    try:
        return to_json(result, fallback=str).decode()
    except Exception as error:
        raise ToolFailedError(f"{type(error).__name__}: {error}") from error

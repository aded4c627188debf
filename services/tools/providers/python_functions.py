"""Functions of the operator as tools. They are named in the configuration alone, never by a caller.

tools:
  toolgroups:
    - {identifier: "python::office", provider_id: python}
  providers:
    python:
      groups:
        "python::office": {functions: ["office.rooms:book", "office.rooms:free"]}
"""

import asyncio
import functools
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import TracebackType
from typing import Any, Self

from llamastack import v1
from services.runtime.config import ConfigError, read_config
from services.tools.provider import Access, Call, ProviderContext
from stack_client.content import content
from stack_client.errors import InvalidArgumentError
from stack_client.tools import FunctionTool, ToolFailedError, answer


@dataclass(frozen=True, kw_only=True)
class FunctionsConfig:
    """The functions of one group."""

    functions: tuple[str, ...] = ()
    """Functions as `module:function`; their docstrings and type hints describe them to the model."""
    entry_points: str = ""
    """Group of entry points of installed packages whose functions are tools too; empty means none."""


@dataclass(frozen=True, kw_only=True)
class PythonConfig:
    """Settings of the provider `python`."""

    groups: Mapping[str, FunctionsConfig] = field(default_factory=dict)
    """Functions by the identifier of their group."""
    threads: int = 16
    """Plain functions that run at once, each in a thread. A thread cannot be stopped: a function that was cancelled
    ends by itself, so let those that may take long be asynchronous."""


class PythonProvider:
    """Calls functions of this process.

    Args:
        context: Of the service.

    Raises:
        ConfigError: If a function cannot be imported, or cannot be a tool.
    """

    def __init__(self, context: ProviderContext) -> None:
        file = context.service.config.file
        self._config = read_config(PythonConfig, context.config, file=file, at="tools.providers.python")
        self._tools: dict[str, dict[str, FunctionTool]] = {}
        for identifier, named in self._config.groups.items():
            try:
                tools = [FunctionTool(function) for function in _load(named)]
            except (ImportError, AttributeError, InvalidArgumentError, ValueError) as error:
                raise ConfigError(f"{file}: tools.providers.python.groups.{identifier}: {error}") from error
            self._tools[identifier] = {tool.name: tool for tool in tools}
        self._threads: ThreadPoolExecutor

    async def __aenter__(self) -> Self:
        """Make the threads."""
        self._threads = ThreadPoolExecutor(self._config.threads, thread_name_prefix="python-tool")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def check(self, group: v1.ToolGroup, access: Access) -> None:  # noqa: ARG002 (the interface)
        """Refuse groups that the configuration does not name.

        Raises:
            InvalidArgumentError: For all of them.
        """
        if group.identifier not in self._tools:
            known = ", ".join(self._tools) or "none"
            message = (
                f"toolgroup_id {group.identifier!r}: Python functions are named in the configuration alone, "
                f"tools.providers.python.groups (there are: {known})"
            )
            raise InvalidArgumentError(message, field="toolgroup_id")
        if group.args.fields and not any(
            set(group.args.fields) <= set(tool.schema.get("properties", {}))
            for tool in self._tools[group.identifier].values()
        ):
            raise InvalidArgumentError("args: no function of the group has all of these arguments", field="args")

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:  # noqa: ARG002
        """The functions."""
        return [tool.definition() for tool in self._tools[group.identifier].values()]

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        """Call a function."""
        tool = self._tools[call.group.identifier][call.tool.name]
        try:
            result = await tool.call(json.dumps(dict(call.arguments)), run=self._run)
            if isinstance(result, v1.ToolInvocationResult):
                return result
            text = answer(result)
        except ToolFailedError as error:
            return v1.ToolInvocationResult(error_code=1, error_message=str(error))
        return v1.ToolInvocationResult(content=content(text.encode("utf-8", "replace").decode()))

    async def removed(self, group: v1.ToolGroup, access: Access) -> None:
        """Nothing is kept."""

    async def _run(self, function: Callable[..., Any], /, **arguments: Any) -> Any:  # noqa: ANN401 (the function's)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(function, **arguments))


def _load(config: FunctionsConfig) -> list[Callable[..., Any]]:
    found = []
    for name in config.functions:
        module, colon, function = name.partition(":")
        if not colon or not function:
            raise ValueError(f"{name!r} is no function; give module:function")
        found.append(getattr(importlib.import_module(module), function))
    if config.entry_points:
        found += [point.load() for point in entry_points(group=config.entry_points)]
    return found

"""Functions that tests offer as tools, and a provider that does what tests ask for."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llamastack import v1
from services.tools.provider import Access, Call, ProviderContext
from stack_client.content import content, struct
from stack_client.errors import InvalidArgumentError, UnavailableError


def add(a: int, b: int = 1) -> str:
    """Adds two numbers.

    Args:
        a: One.
        b: The other.
    """
    return str(a + b)


async def write_line(path: str, line: str) -> str:
    """Writes a line to a file, and then waits for ever."""
    with Path(path).open("a") as file:  # noqa: ASYNC230
        file.write(f"{line}\n")
    await asyncio.Event().wait()
    return "never"


def fail(word: str) -> str:
    """Raises."""
    raise ValueError(f"no {word} here")


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "do": {
            "type": "string",
            "enum": ["say", "wait", "fail", "crash", "long", "secret", "ask", "away", "work", "print"],
        },
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "nested": {"type": "object", "properties": {"on": {"type": "boolean"}}},
    },
    "required": ["do"],
    "additionalProperties": False,
}


class Workshop:
    """A provider whose tools do what their arguments say; counts what it ran."""

    def __init__(self, context: ProviderContext) -> None:
        self.context = context
        self.ran: list[Call] = []
        self.listed = 0
        self.stopped = 0
        self.gate = asyncio.Event()
        self.begun = asyncio.Semaphore(0)
        self.away = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    async def check(self, group: v1.ToolGroup, access: Access) -> None:
        if "bad" in group.args.fields:
            raise InvalidArgumentError("args.bad is not known", field="args.bad")

    async def list_tools(self, group: v1.ToolGroup, access: Access) -> Sequence[v1.ToolDef]:
        self.listed += 1
        if self.away:
            raise UnavailableError("the workshop does not answer")
        schema = struct(SCHEMA)
        return [
            v1.ToolDef(name="read", description="Reads.", input_schema=schema, effect=v1.TOOL_EFFECT_READ),
            v1.ToolDef(name="put", description="Puts.", input_schema=schema, effect=v1.TOOL_EFFECT_IDEMPOTENT_WRITE),
            v1.ToolDef(name="write", description="Writes.", input_schema=schema),
        ]

    async def invoke(self, call: Call) -> v1.ToolInvocationResult:
        self.ran.append(call)
        self.begun.release()
        text = str(call.arguments.get("text", ""))
        match call.arguments["do"]:
            case "wait":
                try:
                    await self.gate.wait()
                finally:
                    self.stopped += 1
            case "work":
                call.report.progress(0.5, "half")
                call.report.output("stdout", f"{text}\n")
            case "print":
                for letter in call.access.secret["key"]:
                    call.report.output("stdout", letter)
                call.report.output("stdout", " is out")
            case "fail":
                return v1.ToolInvocationResult(error_message=f"cannot do {text}", error_code=7)
            case "crash":
                raise KeyError(text)
            case "away":
                raise UnavailableError("the workshop does not answer")
            case "long":
                text = text * int(call.arguments["count"])
            case "secret":
                key = call.access.secret["key"]
                return v1.ToolInvocationResult(
                    content=content(f"it is {key}"), error_message=key, metadata=struct({"k": [key]}), error_code=3
                )
            case "ask":
                if call.input_response is None:
                    asked = v1.ToolInputRequest(message="Really?", state="s1")
                    return v1.ToolInvocationResult(input_required=asked)
                text = call.input_response.action
        return v1.ToolInvocationResult(content=content(text or "done"))

    async def removed(self, group: v1.ToolGroup, access: Access) -> None:
        pass

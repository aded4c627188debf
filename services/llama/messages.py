"""The nouns of a conversation, and what every chat format does with them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, Protocol

from services.llama.errors import ChatFormatError

Role = Literal["system", "user", "assistant", "tool"]
ToolPromptFormat = Literal["json", "function_tag", "python_list"]


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One call that the model made."""

    call_id: str
    """Pairs the call with its result; chosen by whoever parsed the call."""
    tool_name: str
    """Name of the tool called."""
    arguments_json: str
    """The arguments, a JSON object."""

    def arguments(self) -> dict[str, Any]:
        """The arguments as a dict.

        Raises:
            ChatFormatError: `arguments_json` is not a JSON object.
        """
        try:
            arguments = json.loads(self.arguments_json or "{}")
        except ValueError as error:
            raise ChatFormatError(f"arguments of the call to {self.tool_name!r} are not JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise ChatFormatError(f"arguments of the call to {self.tool_name!r} are not a JSON object")
        return arguments


@dataclass(frozen=True, kw_only=True)
class ChatMessage:
    """One message of a conversation."""

    role: Role
    """Who speaks; "tool" carries the result of a call."""
    content: str
    """The text; empty where an assistant only calls tools."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that an assistant message makes, in order."""
    tool_name: str = ""
    """Of a tool message: which tool answered."""
    call_id: str = ""
    """Of a tool message: the call it answers."""
    end_of_message: bool = False
    """Of an assistant message: it ended expecting a tool result, not with the turn (Llama 3's eom)."""


@dataclass(frozen=True, kw_only=True)
class ToolDefinition:
    """A tool that the model may call."""

    name: str
    """Name the model calls it by."""
    description: str
    """What it does, for the model to read."""
    parameters: Mapping[str, Any]
    """JSON schema of the arguments: an object with `properties` and `required`."""
    builtin: bool = False
    """One of the tools Llama was trained on (brave_search, wolfram_alpha, code_interpreter): named, not described."""


class ChatFormat(Protocol):
    """Lays a conversation out as token ids, the way one family of models was trained to read it."""

    @property
    def argument_key(self) -> Literal["arguments", "parameters"]:
        """Under which key the family's JSON calls carry their arguments; with `parameters` they have a `type` too."""
        ...

    @property
    def tool_prompt_formats(self) -> Sequence[ToolPromptFormat]:
        """Forms of calls that tools can be described for; the first one is the family's own."""
        ...

    @property
    def template_variables(self) -> frozenset[str]:
        """Variables of the checkpoint's own template that `render` takes as `arguments`; none without a template."""
        ...

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[ToolDefinition] = (),
        tool_prompt_format: ToolPromptFormat | None = None,
        add_generation_prompt: bool = True,
        today: date | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of the prompt. Text inside messages and tools never becomes a special token.

        Args:
            messages: the conversation so far.
            tools: tools to tell the model of.
            tool_prompt_format: how custom tools are described and called; None takes the family's own.
            add_generation_prompt: open an assistant message at the end, for the model to fill.
            today: the date to state, where the family states one.
            arguments: values of `template_variables`; their text never becomes a special token either.

        Raises:
            ChatFormatError: the conversation cannot be laid out so, or asks for what the family has no form for.
        """
        ...

"""Llama 3.1, 3.2 and 3.3 conversations as token ids; and, re-exported, the format of any checkpoint's own template.

Source: llama-models, `llama3_1/prompt_format.md` and `llama3_2/text_prompt_format.md`. The prompt is built of ids,
never by encoding a string that mixes markup and text: a user cannot forge a special token.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Literal, get_args

from services.llama.chat_template import JinjaChatFormat
from services.llama.errors import ChatFormatError
from services.llama.messages import ChatFormat, ChatMessage, Role, ToolCall, ToolDefinition, ToolPromptFormat
from services.llama.tokenizer import Tokenizer
from services.llama.tool_formats import TOOL_FAMILIES, TOOL_FORMATS, calls_text, is_builtin, system_text, user_prompt

__all__ = [
    "ChatFormat", "ChatMessage", "JinjaChatFormat", "Llama3ChatFormat", "Llama3Family", "Role", "ToolCall",
    "ToolDefinition", "ToolPromptFormat",
]  # fmt: skip

Llama3Family = Literal["3.1", "3.2", "3.3"]
_ROLE_NAMES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "ipython"}


class Llama3ChatFormat:
    """See `ChatFormat`. The default way to describe custom tools is JSON for 3.1, a Python list for 3.2 and 3.3.

    JSON and function-tag tools go into a user message before the conversation, built-in and Python-list tools into the
    system message. Dates are stated when `today` is given.
    """

    template_variables: frozenset[str] = frozenset()

    def __init__(self, tokenizer: Tokenizer, family: Llama3Family) -> None:
        if family not in get_args(Llama3Family):
            raise ChatFormatError(f"no Llama 3 family {family!r}; there are {get_args(Llama3Family)}")
        self.tokenizer = tokenizer
        self.family: Llama3Family = family
        taught = TOOL_FAMILIES[family]
        self.tool_prompt_formats: Sequence[ToolPromptFormat] = taught.formats
        self.argument_key: Literal["arguments", "parameters"] = taught.argument_key
        self._python_tag, self._end_message, self._end_turn = map(
            tokenizer.special_id, (taught.python_tag, taught.end_of_message, taught.end_of_turn)
        )
        self._begin, self._open, self._close = (
            tokenizer.special_id(f"<|{name}|>") for name in ("begin_of_text", "start_header_id", "end_header_id")
        )

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
        """See `ChatFormat.render`. Only the first message is merged with the tools' system text."""
        if arguments:
            raise ChatFormatError(f"this model has no chat template of its own to take {min(arguments)!r}")
        form = tool_prompt_format or self.tool_prompt_formats[0]
        rest = list(messages)
        system = rest.pop(0).content if rest and rest[0].role == "system" else None
        ids = [self._begin]
        text = system_text(system or "", tools=tools, tool_prompt_format=form, today=today)
        if text or system is not None:
            ids += self._message("system", text)
        if declared := user_prompt([tool for tool in tools if not tool.builtin], tool_prompt_format=form):
            ids += self._message("user", declared)
        for message in rest:
            if message.role == "assistant":
                ids += self._assistant(message, tools=tools, form=form)
            else:
                ids += self._message(message.role, message.content)
        return ids + self._header("assistant") if add_generation_prompt else ids

    def _header(self, role: Role) -> list[int]:
        if role not in _ROLE_NAMES:
            raise ChatFormatError(f"no role {role!r}; there are {list(_ROLE_NAMES)}")
        encode = self.tokenizer.encode
        return [self._open, *encode(_ROLE_NAMES[role]), self._close, *encode("\n\n")]

    def _message(self, role: Role, text: str) -> list[int]:
        return [*self._header(role), *self.tokenizer.encode(text), self._end_turn]

    def _assistant(self, message: ChatMessage, *, tools: Sequence[ToolDefinition], form: ToolPromptFormat) -> list[int]:
        """An answer of the past.

        The python tag stands before built-in calls, Python lists, and JSON while tools are on (which turns ipython on);
        never before function tags. The message, not the turn, ends after built-in calls and JSON with ipython on.
        """
        ids = [*self._header("assistant"), *self.tokenizer.encode(message.content)]
        end_of_message = message.end_of_message
        if message.tool_calls:
            builtin = any(is_builtin(call.tool_name, tools) for call in message.tool_calls)
            taught = TOOL_FORMATS[form]
            # JSON is tagged in ipython only, which declared tools turn on.
            tagged = builtin or (taught.tagged and (bool(tools) or not taught.ends_message))
            if tagged:
                ids.append(self._python_tag)
            ids += self.tokenizer.encode(calls_text(message.tool_calls, tools=tools, tool_prompt_format=form))
            end_of_message = end_of_message or builtin or (tagged and taught.ends_message)
        return [*ids, self._end_message if end_of_message else self._end_turn]

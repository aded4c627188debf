"""Conversations by the Jinja template that a checkpoint brings, with special tokens out of the users' reach.

A template mixes markup and text into one string, so a `<|im_end|>` typed by a user looks just like the template's own.
We tell them apart by a mark. Before rendering, an unused character is put behind every character of the messages and
tools that could begin a special token ("<", mostly): written special tokens fall apart, and pieces of them cannot be
joined by putting texts side by side. After rendering, whole special tokens can only be the template's; the string is
cut there, and the marks are removed from the pieces before they are encoded as ordinary text. For text without
look-alikes the ids are those of transformers' `apply_chat_template`.

Some templates look into the text, say for `</think>`. Where a string that the template itself quotes occurs in a text,
it is left unmarked, unless it could be read as part of a special token. Templates that count characters or compare
against computed strings see the marks.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time
from typing import Any, Literal, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.llama.errors import ChatFormatError
from services.llama.messages import ChatMessage, ToolDefinition, ToolPromptFormat
from services.llama.template_ast import free_variables, wants_parts
from services.llama.tokenizer import Tokenizer
from services.llama.tool_formats import TOOL_FAMILIES

# Characters that no text should hold: Unicode's noncharacters, then private use.
_MARKS = (*map(chr, range(0xFDD0, 0xFDF0)), *map(chr, range(0xE000, 0xF900)))
# What every rendering gives to a template; not for callers to set.
_OWN_VARIABLES = {
    "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "date_string", "strftime_now",
}  # fmt: skip


class _GenerationBlocks(Extension):
    """Reads `{% generation %}`, by which some templates mark answers for training, as the plain text inside."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class JinjaChatFormat:
    """See `ChatFormat`. A template without `tools` gets them as a generic JSON prompt in the system message.

    That is a line of instruction, one JSON object a line per tool (`name`, `description`, `parameters`), and the
    form of a call, `{"name": ..., "arguments": {...}}`. Calls in the history are written in that form as the
    assistant's text, results as a user message that begins with `Result of NAME:`.

    Args:
        tokenizer: turns the rendered text into ids.
        template: the Jinja source; None for a checkpoint that brings none, which then renders nothing.
        bos: the text of the begin token, for the template; may be empty.
        eos: the text of the end token, for the template; may be empty.

    Raises:
        ChatFormatError: the template is not valid Jinja.
    """

    argument_key: Literal["arguments", "parameters"] = TOOL_FAMILIES["other"].argument_key
    tool_prompt_formats: Sequence[ToolPromptFormat] = TOOL_FAMILIES["other"].formats

    def __init__(self, tokenizer: Tokenizer, template: str | None, bos: str, eos: str) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._environment = template_environment()
        try:
            tree = self._environment.parse(template or "")
            self._template = self._environment.from_string(template or "")
        except TemplateError as error:
            raise ChatFormatError(f"the checkpoint's chat template is not valid Jinja: {error}") from error
        free = free_variables(tree, self._environment)
        self.takes_tools = "tools" in free
        self.template_variables: frozenset[str] = free - _OWN_VARIABLES
        self._wants_parts = wants_parts(tree)
        quoted = {str(node.value) for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        self._to_mark = _marking_pattern(list(tokenizer.special_tokens), quoted)

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
        """See `ChatFormat.render`. `end_of_message` has no counterpart in templates and is left to them."""
        if self.template is None:
            raise ChatFormatError("this checkpoint brings no chat template; use text completion, or an instruct model")
        if tool_prompt_format not in (None, *self.tool_prompt_formats):
            raise ChatFormatError(
                f"tool_prompt_format {tool_prompt_format!r} is Llama 3's; this model's template decides, leave it unset"
            )
        if unknown := (arguments or {}).keys() - self.template_variables:
            known = ", ".join(sorted(self.template_variables)) or "none"
            raise ChatFormatError(f"the checkpoint's chat template has no variable {min(unknown)!r}; it has: {known}")
        if not self.takes_tools:
            messages = _with_generic_tools(messages, tools)
        dicts = [_message_dict(message) for message in messages]
        functions = [_tool_dict(tool) for tool in tools] if self.takes_tools and tools else None
        if self._wants_parts:
            dicts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in dicts]
        given = dict(arguments or {})
        mark = self._unused_character([dicts, functions, given])
        variables: dict[str, Any] = {
            "messages": [{**self._marked(message, mark), "role": message["role"]} for message in dicts],
            "tools": self._marked(functions, mark),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._tokens,
            **{name: self._marked(value, mark) for name, value in given.items()},
        }
        if today is not None:
            noon = datetime.combine(today, time(12))
            variables |= {"strftime_now": noon.strftime, "date_string": noon.strftime("%d %b %Y")}
        try:
            text = self._template.render(variables)
        except (TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ChatFormatError(f"the checkpoint's chat template refused the conversation: {error}") from error
        return self._encode(text, mark)

    def _encode(self, text: str, mark: str) -> list[int]:
        ids: list[int] = []
        for piece in self.tokenizer.split_special(text):
            ids.extend([piece] if isinstance(piece, int) else self.tokenizer.encode(piece.replace(mark, "")))
        return ids

    def _unused_character(self, values: object) -> str:
        """A mark that occurs neither in the conversation nor in the template."""
        used = set(f"{self.template}{json.dumps(values, ensure_ascii=False)}")
        mark = next((mark for mark in _MARKS if mark not in used), None)
        if mark is None:
            raise ChatFormatError("the conversation uses every private-use character; remove some")
        return mark

    def _marked(self, value: Any, mark: str) -> Any:  # noqa: ANN401 - JSON
        """A copy of a JSON value with every text in it marked."""
        if isinstance(value, str):
            return self._to_mark.sub(lambda match: match.group() + (mark if match.lastgroup else ""), value)
        if isinstance(value, Mapping):
            return {self._marked(key, mark): self._marked(item, mark) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(item, mark) for item in value]
        return value


def _marking_pattern(special: Iterable[str], quoted: Iterable[str]) -> re.Pattern[str]:
    """Matches what is to be marked in a group, and before that, without a group, quoted strings to leave alone.

    Tokens that begin with a letter, digit or blank would have half of every text marked: they are marked only whole.
    """
    firsts = {token[0] for token in special if not (token[0].isalnum() or token[0].isspace())}
    whole = [token for token in special if token[0] not in firsts]

    def harmless(text: str) -> bool:
        """Whether every spot in `text` that could begin a special token differs from all of them within `text`."""
        starts = [i for i, letter in enumerate(text) if letter in firsts]
        tails = [text[i:] for i in starts]
        return bool(starts) and not any(
            token.startswith(tail) or tail.startswith(token) for tail in tails for token in special
        )

    parts = [re.escape(text) for text in sorted(filter(harmless, quoted), key=len, reverse=True)]
    parts += [f"(?P<w{n}>{re.escape(token[0])})(?={re.escape(token[1:])})" for n, token in enumerate(whole)]
    if firsts:
        parts.append(f"(?P<first>[{re.escape(''.join(sorted(firsts)))}])")
    return re.compile("|".join(parts) or r"(?!)")


def template_environment() -> ImmutableSandboxedEnvironment:
    """The environment that chat templates are written for (transformers, "Chat templates": advanced usage)."""

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(
        value: object,
        ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates pass these by position
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,  # noqa: FBT001, FBT002
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlocks]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 - the user's clock
    return environment


def _message_dict(message: ChatMessage) -> dict[str, Any]:
    values: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        values["tool_calls"] = [
            {
                "type": "function",
                "id": call.call_id,
                "function": {"name": call.tool_name, "arguments": call.arguments()},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        values |= {"name": message.tool_name, "tool_call_id": message.call_id}
    return values


def _tool_dict(tool: ToolDefinition) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _with_generic_tools(messages: Sequence[ChatMessage], tools: Sequence[ToolDefinition]) -> list[ChatMessage]:
    """The conversation with tools, calls and results put into plain texts."""
    plain = [_plain(message) for message in messages]
    if not tools:
        return plain
    declared = "\n".join(json.dumps(_tool_dict(tool)["function"], ensure_ascii=False) for tool in tools)
    prompt = (
        f"You can call these functions:\n{declared}\n"
        'To call one, answer with only a JSON object: {"name": "FUNCTION", "arguments": {"ARGUMENT": "VALUE"}}'
    )
    if plain and plain[0].role == "system":
        return [ChatMessage(role="system", content=f"{plain[0].content}\n\n{prompt}"), *plain[1:]]
    return [ChatMessage(role="system", content=prompt), *plain]


def _plain(message: ChatMessage) -> ChatMessage:
    if message.role == "tool":
        return ChatMessage(role="user", content=f"Result of {message.tool_name}:\n{message.content}")
    if not message.tool_calls:
        return message
    calls = ({"name": call.tool_name, "arguments": call.arguments()} for call in message.tool_calls)
    written = [json.dumps(call, ensure_ascii=False) for call in calls]
    return ChatMessage(role="assistant", content="\n".join([message.content, *written] if message.content else written))

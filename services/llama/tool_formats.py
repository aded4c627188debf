"""The forms of tool calls and the families that use them, in one table.

Who describes tools, writes calls back into the history or makes grammars of calls asks here. Reading is one machine for
all forms (`tool_parser`), since models mix them.

Sources: llama-models, `prompt_format.md` of llama3_1, llama3_3 and llama4, `text_prompt_format.md` of llama3_2.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from services.llama.messages import ToolCall, ToolDefinition, ToolPromptFormat
from services.llama.tool_prompts import (
    BUILTIN_TOOLS,
    CODE_INTERPRETER,
    function_tag_prompt,
    json_prompt,
    python_list_prompt,
)

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """One form of calls of custom tools."""

    prompt: Callable[[Sequence[ToolDefinition]], str]
    """The text that declares the tools."""
    declared_in: Literal["system", "user"]
    """Which message carries that text; a user message stands before the conversation."""
    written: Callable[[Sequence[ToolCall]], str]
    """The calls as the model writes them."""
    several: bool
    """Whether models were taught to make several calls in one answer; a demanded answer is one call otherwise."""
    tagged: bool
    """Whether the python tag stands before the calls: in JSON where tools are declared."""
    ends_message: bool
    """Whether the message ends behind tagged calls (a result is expected), not the turn."""


@dataclass(frozen=True, kw_only=True)
class ToolFamily:
    """What a family of models was taught; token names belong to the family, not to the form."""

    formats: Sequence[ToolPromptFormat]
    """Forms that tools can be described for; the first one is the family's own."""
    argument_key: Literal["arguments", "parameters"]
    """Under which key JSON calls carry their arguments; with `parameters` they have a `type` too."""
    python_tag: str = ""
    """The token before built-in calls and code; "" where there is none."""
    end_of_message: str = ""
    """The token that ends an answer whose result is expected; "" where there is none."""
    end_of_turn: str = ""
    """The token that ends any other answer; "" where the checkpoint says so."""


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _json_calls(calls: Sequence[ToolCall]) -> str:
    return "; ".join(
        _dump({"type": "function", "name": call.tool_name, "parameters": call.arguments()}) for call in calls
    )


def _function_tags(calls: Sequence[ToolCall]) -> str:
    return "; ".join(f"<function={call.tool_name}>{_dump(call.arguments())}</function>" for call in calls)


def _python_list(calls: Sequence[ToolCall]) -> str:
    return f"[{', '.join(map(_python_call, calls))}]"


def _python_call(call: ToolCall) -> str:
    arguments = ", ".join(f"{name}={_python_value(value)}" for name, value in call.arguments().items())
    return f"{call.tool_name}({arguments})"


def _python_value(value: object) -> str:
    """A Python literal in the published style: strings in double quotes. A JSON string is a valid Python one."""
    if isinstance(value, str):
        return _dump(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_python_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_dump(key)}: {_python_value(item)}' for key, item in value.items())}}}"
    return repr(value)


TOOL_FORMATS: Mapping[ToolPromptFormat, ToolFormat] = {
    "json": ToolFormat(
        prompt=json_prompt, declared_in="user", written=_json_calls, several=False, tagged=True, ends_message=True
    ),
    "function_tag": ToolFormat(
        prompt=function_tag_prompt, declared_in="user", written=_function_tags, several=False, tagged=False,
        ends_message=False,
    ),
    "python_list": ToolFormat(
        prompt=python_list_prompt, declared_in="system", written=_python_list, several=True, tagged=True,
        ends_message=False,
    ),
}  # fmt: skip

_LLAMA_3 = {"python_tag": "<|python_tag|>", "end_of_message": "<|eom_id|>", "end_of_turn": "<|eot_id|>"}
_LLAMA_4 = {"python_tag": "<|python_start|>", "end_of_message": "<|eom|>", "end_of_turn": "<|eot|>"}
_PYTHON_FIRST: Sequence[ToolPromptFormat] = ("python_list", "json", "function_tag")

TOOL_FAMILIES: Mapping[str, ToolFamily] = {
    "3.1": ToolFamily(formats=("json", "function_tag", "python_list"), argument_key="parameters", **_LLAMA_3),
    "3.2": ToolFamily(formats=_PYTHON_FIRST, argument_key="parameters", **_LLAMA_3),
    "3.3": ToolFamily(formats=_PYTHON_FIRST, argument_key="parameters", **_LLAMA_3),
    "4": ToolFamily(formats=_PYTHON_FIRST, argument_key="parameters", **_LLAMA_4),
    "other": ToolFamily(formats=("json",), argument_key="arguments"),
}
"""By Llama's version; `other` are the models that bring a template of their own."""


def is_builtin(name: str, tools: Sequence[ToolDefinition]) -> bool:
    """Whether calls of `name` take the built-in form: as declared, or by name where it is not declared."""
    declared = [tool.builtin for tool in tools if tool.name == name]
    return declared[0] if declared else name in BUILTIN_TOOLS


def system_text(
    text: str, *, tools: Sequence[ToolDefinition], tool_prompt_format: ToolPromptFormat, today: date | None
) -> str:
    """The whole system message: environment and built-in tools, dates, Python-list tools, the caller's `text`."""
    builtin, custom = [tool.name for tool in tools if tool.builtin], [tool for tool in tools if not tool.builtin]
    form = TOOL_FORMATS[tool_prompt_format]
    in_system = bool(custom) and form.declared_in == "system"
    body = "\n".join(part for part in (form.prompt(custom) if in_system else "", text) if part)
    dates = ""
    if today is not None:
        # Month names of our own: strftime follows the process's language.
        spoken = f"{today.day:02d} {_MONTHS[today.month - 1]} {today.year}"
        dates = f"Cutting Knowledge Date: December 2023\nToday Date: {spoken}\n"
    environment = ""
    if builtin or (custom and not in_system):
        named = ", ".join(name for name in builtin if name != CODE_INTERPRETER)
        if not (named or dates or body):
            return "Environment: ipython"
        environment = "Environment: ipython\n" + (f"Tools: {named}\n" if named else "\n")
    head = environment + dates
    return f"{head}\n{body}" if head and body else head + body


def user_prompt(custom: Sequence[ToolDefinition], *, tool_prompt_format: ToolPromptFormat) -> str:
    """The user message that declares custom tools ahead of the conversation; empty where the system message does."""
    form = TOOL_FORMATS[tool_prompt_format]
    return form.prompt(custom) if custom and form.declared_in == "user" else ""


def calls_text(
    calls: Sequence[ToolCall], *, tools: Sequence[ToolDefinition], tool_prompt_format: ToolPromptFormat
) -> str:
    """The calls as the model writes them. Several share one Python list; other forms are joined by "; "."""
    form = TOOL_FORMATS[tool_prompt_format]
    if not any(is_builtin(call.tool_name, tools) for call in calls):
        return form.written(calls)
    return "; ".join(
        _builtin_text(call) if is_builtin(call.tool_name, tools) else form.written([call]) for call in calls
    )


def _builtin_text(call: ToolCall) -> str:
    arguments = call.arguments()
    if call.tool_name == CODE_INTERPRETER:
        return str(arguments.get("code", ""))
    return f'{call.tool_name}.call(query="{arguments.get("query", "")}")'

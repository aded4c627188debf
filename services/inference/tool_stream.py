"""Tool calls in a streamed answer: text that may be a call is held back until that is decided.

An answer that begins like a call (after white space) is held to its end and then read; anything else is text from its
first character on. Text once shown is never taken back.
"""

import re
from collections.abc import Collection, Sequence

from llamastack import v1
from services.inference import dialog
from services.inference.provider import Sink
from services.llama.messages import ToolPromptFormat
from services.llama.tool_calls import parse_tool_calls

_OPENINGS = ("{", "<function=", "<tool_call>", "```")
_LIST = re.compile(r"\[\s*([\w.]*)")


class ToolStream:
    """A `Sink` before the real one. Without tools everything passes as text."""

    def __init__(self, sink: Sink, *, tool_names: Sequence[str], tool_prompt_format: ToolPromptFormat | None) -> None:
        self._sink = sink
        self._tool_names = tool_names
        self._format = tool_prompt_format
        self._holding = bool(tool_names)
        self._tagged = False
        self._held: list[str] = []
        self._logprobs: list[v1.TokenLogProbs] = []

    def admitted(self) -> None:
        """Pass the news on."""
        self._sink.admitted()

    def python_tag(self) -> None:
        """The model opened a call with Llama 3's python tag, which is no text."""
        self._tagged = self._holding

    def text(self, text: str, *, tokens: int, logprobs: Sequence[v1.TokenLogProbs] = ()) -> None:
        """Pass text on, or hold it."""
        if not self._holding:
            self._sink.text(text, tokens=tokens, logprobs=logprobs)
            return
        self._held.append(text)
        self._sink.text("", tokens=tokens)  # the tokens are counted when they come, their text is not shown yet
        self._logprobs.extend(logprobs)
        if not self._tagged and not may_start_call("".join(self._held), tool_names=self._tool_names):
            self._release("".join(self._held))

    def tool_call(self, call: v1.ToolCall) -> None:
        """Pass a call on."""
        self._sink.tool_call(call)

    def finish(self, *, complete: bool) -> bool:
        """End the answer; True when it was tool calls. An answer cut by the token limit (not `complete`) is text."""
        if not self._holding:
            return False
        text = "".join(self._held)
        if not complete:
            self._release(text)
            return False
        rest, calls = parse_tool_calls(
            text, tool_names=self._tool_names, tool_prompt_format=self._format, python_tag=self._tagged
        )
        self._release(rest)
        for call in calls:
            self._sink.tool_call(dialog.tool_call(call))
        return bool(calls)

    def _release(self, text: str) -> None:
        self._holding = False
        self._sink.text(text, tokens=0, logprobs=self._logprobs)


def may_start_call(text: str, *, tool_names: Collection[str]) -> bool:
    """Whether an answer that begins with `text` can still turn out to be a tool call."""
    text = text.lstrip()
    openings = (*_OPENINGS, *(f"{name}.call(" for name in tool_names))
    if any(text.startswith(opening) or opening.startswith(text) for opening in openings):
        return True
    listed = _LIST.match(text)
    if listed is None:
        return False
    name, rest = listed[1], text[listed.end() :]
    if not name:
        return not rest or rest[0] == "{"
    return name in tool_names if rest else any(known.startswith(name) for known in tool_names)

"""Tool calls in a streamed answer: text that may be a call is held back until that is decided.

An answer that begins like a call is held to its end and then read; anything else is text from its first character on.
Text once shown is never taken back.
"""

from collections.abc import Sequence

from llamastack import v1
from services.inference import dialog
from services.inference.provider import Sink
from services.llama.messages import ToolPromptFormat
from services.llama.tool_calls import parse_tool_calls
from services.llama.tool_openings import Opening, decide


class ToolStream:
    """A `Sink` before the real one. Without tools everything passes as text.

    Args:
        sink: The real one.
        tool_names: Tools that may be called.
        tool_prompt_format: The form of calls that was asked for.
        openings: How calls begin; None where the answer is known to be one.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        tool_names: Sequence[str],
        tool_prompt_format: ToolPromptFormat | None,
        openings: Sequence[Opening] | None,
    ) -> None:
        self._sink = sink
        self._tool_names = tool_names
        self._format = tool_prompt_format
        self._openings = openings
        self._holding = bool(tool_names)
        self._is_call = openings is None
        self._tagged = False
        self._held: list[str] = []
        self._logprobs: list[v1.TokenLogProbs] = []

    def admitted(self) -> None:
        """Pass the news on."""
        self._sink.admitted()

    def python_tag(self) -> None:
        """The model opened a call with Llama 3's python tag, which is no text."""
        if self._holding:
            self._tagged = self._is_call = True

    def text(self, text: str, *, tokens: int, logprobs: Sequence[v1.TokenLogProbs] = ()) -> None:
        """Pass text on, or hold it."""
        if not self._holding:
            self._sink.text(text, tokens=tokens, logprobs=logprobs)
            return
        self._held.append(text)
        self._sink.text("", tokens=tokens)  # the tokens are counted when they come, their text is not shown yet
        self._logprobs.extend(logprobs)
        if self._is_call or self._openings is None:
            return
        held = "".join(self._held)
        match decide(held, self._openings):
            case "call":
                self._is_call = True
            case "text":
                self._release(held)

    def tool_call(self, call: v1.ToolCall) -> None:
        """Pass a call on."""
        self._sink.tool_call(call)

    def finish(self, *, complete: bool) -> bool:
        """End the answer; True when it was tool calls. An answer cut by the token limit (not `complete`) is text."""
        if not self._holding:
            return False
        text = "".join(self._held)
        if not (complete and self._is_call):
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

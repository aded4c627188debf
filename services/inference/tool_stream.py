"""Tool calls in a streamed answer: text goes on as soon as it can be no call any more, calls when the answer is whole.

Text once shown is never taken back. An answer that the token limit cuts has no calls: of several, some may be missing,
so all of it is text. For this, text behind a call waits for the end too.
"""

from collections.abc import Callable, Sequence

from llamastack import v1
from services.inference import dialog
from services.inference.provider import Sink
from services.llama.messages import ToolCall
from services.llama.tool_events import CallComplete, Event, Text
from services.llama.tool_parser import ToolParser


class ToolStream:
    """A `Sink` before the real one. Without tools everything passes as text.

    Args:
        sink: The real one.
        tool_names: Tools that may be called.
        several: Whether the answer may have several calls; one that may not ends with its first.

    Attributes:
        on_enough: Called once nothing of what may follow is wanted.
    """

    def __init__(self, sink: Sink, *, tool_names: Sequence[str], several: bool = True) -> None:
        self._several = several
        self.on_enough: Callable[[], object] = lambda: None
        self._sink = sink
        self._parser = ToolParser(tool_names=tool_names)
        self._calls: list[ToolCall] = []
        self._behind: list[str] = []  # text behind the first call
        self._raw: list[str] = []  # all that came
        self._shown = 0  # characters; before the first call what is shown is the beginning of what came
        self._logprobs: list[v1.TokenLogProbs] = []

    def admitted(self) -> None:
        """Pass the news on."""
        self._sink.admitted()

    def python_tag(self) -> None:
        """The model opened a call with Llama 3's python tag, which is no text."""
        self._take(self._parser.python_tag(), tokens=0)

    def text(self, text: str, *, tokens: int, logprobs: Sequence[v1.TokenLogProbs] = ()) -> None:
        """Pass text on, or hold it; tokens are counted when they come, though their text is not shown yet."""
        self._raw.append(text)
        self._logprobs.extend(logprobs)
        self._take(self._parser.feed(text), tokens=tokens)

    def tool_call(self, call: v1.ToolCall) -> None:
        """Pass a call on."""
        self._sink.tool_call(call)

    def finish(self, *, complete: bool) -> bool:
        """End the answer; True when it was tool calls. An answer cut by the token limit (not `complete`) is text."""
        self._take(self._parser.finish("stop" if complete else "length"), tokens=0)
        if complete:
            self._show("".join(self._behind), tokens=0, last=True)
        else:
            self._show("".join(self._raw)[self._shown :], tokens=0, last=True)
            self._calls = []
        for call in self._calls:
            self._sink.tool_call(dialog.tool_call(call))
        return bool(self._calls)

    def _take(self, events: Sequence[Event], *, tokens: int) -> None:
        shown = ""
        for event in events:
            if self._calls and not self._several:
                break
            match event:
                case Text(text) if self._calls:
                    self._behind.append(text)
                case Text(text):
                    shown += text
                case CallComplete(call):
                    self._calls.append(call)
                    if not self._several:
                        self.on_enough()
        self._show(shown, tokens=tokens)

    def _show(self, text: str, *, tokens: int, last: bool = False) -> None:
        self._shown += len(text)
        logprobs: Sequence[v1.TokenLogProbs] = ()
        if text or last:  # they go with the text of their tokens, as far as it is text
            logprobs, self._logprobs = self._logprobs, []
        if text or tokens or logprobs:
            self._sink.text(text, tokens=tokens, logprobs=logprobs)

"""Tool calls in an answer, while it is written and after: one machine for both.

Whatever pieces a text comes in, it gives the same text and the same calls, and each character is looked at once (those
of a possible opening, which is short, a few times). Text is held back only while it can still become a call.

Where a call may begin: any form at the start of the answer or of a line, and behind another call; `<function=` and
`<tool_call>` anywhere. Not inside JSON that is no call itself, nor inside fenced code: what looks like a call there is
data. An unknown tool's call is one only where the form leaves no doubt that it is meant as a call: `<function=`,
`<tool_call>`, and what follows Llama 3's python tag. A list is all calls of declared tools, or text.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from services.llama.messages import ToolCall
from services.llama.tool_bodies import Body, body_of
from services.llama.tool_calls import Read, new_call
from services.llama.tool_events import CallComplete, CallFailed, CallPiece, CallStarted, Event, Text
from services.llama.tool_openings import Opening, decide, openings, unmistakable_openings
from services.llama.tool_prompts import BUILTIN_TOOLS, CODE_INTERPRETER
from services.llama.tool_scanner import BLANKS, LiteralScanner

_SPECIAL = re.compile(r"[\n<{\[`]")
_FENCE = "```"


class ToolParser:
    """See the module.

    Args:
        tool_names: tools that were offered; with none, everything is text.
    """

    def __init__(self, *, tool_names: Collection[str]) -> None:
        self._names = frozenset(tool_names)
        self._runs_code = CODE_INTERPRETER in self._names
        self._plain = self._openings(tagged=False) if self._names else ()
        self._inline = tuple(opening for opening in self._plain if str(opening[0]).startswith("<"))
        self._known = self._plain
        self._live: Sequence[Opening] = ()  # openings of what is held
        self._step: Callable[[str, int], int] = self._text if self._names else self._rest
        self._events: list[Event] = []
        self._texts: list[str] = []  # to be emitted
        self._blanks: list[str] = []  # not emitted yet, since a call may follow
        self._held: list[str] = []  # of what may be a call
        self._line_start = True
        self._behind_call = self._said = self._called = False
        self._tagged = self._may_be_code = False
        self._ticks = 0
        self._body: Body | None = None  # of the call that was started
        self._foreign = LiteralScanner()

    def feed(self, text: str) -> list[Event]:
        """Take more of the answer, special tokens left out."""
        self._run(text)
        return self._take()

    def python_tag(self) -> list[Event]:
        """Take Llama 3's python tag: a call follows, or Python for the code interpreter if that is offered."""
        if self._names:
            self._settle(complete=True)
            self._step, self._known = self._text, self._openings(tagged=True)
            self._line_start = self._tagged = True
            self._behind_call, self._may_be_code = False, self._runs_code
        return self._take()

    def finish(self, reason: Literal["stop", "length"]) -> list[Event]:
        """End the answer. One cut by the token limit ("length") ends in text, not in half a call."""
        self._settle(complete=reason == "stop")
        if not self._called:
            self._texts += self._blanks
        return self._take()

    def _openings(self, *, tagged: bool) -> tuple[Opening, ...]:
        builtin = self._names if tagged else self._names & BUILTIN_TOOLS
        declared = openings(sorted(self._names), python_names=sorted(self._names), builtin_names=sorted(builtin))
        # The blanks that they begin with are held apart.
        return (*(opening[1:] for opening in declared), *unmistakable_openings(tagged=tagged, code=self._runs_code))

    def _take(self) -> list[Event]:
        self._flush()
        events, self._events = self._events, []
        return events

    def _flush(self) -> None:
        if text := "".join(self._texts):
            self._events.append(Text(text))
        self._texts = []

    def _emit(self, *events: Event) -> None:
        self._flush()
        self._events += events

    def _run(self, text: str) -> None:
        at = 0
        while at < len(text):
            at = self._step(text, at)

    def _settle(self, *, complete: bool) -> None:
        """Nothing more follows what is held."""
        if self._step == self._in_code:
            code = "".join(self._held)
            if complete:
                self._complete([(CODE_INTERPRETER, {"code": code})])
            else:
                self._emit(CallFailed())
                self._say(code)
        elif self._step == self._in_body:
            self._end_body(complete=complete)
        while self._step == self._in_opening:
            self._reject()
        if self._step == self._in_code:  # what was held was found to be code, and is whole
            self._settle(complete=complete)

    def _rest(self, text: str, at: int) -> int:
        """Without tools everything is text."""
        self._texts.append(text[at:])
        return len(text)

    def _say(self, text: str) -> None:
        """Text that is no call, which the blanks before it belong to, unless nothing but calls came before."""
        if self._said or not self._called:
            self._texts += self._blanks
        self._texts.append(text)
        self._blanks, self._held, self._ticks = [], [], 0
        self._line_start = self._behind_call = self._tagged = self._may_be_code = False
        self._said, self._known, self._step = True, self._plain, self._text

    def _text(self, text: str, at: int) -> int:
        """Outside of calls."""
        char = text[at]
        if char in BLANKS and (self._line_start or self._behind_call or char == "\n"):
            self._blanks.append(char)
            self._line_start = self._line_start or char == "\n"
            return at + 1
        if self._behind_call and char in ";,":
            self._blanks.append(char)
            return at + 1
        if self._line_start or self._behind_call:
            self._live, self._step = self._known, self._in_opening
            return at
        special = _SPECIAL.search(text, at)
        end = special.start() if special else len(text)
        if end > at:
            self._say(text[at:end])
            return end
        return self._special(text, at)

    def _special(self, text: str, at: int) -> int:
        """A character within a line after which not everything is text."""
        match char := text[at]:
            case "<":
                self._live, self._step = self._inline, self._in_opening
                return at
            case "`":
                return self._fence_of(char, at)
            case _:
                return self._open_foreign(text, at)

    def _in_opening(self, text: str, at: int) -> int:
        """Something that may be a call has begun."""
        self._held.append(text[at])
        held = "".join(self._held)
        decision, self._live = decide(held, self._live)
        match decision:
            case "call":
                self._body, self._step = body_of(held, tagged=self._tagged), self._in_body
                self._body.scan(held, 0)
                self._emit(CallStarted(), CallPiece(held))
            case "text":
                self._reject()
        return at + 1

    def _reject(self) -> None:
        """What was held opens no call: its first character is text, or all that belongs together with it is."""
        held, self._held = "".join(self._held), []
        if self._may_be_code:
            self._begin_code(held)
        elif held.startswith(_FENCE):
            self._say(_FENCE)
            self._step = self._in_fence
            self._run(held[len(_FENCE) :])
        elif held[0] in "{[":
            self._run(held[self._open_foreign(held, 0) :])
        else:
            self._say(held[0])  # what may be inline from here on is looked at again
            self._run(held[1:])

    def _begin_code(self, held: str) -> None:
        """What follows the python tag is Python."""
        self._held, self._step, self._may_be_code = [held], self._in_code, False
        self._emit(CallStarted(), CallPiece(held))

    def _in_code(self, text: str, at: int) -> int:
        self._held.append(text[at:])
        self._emit(CallPiece(text[at:]))
        return len(text)

    def _in_body(self, text: str, at: int) -> int:
        """In a call."""
        assert self._body is not None
        end = self._body.scan(text, at)
        if end > at:
            self._held.append(text[at:end])
            self._emit(CallPiece(text[at:end]))
        if self._body.state != "more":
            self._end_body(complete=True)
        return end

    def _end_body(self, *, complete: bool) -> None:
        """The call is whole, or none."""
        assert self._body is not None
        body, self._body, text = self._body, None, "".join(self._held)
        if complete and body.state == "more":
            body.end()
        calls = body.read(text) if complete and body.state == "done" else None
        if calls and (body.marked or all(name in self._names for name, _ in calls)):
            self._complete(calls)
        elif self._may_be_code:
            self._step, self._may_be_code = self._in_code, False
        else:
            self._emit(CallFailed())
            self._say(text)

    def _complete(self, calls: Read) -> None:
        self._emit(*(CallComplete(new_call(name, arguments)) for name, arguments in calls))
        self._held, self._step = [], self._text
        self._called = self._behind_call = True
        self._line_start = self._may_be_code = False

    def _open_foreign(self, text: str, at: int) -> int:
        """A bracket that opens no call: as long as JSON follows, nothing in it is one."""
        self._foreign = LiteralScanner()
        self._say("")
        self._step = self._in_foreign
        return self._in_foreign(text, at)

    def _in_foreign(self, text: str, at: int) -> int:
        end = self._foreign.scan(text, at)
        self._texts.append(text[at:end])
        if self._foreign.state != "more":
            self._step = self._text
        return end

    def _fence_of(self, char: str, at: int) -> int:
        """Count the ticks of a fence that does not stand at the start of a line."""
        ticks = self._ticks + 1
        self._say(char)
        self._ticks = ticks
        if ticks == len(_FENCE):
            self._ticks, self._step = 0, self._in_fence
        return at + 1

    def _in_fence(self, text: str, at: int) -> int:
        """In fenced code, to the next fence."""
        tick = text.find("`", at)
        if tick != at:
            self._ticks = 0
            end = tick if tick >= 0 else len(text)
            self._texts.append(text[at:end])
            return end
        self._texts.append("`")
        self._ticks += 1
        if self._ticks == len(_FENCE):
            self._ticks, self._step = 0, self._text
        return at + 1


def parse_tool_calls(text: str, *, tool_names: Collection[str], python_tag: bool = False) -> tuple[str, list[ToolCall]]:
    """Split a finished answer into its text and its calls.

    Args:
        text: the whole answer, special tokens left out.
        tool_names: tools that were offered; with none, everything is text.
        python_tag: whether the answer began with Llama 3's python tag.

    Returns:
        The text outside the calls, and the calls in order, with fresh ids.
    """
    parser = ToolParser(tool_names=tool_names)
    events = [*(parser.python_tag() if python_tag else ()), *parser.feed(text), *parser.finish("stop")]
    said = "".join(event.text for event in events if isinstance(event, Text))
    return said, [event.call for event in events if isinstance(event, CallComplete)]

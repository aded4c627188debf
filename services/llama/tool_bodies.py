"""The forms of tool calls, one state machine each: where a call that was begun ends, and what it says."""

from typing import Protocol

from services.llama.tool_calls import MOST_DEPTH, Read, builtin_call, json_arguments, json_calls, python_calls
from services.llama.tool_scanner import BLANKS, LiteralScanner, State

_TAG = "<function="
_TAG_END = "</function>"
_WRAPPERS = {"<tool_call>": "</tool_call>", "```json": "```", "```": "```"}


class Body(Protocol):
    """One call, or a list of them, while it is written."""

    state: State
    """Whether more must come, the call is whole, or the text cannot be one."""
    marked: bool
    """Whether the form alone says that it is meant as a call, so that the tool need not be declared."""

    def scan(self, text: str, at: int) -> int:
        """Take characters of `text` from `at` on.

        Returns:
            Where it stopped: at the end, behind the call, or at the first character that is no part of it.
        """
        ...

    def end(self) -> None:
        """Nothing more comes: settle the state."""
        ...

    def read(self, text: str) -> Read | None:
        """The calls in the whole text, once the state is "done"; None if they are none."""
        ...


class _Value:
    """What JSON and Python lists share: blanks, a value, and what closes the wrapper around it."""

    def __init__(self, scanner: LiteralScanner, *, skip: int, closing: str) -> None:
        self.state: State = "more"
        self._scanner = scanner
        self._skip = skip  # characters of the wrapper before the value
        self._closing = closing
        self._closed = 0  # characters of `closing` that were seen
        self._length = 0  # of the value and what is before it

    def scan(self, text: str, at: int) -> int:
        """See `Body`."""
        start = at
        at += (skipped := min(self._skip, len(text) - at))
        self._skip -= skipped
        if self._scanner.state == "more" and not self._skip:
            at = self._scanner.scan(text, at)
        if self._scanner.state == "more":
            self._length += at - start
            return at
        if self._length >= 0:
            self._value_end = self._length + at - start
            self._length = -1
        if self._scanner.state == "bad":
            self.state = "bad"
            return at
        return self._close(text, at)

    def _close(self, text: str, at: int) -> int:
        while at < len(text) and self._closed < len(self._closing):
            if text[at] == self._closing[self._closed]:
                self._closed += 1
            elif self._closed or text[at] not in BLANKS:
                self.state = "bad"
                return at
            at += 1
        if self._closed == len(self._closing):
            self.state = "done"
        return at

    def end(self) -> None:
        """See `Body`. Models forget to close what they wrapped JSON in."""
        self.state = "done" if self._scanner.state == "done" and not self._closed else "bad"


class JsonBody(_Value):
    """An object or a list of them, bare or wrapped."""

    def __init__(self, wrapper: str, *, tagged: bool) -> None:
        scanner = LiteralScanner(most_depth=MOST_DEPTH)
        super().__init__(scanner, skip=len(wrapper), closing=_WRAPPERS.get(wrapper, ""))
        self.marked = tagged or wrapper == "<tool_call>"
        self._wrapper = wrapper

    def read(self, text: str) -> Read | None:
        """See `Body`."""
        return json_calls(text[len(self._wrapper) : self._value_end], shape_is_enough=self.marked)


class FunctionTag(_Value):
    """`<function=NAME>` JSON object `</function>`; the object may be missing."""

    marked = True

    def __init__(self, head: str) -> None:
        super().__init__(LiteralScanner(most_depth=MOST_DEPTH), skip=len(head), closing=_TAG_END)
        self._head = head
        self._bare = False

    def scan(self, text: str, at: int) -> int:
        """See `Body`."""
        if not self._bare and not self._skip and self._scanner.untouched:
            while at < len(text) and text[at] in BLANKS:
                at += 1
                self._length += 1
            self._bare = at < len(text) and text[at] == "<"
        return self._close(text, at) if self._bare else super().scan(text, at)

    def end(self) -> None:
        """See `Body`. Without its end it may be half a call."""
        self.state = "bad"

    def read(self, text: str) -> Read | None:
        """See `Body`."""
        arguments = {} if self._bare else json_arguments(text[len(self._head) : self._value_end])
        return None if arguments is None else [(self._head[len(_TAG) : -1], arguments)]


class PythonList(_Value):
    """`[NAME(key=value, ...), ...]`."""

    def __init__(self, *, tagged: bool) -> None:
        super().__init__(LiteralScanner(python=True, calls=True, most_depth=MOST_DEPTH), skip=0, closing="")
        self.marked = tagged

    def read(self, text: str) -> Read | None:
        """See `Body`."""
        return python_calls(text, self._scanner.calls)


class BuiltinLine:
    """`NAME.call(query="...")`, with nothing else on its line."""

    def __init__(self, *, tagged: bool) -> None:
        self.state: State = "more"
        self.marked = tagged

    def scan(self, text: str, at: int) -> int:
        """See `Body`."""
        end = text.find("\n", at)
        if end >= 0:
            self.state = "done"
        return end if end >= 0 else len(text)

    def end(self) -> None:
        """See `Body`."""
        self.state = "done"

    def read(self, text: str) -> Read | None:
        """See `Body`."""
        return builtin_call(text)


def body_of(opening: str, *, tagged: bool) -> Body:
    """The machine for a call that begins so.

    Args:
        opening: the beginning, up to where the tool's name is complete.
        tagged: whether it follows Llama 3's python tag, after which everything is a call.
    """
    if opening.startswith(_TAG):
        return FunctionTag(opening)
    wrapper = next((wrapper for wrapper in _WRAPPERS if opening.startswith(wrapper)), "")
    if wrapper or "{" in opening:
        return JsonBody(wrapper, tagged=tagged)
    return PythonList(tagged=tagged) if opening.startswith("[") else BuiltinLine(tagged=tagged)

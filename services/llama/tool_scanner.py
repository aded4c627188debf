"""Where a JSON value or a Python list of calls ends, found while it is still being written.

A pushdown automaton that looks at each character once, whatever pieces they come in. It checks the structure, so that
text that is no value is known at the first character that says so; what the values are is read at the end, once.
"""

import re
from collections.abc import Callable
from typing import Literal

State = Literal["more", "done", "bad"]

BLANKS = " \t\r\n"
_JSON_BARE = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_PYTHON_BARE = re.compile(
    r"[+-]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?|[+-]?0[xXoObB][0-9a-fA-F_]+"
    r"|[Tt]rue|[Ff]alse|null|None"
)
_BARE_PART = re.compile(r"[\w.+\-]*")
_PLAIN = {quote: re.compile(rf"[^{quote}\\\x00-\x1f]*") for quote in "\"'"}
_WORD = re.compile(r"[^\s=,()\[\]{}'\"]*")
_CLOSING = {"{": "}", "[": "]", "(": ")", "call": ")", "calls": "]"}


class LiteralScanner:
    """Follows one value.

    Args:
        python: whether Python's strings, words, tuples and trailing commas count too.
        calls: whether the value is a Python list of calls by keywords; only with `python`.
        most_depth: brackets inside each other at most; None for any number.
    """

    def __init__(self, *, python: bool = False, calls: bool = False, most_depth: int | None = None) -> None:
        self.state: State = "more"
        self.calls: list[tuple[str, list[tuple[str, int, int]]]] = []
        """Of Python calls: names, and of each keyword the name and where its value lies."""
        self._python = python
        self._calls = calls
        self._most_depth = most_depth
        self._at = 0  # characters taken before this piece
        self._stack: list[str] = []
        self._word: list[str] = []
        self._quote = ""
        self._quotes = 0  # of those that may open a triple-quoted string
        self._escaped = False
        self._keyword: tuple[str, int] | None = None
        self._step: Callable[[str, int], int] = self._value

    @property
    def untouched(self) -> bool:
        """Whether there were blanks only."""
        return not self._stack and self._step == self._value

    def scan(self, text: str, at: int = 0) -> int:
        """Take characters of `text` from `at` on.

        Returns:
            Where it stopped: at the end, behind the value, or at the character that cannot be.
        """
        start = at
        self._at -= start
        while at < len(text) and self.state == "more":
            at = self._step(text, at)
        self._at += at
        return at

    def _bad(self, at: int) -> int:
        self.state = "bad"
        return at

    def _value(self, text: str, at: int) -> int:
        """A value must come, or the end of a list that may be empty or end in a comma."""
        char = text[at]
        if char in BLANKS:
            return at + 1
        if self._calls and not self._stack:
            return self._open("calls", at) if char == "[" else self._bad(at)
        if char in "{[" or (char == "(" and self._python):
            return self._open(char, at)
        if char == '"' or (char == "'" and self._python):
            return self._open_string(char, at)
        if _BARE_PART.match(text, at, at + 1).end() > at:  # type: ignore[union-attr]
            self._word, self._step = [], self._bare
            return at
        return self._bad(at)

    def _first(self, text: str, at: int) -> int:
        """The first thing in a bracket, or its end."""
        if text[at] in BLANKS:
            return at + 1
        inside = self._stack[-1]
        if text[at] == _CLOSING[inside] and inside != "calls":
            return self._close(at)
        self._step = {"{": self._key, "call": self._name, "calls": self._name}.get(inside, self._value)
        self._word = []
        return at

    def _open(self, bracket: str, at: int) -> int:
        self._stack.append(bracket)
        if self._most_depth is not None and len(self._stack) > self._most_depth:
            return self._bad(at)
        self._step = self._first
        return at + 1

    def _close(self, at: int) -> int:
        self._stack.pop()
        self._ended(at + 1)
        return at + 1

    def _ended(self, end: int) -> None:
        """A value ends before `end`."""
        if self._keyword is not None and self._stack[-1] == "call":
            name, start = self._keyword
            self.calls[-1][1].append((name, start, self._at + end))
            self._keyword = None
        if self._stack:
            self._step = self._after
        else:
            self.state = "done"

    def _after(self, text: str, at: int) -> int:
        """A value, or a key, was read: what joins it to the next."""
        char, inside = text[at], self._stack[-1]
        if char in BLANKS:
            return at + 1
        if char == ",":
            self._step = self._first if self._python else self._next
            return at + 1
        return self._close(at) if char == _CLOSING[inside] else self._bad(at)

    def _next(self, text: str, at: int) -> int:
        """After JSON's comma there must be something."""
        if text[at] in BLANKS:
            return at + 1
        self._step = self._key if self._stack[-1] == "{" else self._value
        return at

    def _key(self, text: str, at: int) -> int:
        char = text[at]
        if char in BLANKS:
            return at + 1
        if char == '"' or (char == "'" and self._python):
            self._stack.append("key")
            return self._open_string(char, at)
        return self._bad(at)

    def _colon(self, text: str, at: int) -> int:
        if text[at] in BLANKS:
            return at + 1
        self._step = self._value
        return at + 1 if text[at] == ":" else self._bad(at)

    def _bare(self, text: str, at: int) -> int:
        """A number or a word."""
        end = _BARE_PART.match(text, at).end()  # type: ignore[union-attr]
        self._word.append(text[at:end])
        if end == len(text):
            return end
        word, pattern = "".join(self._word), _PYTHON_BARE if self._python else _JSON_BARE
        if not self._stack or not pattern.fullmatch(word):
            return self._bad(end)
        self._ended(end)
        return end

    def _name(self, text: str, at: int) -> int:
        """The name of a call or a keyword."""
        end = _WORD.match(text, at).end()  # type: ignore[union-attr]
        self._word.append(text[at:end])
        if end == len(text):
            return end
        self._step = self._behind_name
        return end

    def _behind_name(self, text: str, at: int) -> int:
        char, inside = text[at], self._stack[-1]
        word = "".join(self._word)
        if char in BLANKS and inside == "call":
            return at + 1
        if not word or char != ("=" if inside == "call" else "("):
            return self._bad(at)
        if inside == "call":
            self._keyword = (word, self._at + at + 1)
            self._step = self._value
            return at + 1
        self.calls.append((word, []))
        return self._open("call", at)

    def _open_string(self, quote: str, at: int) -> int:
        self._quote, self._quotes = quote, 1
        self._step = self._string_head if self._python else self._string
        return at + 1

    def _string_head(self, text: str, at: int) -> int:
        """Behind the first quotes of a Python string: one, or three, or an empty string."""
        if text[at] == self._quote and self._quotes < 3:
            self._quotes += 1
            return at + 1
        if self._quotes == 2:
            return self._string_ended(at)
        if self._quotes == 3:
            self._quote, self._quotes, self._step = self._quote * 3, 0, self._long_string
        else:
            self._step = self._string
        return at

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        end = _PLAIN[self._quote].match(text, at).end()  # type: ignore[union-attr]
        if end == len(text):
            return end
        if text[end] == "\\":
            self._escaped = True
            return end + 1
        if text[end] == self._quote:
            return self._string_ended(end + 1)
        # JSON has no bare control characters, Python's short strings no bare line breaks.
        return end + 1 if self._python and text[end] not in "\r\n\0" else self._bad(end)

    def _long_string(self, text: str, at: int) -> int:
        char = text[at]
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped, self._quotes = True, 0
        elif char == self._quote[0]:
            self._quotes += 1
            if self._quotes == 3:
                return self._string_ended(at + 1)
        else:
            self._quotes = 0
        return at + 1

    def _string_ended(self, end: int) -> int:
        if self._stack and self._stack[-1] == "key":
            self._stack.pop()
            self._step = self._colon
        elif not self._stack:
            self.state = "bad"  # only brackets are of interest at the top
        else:
            self._ended(end)
        return end

"""How tool calls begin, in every form that Llama models and their relatives write.

One description serves twice: here it tells how far a growing text is decided, and the inference service makes grammars
of it.
"""

import re
from collections.abc import Collection, Sequence
from enum import Enum, auto
from typing import Literal

MOST_BLANKS = 12
BLANKS = " \t\n"
BLANK = None
"""Up to `MOST_BLANKS` blanks, or none."""


class AnyName(Enum):
    """A tool's name that need not be declared."""

    ANY_NAME = auto()
    WITHOUT_DOTS = auto()


_NAMES = {AnyName.ANY_NAME: re.compile(r"[\w.\-]*", re.ASCII), AnyName.WITHOUT_DOTS: re.compile(r"[\w\-]*", re.ASCII)}
_LONGEST_NAME = 64  # characters, as for declared tools
Atom = str | tuple[str, ...] | AnyName | None
"""A literal, one of several literals of which none begins another, any name, or `BLANK`."""
Opening = tuple[Atom, ...]
"""Atoms that follow each other."""

NAME_KEY: Opening = ('"name"', BLANK, ":", BLANK)
TYPE_KEY: Opening = ('"type"', BLANK, ":", BLANK, '"function"', BLANK, ",", BLANK)
FUNCTION_KEY: Opening = ('"function"', BLANK, ":", BLANK, "{", BLANK)
JSON_HEADS: tuple[Opening, ...] = (
    ("{", BLANK, *NAME_KEY),
    ("{", BLANK, *TYPE_KEY, *NAME_KEY),
    ("{", BLANK, *TYPE_KEY, *FUNCTION_KEY, *NAME_KEY),
)
JSON_WRAPPERS: tuple[Opening, ...] = (
    (),
    ("[", BLANK),
    ("<tool_call>", BLANK),
    ("<tool_call>", BLANK, "[", BLANK),
    ("```json", BLANK),
    ("```", BLANK),
)


def openings(
    names: Collection[str], *, python_names: Collection[str] = (), builtin_names: Collection[str] = ()
) -> tuple[Opening, ...]:
    """All beginnings of calls, each up to where the tool's name is complete.

    Args:
        names: tools that can be called in JSON and in function tags.
        python_names: tools that can be called in a Python list.
        builtin_names: tools that can be called as `NAME.call(query="...")`.
    """
    found: list[Opening] = []
    if names:
        quoted = tuple(f'"{name}"' for name in names)
        found += [(BLANK, *wrapper, *head, quoted) for wrapper in JSON_WRAPPERS for head in JSON_HEADS]
        found.append((BLANK, tuple(f"<function={name}>" for name in names)))
    if python_names:
        found.append((BLANK, "[", BLANK, tuple(f"{name}(" for name in python_names)))
    if builtin_names:
        found.append((BLANK, tuple(f"{name}.call(" for name in builtin_names)))
    return tuple(found)


def unmistakable_openings(*, tagged: bool, code: bool) -> tuple[Opening, ...]:
    """Beginnings of calls whose form alone says that they are meant as calls, so that an unknown tool's is one too.

    Args:
        tagged: after Llama 3's python tag, where there is nothing but calls.
        code: whether Python is a call there as well, so that what looks like it is not a call of another form.
    """
    name = AnyName.ANY_NAME
    marked = [wrapper for wrapper in JSON_WRAPPERS if tagged or "<tool_call>" in wrapper]
    found: list[Opening] = [(*wrapper, *head, '"', name, '"') for wrapper in marked for head in JSON_HEADS]
    found.append(("<function=", name, ">"))
    if tagged and not code:
        found += [("[", BLANK, name, "("), (AnyName.WITHOUT_DOTS, ".call(")]
    return tuple(found)


def decide(text: str, known: Sequence[Opening]) -> tuple[Literal["call", "text", "open"], Sequence[Opening]]:
    """What an answer that begins with `text` is; "open" while it can still be either.

    Returns:
        That, and the openings that are still possible: more text need not be compared with others.
    """
    states = [(_follow(text, opening), opening) for opening in known]
    left = [opening for state, opening in states if state != "text"]
    if any(state == "call" for state, _ in states):
        return "call", left
    return ("open" if left else "text"), left


def _follow(text: str, opening: Opening) -> Literal["call", "text", "open"]:
    at = 0
    for atom in opening:
        rest = text[at:]
        if atom is BLANK:
            count = len(rest) - len(rest.lstrip(BLANKS))
            if count > MOST_BLANKS:
                return "text"
            at += count
            continue
        if isinstance(atom, AnyName):
            name = _NAMES[atom].match(rest)
            assert name is not None
            if not name[0] or len(name[0]) > _LONGEST_NAME:
                return "text" if rest else "open"
            at += name.end()
            continue
        options = (atom,) if isinstance(atom, str) else atom
        whole = next((option for option in options if rest.startswith(option)), None)
        if whole is None:
            return "open" if any(option.startswith(rest) for option in options) else "text"
        at += len(whole)
    return "call"

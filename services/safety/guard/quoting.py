"""Text of a dialog that looks like the guard's own prompt: special tokens, marker lines, role labels.

Whoever writes `<END CONVERSATION>` or a line `Agent: ...` could end the conversation that the guard sees, or answer in
somebody else's name. Such pieces are quoted, so that they are text and nothing else, and every kind is reported.
"""

import re
from dataclasses import dataclass
from re import Match, Pattern

# Time is linear in any text: white space is never given back, and a run of it is looked at from its first character
# only, though each of its characters may end a line.
_MARKER = re.compile(
    r"<(\s*+(?:/\s*+)?(?:BEGIN|END)\s++(?:(?:UNSAFE\s++)?CONTENT\s*+CATEGORIES|CONVERSATION|RESPONSE)\s*+)>",
    re.IGNORECASE,
)
_LABEL = re.compile(r"(?<![^\S\n\r])[^\S\n\r]*+(?=(?:User|Agent)[^\S\n\r]*+:)", re.IGNORECASE)
# Beside \n and \r, which are no part of the run before a label.
_LINE_END = re.compile(r"[\v\f\x85\u2028\u2029]")
_LABEL_QUOTE = "> "


@dataclass(frozen=True)
class Quoted:
    """A text that cannot be taken for a part of the prompt."""

    text: str
    """The text, changed where it had to be."""
    findings: dict[str, int]
    """How many pieces of each kind were quoted: `special_token`, `marker_line`, `role_label`."""


def quote(text: str, look_alikes: Pattern[str], *, begins_line: bool) -> Quoted:
    """Put look-alikes of the prompt's own parts into quotation marks; role labels get `> ` before them.

    Args:
        text: What somebody wrote.
        look_alikes: What a written-out special token of the model looks like; its groups are the name.
        begins_line: Whether the text's first line begins a line of the prompt; it does not after a role label.
    """
    text, markers = _MARKER.subn(lambda match: f'"{match[1].strip()}"', text)
    text, tokens = look_alikes.subn(_named, text)
    text, labels = _without_labels(text, begins_line=begins_line)
    counts = {"special_token": tokens, "marker_line": markers, "role_label": labels}
    return Quoted(text, {kind: count for kind, count in counts.items() if count})


def _without_labels(text: str, *, begins_line: bool) -> tuple[str, int]:
    """The text with every start of a line that leads to a role label quoted, whichever character ended the line before.

    White space before a label may hold several such starts.
    """
    count = 0

    def quoted(match: Match[str]) -> str:
        nonlocal count
        at = match.start()
        starts = begins_line if at == 0 else text[at - 1] in "\n\r"
        run, ends = _LINE_END.subn(rf"\g<0>{_LABEL_QUOTE}", match[0])
        count += ends + starts
        return f"{_LABEL_QUOTE}{run}" if starts else run

    return _LABEL.sub(quoted, text), count


def _named(match: Match[str]) -> str:
    name = next((group for group in match.groups() if group), match[0])
    return f'"{name}"'

"""Text of a dialog that looks like the guard's own prompt: special tokens, marker lines, role labels.

Whoever writes `<END CONVERSATION>` or a line `Agent: ...` could end the conversation that the guard sees, or answer in
somebody else's name. Such pieces are quoted, so that they are text and nothing else, and every kind is reported.
"""

import re
from dataclasses import dataclass
from re import Match, Pattern

_MARKER = re.compile(
    r"<(\s*/?\s*(?:BEGIN|END)\s+(?:(?:UNSAFE\s+)?CONTENT\s*CATEGORIES|CONVERSATION|RESPONSE)\s*)>", re.IGNORECASE
)
# A label stands at the start of a line, whichever character ended the one before.
_LABEL = re.compile(
    r"(?:^|(?<=[\r\v\f\x85\u2028\u2029]))(?=[^\S\n\r]*(?:User|Agent)[^\S\n\r]*:)", re.IGNORECASE | re.MULTILINE
)


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
    first = _LABEL.match(text) is not None and not begins_line
    if first:
        text = "\0" + text  # keeps the first line from matching; removed below
    text, labels = _LABEL.subn("> ", text)
    text = text[1:] if first else text
    counts = {"special_token": tokens, "marker_line": markers, "role_label": labels}
    return Quoted(text, {kind: count for kind, count in counts.items() if count})


def _named(match: Match[str]) -> str:
    name = next((group for group in match.groups() if group), match[0])
    return f'"{name}"'

"""Program text inside answers: fenced blocks with their language and their place."""

import re
from dataclasses import dataclass

PYTHON = frozenset({"python", "python3", "py", "py3"})
NO_CODE = frozenset({"text", "txt", "plaintext", "plain", "output", "log", "json", "csv", "yaml", "yml", "toml", "ini",
                     "xml", "markdown", "md"})  # fmt: skip
"""Languages of blocks that are data or prose, which no scanner for code needs to see."""

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_OPENING = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^\s`{]*)")


@dataclass(frozen=True)
class CodeBlock:
    """A piece of code in a text."""

    language: str
    """As the fence says, lower case; empty when it says nothing."""
    code: str
    start: int
    """Where the code begins in the text, in characters."""

    @property
    def end(self) -> int:
        """One past its last character."""
        return self.start + len(self.code)


def fenced_blocks(text: str) -> list[CodeBlock]:
    """The fenced blocks of a Markdown text (CommonMark 0.31, section 4.5); one that is never closed goes to the end.

    Fences may be indented by any width, as in lists, for what is shown as code is to be read as code.
    """
    blocks = []
    fence, language, begins = "", "", 0
    for match in _LINE.finditer(text):
        line = match[0]
        if not fence:
            opening = _OPENING.match(line)
            if opening and not (opening[1][0] == "`" and "`" in line[opening.end(1) :]):
                fence, language, begins = opening[1], opening[2].lower(), match.end()
        elif _closes(line, fence):
            blocks.append(CodeBlock(language, text[begins : match.start()], begins))
            fence = ""
    if fence and begins < len(text):
        blocks.append(CodeBlock(language, text[begins:], begins))
    return blocks


def _closes(line: str, fence: str) -> bool:
    run = line.strip()
    return len(run) >= len(fence) and set(run) == {fence[0]}


def line_starts(code: str) -> list[int]:
    """Offset of every line, as Python counts lines."""
    return [match.start() for match in _LINE.finditer(code) if match[0] or match.start() == len(code)]

"""Where a text may be cut, from the strongest borders to the weakest."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from services.memory.cut.count import Tokens
from services.memory.text import Parsed

_HEADING = re.compile(r" {0,3}(#{1,6})\s")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_PARAGRAPH = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
LINE = re.compile(r"\n")
_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}[.)]|\|)[ \t]?", re.MULTILINE)
_SENTENCE = re.compile(r"[.!?…]+[\"'”’»)\]]*\s+|[。！？｡]+[”’」』）]*\s*")
_SHORT = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|[Dd]r|Mr|Mrs|Ms|Prof|St|vs|etc|e\.g|i\.e|cf|[Ff]ig|[Ee]q|[Nn]o|[Vv]ol|al|ca|approx|bzw|z\.B)\.\s+$"
)
WORD = re.compile(r"\s+")
_TOP_LEVEL = re.compile(
    r"(?:(?:export|default|pub(?:\([^)]*\))?|public|private|protected|internal|static|final|abstract|async|unsafe|extern"
    r"|inline|virtual|open|sealed|data|override|const)\s+)*"
    r"(?:def|class|fn|func|function|fun|impl|struct|enum|trait|interface|type|module|namespace|object|record|union|package"
    r"|message|service|rpc|macro|CREATE|create|template|sub|protocol|extension|mod|defmodule|defp|resource|variable)\b"
    r"|[A-Za-z_][\w:<>,*&\s\[\]]*\s[*&]?[A-Za-z_~][\w:]*\s*\([^;]*$"
)
_ATTACHED = re.compile(r"(?:@|#|//|/\*|\*|--|///|\"\"\"|template\s*<)")
"""Decorators and comments directly above a definition belong to it."""

PAGE_TOKENS = 12
"""Tokens of a page below which it goes with the next: a title alone says nothing."""

Borders = Sequence[int]
"""Characters before which a text may be cut, ascending."""


def levels(parsed: Parsed) -> list[Borders]:
    """The borders of a text, strongest first; words come last."""
    text = parsed.text
    match parsed.structure:
        case "markdown":
            found = _markdown(text)
        case "code":
            found = _code(text)
        case "table":
            found = [ends(_PARAGRAPH, text), ends(LINE, text), sentences(text)]
        case _:
            found = [ends(_PARAGRAPH, text), sentences(text), ends(LINE, text)]
    return [*found, ends(WORD, text)]


def sections(parsed: Parsed, tokens: Tokens) -> list[tuple[int, int]]:
    """Parts that no piece may reach over: pages, but those of a few words with the next; without pages, one."""
    edges = [0, *within(sorted(parsed.pages), 0, len(parsed.text)), len(parsed.text)]
    result, begin = [], 0
    for stop in edges[1:]:
        if tokens.count(begin, stop) >= PAGE_TOKENS or stop == edges[-1]:
            result.append((begin, stop))
            begin = stop
    return result


def sentences(text: str) -> Borders:
    """Where sentences begin; not after common abbreviations and initials."""
    result = []
    for match in _SENTENCE.finditer(text):
        if text[match.start()] == "." and _SHORT.search(text[max(0, match.start() - 8) : match.end()]):
            continue
        result.append(match.end())
    return sorted({*result, *ends(_PARAGRAPH, text)})


def ends(pattern: re.Pattern[str], text: str) -> Borders:
    """One past each match."""
    return [match.end() for match in pattern.finditer(text)]


def within(borders: Borders, start: int, stop: int) -> Borders:
    """Those strictly inside a part."""
    return borders[bisect_right(borders, start) : bisect_left(borders, stop)]


def _markdown(text: str) -> list[Borders]:
    headings: list[list[int]] = [[], [], []]
    fenced: list[tuple[int, int]] = []
    at, fence, opened = 0, "", 0
    for line in text.splitlines(keepends=True) if "\x0b" not in text else text.split("\n"):
        line_length = len(line)
        mark = _FENCE.match(line)
        if mark and not fence:
            fence, opened = mark[1], at
        elif mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not line[mark.end() :].strip():
            fenced.append((opened, at + line_length))
            fence = ""
        elif not fence and (heading := _HEADING.match(line)):
            headings[min(len(heading[1]), 3) - 1].append(at)
        at += line_length
    if fence:
        fenced.append((opened, len(text)))
    blocks = _outside(ends(_PARAGRAPH, text), fenced)
    items = sorted({*_outside([match.start() for match in _ITEM.finditer(text)], fenced), *(a for a, _ in fenced)})
    inside = [place for place in ends(_PARAGRAPH, text) if place not in set(blocks)]
    return [*headings, blocks, items, inside, sentences(text), ends(LINE, text)]


def _outside(places: Borders, spans: Sequence[tuple[int, int]]) -> Borders:
    result, index = [], 0
    for place in places:
        while index < len(spans) and spans[index][1] <= place:
            index += 1
        if index == len(spans) or place <= spans[index][0]:
            result.append(place)
    return result


def _code(text: str) -> list[Borders]:
    outer: list[int] = []
    inner: list[int] = []
    at, attached, before = 0, -1, False
    for line in text.split("\n"):
        bare = line.lstrip(" \t")
        indent = len(line) - len(bare)
        if bare and _TOP_LEVEL.match(bare):
            (outer if indent == 0 else inner).append(attached if attached >= 0 else at)
            attached = -1
        elif bare and _ATTACHED.match(bare):
            attached = attached if attached >= 0 and before else at
        else:
            attached = -1
        before = bool(bare)
        at += len(line) + 1
    return [sorted(set(outer)), sorted(set(inner)), ends(_PARAGRAPH, text), ends(LINE, text)]

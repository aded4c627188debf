"""HTML: what a reader sees, as Markdown."""

import re
from collections.abc import Iterator
from typing import Any

from lxml import etree
from lxml import html as lxml_html

from services.memory.parse.extract import Extract, RefusedError
from services.memory.parse.kinds import MIME_TYPES
from services.memory.parse.markup import escape_line, table_lines

_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_DROPPED = {
    "script", "style", "noscript", "template", "nav", "aside", "footer", "form", "button", "select", "input",
    "textarea", "svg", "canvas", "iframe", "object", "embed", "audio", "video", "head", "dialog", "math",
}  # fmt: skip
_BLOCKS = {
    "p", "div", "section", "article", "main", "header", "figure", "figcaption", "blockquote", "dl", "dt", "dd", "ul",
    "ol", "hr", "address", "details", "summary", "fieldset", "body", "html", "center",
}  # fmt: skip
_UNSEEN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse))\b", re.IGNORECASE)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLANKS = re.compile(r"[ \t\r\n\f]+")
_MANY_LINES = re.compile(r"\n{3,}")


def charset_of(data: bytes) -> str:
    """The encoding that a page declares about itself; empty = none."""
    found = _CHARSET.search(data[:4096])
    return found[1].decode("ascii", "replace") if found else ""


def read_html(text: str) -> Extract:
    """The text of a page.

    Raises:
        RefusedError: If it is nested too deep or has no text.
    """
    parser = lxml_html.HTMLParser(
        encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True, huge_tree=False
    )
    try:
        root = lxml_html.document_fromstring(_XML_DECLARATION.sub("", text).encode(), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError) as error:
        raise RefusedError(f"it is no HTML that can be read ({error}): save it again or as text") from error
    if any("depth" in entry.message.lower() for entry in parser.error_log):
        raise RefusedError("its elements are nested too deep: save it in a simpler form")
    title = escape_line(root.findtext(".//title") or "")
    writer = _Writer()
    _walk(root, writer)
    result = _MANY_LINES.sub("\n\n", writer.text()).strip()
    if not result:
        raise RefusedError("the page has no text; if scripts write it, give the page as they leave it")
    # What the page says of itself is often in its title alone.
    if title and title.casefold() != result.partition("\n")[0].lstrip("#").strip().casefold():
        result = f"# {title}\n\n{result}"
    return Extract(text=result, mime_type=MIME_TYPES["html"], structure="markdown", title=title)


class _Writer:
    """Collects text; runs of space become one, except where they count."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._line = ""
        self.lists: list[int | None] = []
        """Of the lists that are open: the next number, or None without numbers."""

    def inline(self, text: str) -> None:
        text = _BLANKS.sub(" ", text)
        if text.startswith(" ") and (not self._line or self._line.endswith((" ", "\n"))):
            text = text[1:]
        self._line += text

    def end_line(self) -> None:
        if self._line.strip():
            self._parts.append(self._line.rstrip() + "\n")
        self._line = ""

    def end_block(self) -> None:
        self.end_line()
        self._parts.append("\n")

    def begin(self, mark: str) -> None:
        self.end_line()
        self._line = mark

    def verbatim(self, text: str) -> None:
        self.end_block()
        self._parts.append(text.strip("\n") + "\n\n")

    def text(self) -> str:
        self.end_line()
        return "".join(self._parts)


def _walk(element: Any, writer: _Writer) -> None:  # noqa: ANN401 (one case a kind of element)
    """Write an element; the parser allows 256 levels, so that recursion is safe."""
    tag = element.tag if isinstance(element.tag, str) else ""
    match tag:
        case _ if not _is_seen(element):
            return
        case _ if tag in _HEADINGS:
            text = escape_line("".join(_texts(element)))
            if text:
                writer.verbatim("#" * _HEADINGS[tag] + " " + text)
        case "table" if not element.xpath(".//table"):
            rows = [
                [escape_line(" ".join(_texts(cell))) for cell in row.xpath("./td|./th")] for row in element.iter("tr")
            ]
            writer.verbatim("\n".join(table_lines(rows)))
        case "pre":
            writer.verbatim("```\n" + "".join(_texts(element)).strip("\n") + "\n```")
        case "br":
            writer.end_line()
        case "ul" | "ol":
            _list(element, writer, ordered=tag == "ol")
        case "li":
            _item(element, writer)
        case "tr":
            writer.end_line()
            _children(element, writer)
            writer.end_line()
        case _ if tag in _BLOCKS:
            writer.end_block()
            _children(element, writer)
            writer.end_block()
        case _:
            _children(element, writer)
            if tag in {"td", "th"}:
                writer.inline(" ")


def _is_seen(element: Any) -> bool:  # noqa: ANN401
    """Whether a reader sees an element and it is part of the matter."""
    if element.tag in {"html", "body"}:
        return True  # many are hidden as a whole until their scripts ran
    if not isinstance(element.tag, str) or element.tag in _DROPPED or element.get("hidden") is not None:
        return False
    return element.get("aria-hidden", "").strip().lower() != "true" and not _UNSEEN.search(element.get("style", ""))


def _children(element: Any, writer: _Writer) -> None:  # noqa: ANN401
    writer.inline(element.text or "")
    for child in element:
        _walk(child, writer)
        writer.inline(child.tail or "")


def _list(element: Any, writer: _Writer, *, ordered: bool) -> None:  # noqa: ANN401
    if not writer.lists:
        writer.end_block()
    writer.lists.append(1 if ordered else None)
    _children(element, writer)
    writer.lists.pop()
    if not writer.lists:
        writer.end_block()


def _item(element: Any, writer: _Writer) -> None:  # noqa: ANN401
    number = writer.lists[-1] if writer.lists else None
    indent = "  " * max(len(writer.lists) - 1, 0)
    if number is not None:
        writer.lists[-1] = number + 1
    writer.begin(f"{indent}{number}. " if number is not None else f"{indent}- ")
    _children(element, writer)
    writer.end_line()


def _texts(element: Any) -> Iterator[str]:  # noqa: ANN401
    """All texts inside an element but those that nobody sees."""
    if not _is_seen(element):
        return
    yield element.text or ""
    for child in element:
        yield from _texts(child)
        if child.tag == "br":
            yield "\n"
        yield child.tail or ""

"""Word and PowerPoint: paragraphs, headings, lists and tables as Markdown; slides as pages."""

import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import docx
import pptx
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml.ns import qn
from docx.table import Table
from docx.text.paragraph import Paragraph
from lxml import etree

from services.memory.parse.extract import Extract, Limits, RefusedError, cause
from services.memory.parse.kinds import MIME_TYPES, check_zip
from services.memory.parse.markup import escape_line, table_lines

_HEADING = re.compile(r"(?:heading|überschrift|titre|título)\s*([1-9])", re.IGNORECASE)
_LIST = re.compile(r"list", re.IGNORECASE)
_DOCTYPE = re.compile(rb"<!(?:DOCTYPE|ENTITY)|<\0!\0(?:D\0O\0C\0T\0|E\0N\0T\0I\0)")


def read_docx(data: bytes, *, limits: Limits) -> Extract:
    """The text of a Word document.

    Raises:
        RefusedError: If it is encrypted, damaged, too large or has no text.
    """
    document = _opened(data, docx.Document, limits=limits)
    lines = list(_blocks(document))
    text = "\n\n".join(line for line in lines if line.strip())
    if not text.strip():
        raise RefusedError("it has no text, only pictures or drawings: nothing can be found in it")
    return Extract(text=text, mime_type=MIME_TYPES["docx"], structure="markdown", title=_title(document))


def read_pptx(data: bytes, *, limits: Limits) -> Extract:
    """The text of a presentation, each slide a page with its notes.

    Raises:
        RefusedError: If it is encrypted, damaged, too large or has no text.
    """
    deck = _opened(data, pptx.Presentation, limits=limits)
    texts, starts, at = [], [], 0
    for number, slide in enumerate(deck.slides, 1):
        if number > limits.pages:
            raise RefusedError(f"it has more than {limits.pages} slides: split it", reason="too_large")
        text = "\n\n".join(part for part in _slide(slide) if part.strip())
        starts.append(at)
        texts.append(text)
        at += len(text) + 2
    if not any(texts):
        raise RefusedError("its slides have no text, only pictures: nothing can be found in it")
    return Extract(
        text="\n\n".join(texts),
        mime_type=MIME_TYPES["pptx"],
        structure="markdown",
        pages=tuple(starts),
        title=_title(deck),
    )


def _opened(data: bytes, read: Callable[[Any], Any], *, limits: Limits) -> Any:  # noqa: ANN401 (untyped packages)
    archive = check_zip(data, limits=limits)
    try:
        _check_entities(archive)
        return read(io.BytesIO(data))
    except RefusedError:
        raise
    except etree.XMLSyntaxError as error:
        raise RefusedError(f"it is damaged or nested too deep ({cause(error)}): open and save it again") from error
    except MemoryError:
        raise
    except Exception as error:
        message = f"it is damaged ({cause(error)}): open and save it again"
        raise RefusedError(message[:500]) from error


def _check_entities(archive: zipfile.ZipFile) -> None:
    for part in archive.infolist():
        if part.filename.endswith((".xml", ".rels")) and _DOCTYPE.search(archive.read(part)):
            raise RefusedError("it declares XML entities, which no Office program writes: it is refused as hostile")


def _title(document: Any) -> str:  # noqa: ANN401 (untyped packages)
    try:
        return (document.core_properties.title or "").strip()
    except (KeyError, ValueError, AttributeError):
        return ""


def _blocks(document: Any) -> Iterator[str]:  # noqa: ANN401 (untyped packages)
    styles = _styles(document)
    items: list[str] = []
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            yield from _flushed(items)
            yield _table(block)
            continue
        line = _paragraph(block, styles)
        if line.startswith("- "):
            items.append(line)
            continue
        yield from _flushed(items)
        yield line
    yield from _flushed(items)


def _styles(document: Any) -> Mapping[str, str]:  # noqa: ANN401 (untyped packages)
    """Names of styles by their identifiers, looked up once: the public way searches all for each paragraph."""
    try:
        document.part.part_related_by(RELATIONSHIP_TYPE.STYLES)
    except KeyError:
        return {}  # python-docx would open its own template, which the sandbox forbids
    return {style.style_id: style.name or "" for style in document.styles}


def _flushed(items: list[str]) -> Iterator[str]:
    if items:
        yield "\n".join(items)
        items.clear()


def _paragraph(paragraph: Paragraph, styles: Mapping[str, str]) -> str:
    text = paragraph.text.strip()
    if not text:
        return ""
    identifier = paragraph._p.style or ""  # noqa: SLF001 (see `_styles`)
    style = styles.get(identifier, identifier)  # one that is not described: Heading1 says enough
    if style == "Title":
        return "# " + escape_line(text)
    heading = _HEADING.match(style)
    if heading:
        return "#" * min(int(heading[1]), 6) + " " + escape_line(text)
    properties = paragraph._p.pPr  # noqa: SLF001 (python-docx has no public way to numbering)
    if _LIST.match(style) or (properties is not None and properties.numPr is not None):
        return "- " + escape_line(text)
    return text


def _table(table: Table) -> str:
    # The public way takes quadratic time and repeats merged cells.
    rows = [[" ".join(_cell_texts(cell)) for cell in row.tc_lst] for row in table._tbl.tr_lst]  # noqa: SLF001
    return "\n".join(table_lines(rows))


def _cell_texts(cell: Any) -> Iterator[str]:  # noqa: ANN401 (untyped packages)
    for paragraph in cell.iter(qn("w:p")):
        text = "".join(node.text or "" for node in paragraph.iter(qn("w:t")))
        if text.strip():
            yield text.strip()


def _slide(slide: Any) -> Iterator[str]:  # noqa: ANN401 (untyped packages)
    title = slide.shapes.title
    if title is not None and title.has_text_frame and title.text_frame.text.strip():
        yield "## " + escape_line(title.text_frame.text)
    for shape in _shapes(slide.shapes):
        if title is not None and shape.shape_id == title.shape_id:
            continue
        if shape.has_text_frame:
            yield _frame(shape.text_frame)
        elif getattr(shape, "has_table", False):
            yield "\n".join(table_lines([[cell.text for cell in row.cells] for row in shape.table.rows]))
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        notes = slide.notes_slide.notes_text_frame.text.strip()
        if notes:
            yield "Notes: " + notes.replace("\v", "\n")


def _shapes(shapes: Any) -> Iterator[Any]:  # noqa: ANN401 (untyped packages)
    """All shapes, those of groups in their place; without recursion: groups may be nested at will."""
    waiting = [iter(shapes)]
    while waiting:
        shape = next(waiting[-1], None)
        if shape is None:
            waiting.pop()
        elif hasattr(shape, "shapes"):
            waiting.append(iter(shape.shapes))
        else:
            yield shape


def _frame(frame: Any) -> str:  # noqa: ANN401 (untyped packages)
    lines = [(paragraph.level, paragraph.text.replace("\v", " ").strip()) for paragraph in frame.paragraphs]
    lines = [(level, text) for level, text in lines if text]
    if len(lines) < 2:
        return "".join(text for _, text in lines)
    return "\n".join("  " * level + "- " + text for level, text in lines)

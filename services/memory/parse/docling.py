"""Parsing by docling, an optional package of layout models: better tables, larger, slower."""

import io

from docling.datamodel.base_models import ConversionStatus, DocumentStream
from docling.document_converter import DocumentConverter

from services.memory.parse import builtin, kinds
from services.memory.parse.extract import Extract, RefusedError, Task

PACKAGE = "docling"


def parse(task: Task, data: bytes) -> Extract:
    """The text of a document: PDF and Office files by docling, the rest by the built-in parser.

    Raises:
        RefusedError: If it cannot be read.
    """
    kind = kinds.binary_kind(data, limits=task.limits)
    if not kind:
        return builtin.parse(task, data)
    source = DocumentStream(name=f"document.{kind}", stream=io.BytesIO(data))
    limits = task.limits
    result = DocumentConverter().convert(
        source, raises_on_error=False, max_num_pages=limits.pages, max_file_size=len(data) + 1
    )
    if result.status not in {ConversionStatus.SUCCESS, ConversionStatus.PARTIAL_SUCCESS}:
        reasons = "; ".join(error.error_message for error in result.errors) or "no reason given"
        raise RefusedError(f"docling cannot read it ({reasons}): save it again")
    texts, starts, at = [], [], 0
    for number in sorted(result.document.pages) or [None]:
        text = result.document.export_to_markdown(page_no=number).strip()
        starts.append(at)
        texts.append(text)
        at += len(text) + 2
    text = "\n\n".join(texts)
    if not text.strip():
        raise RefusedError("it has no text")
    pages = tuple(starts) if result.document.pages else ()
    return Extract(text=text, mime_type=kinds.MIME_TYPES[kind], structure="markdown", pages=pages)

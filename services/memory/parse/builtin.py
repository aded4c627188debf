"""The built-in parser: from bytes to text, by kind."""

import re
from dataclasses import replace

from services.memory.parse import kinds
from services.memory.parse.extract import Extract, RefusedError, Task
from services.memory.parse.html import charset_of, read_html
from services.memory.parse.office import read_docx, read_pptx
from services.memory.parse.pdf import read_pdf
from services.memory.parse.records import read_csv, read_json, read_jsonl

_TITLE = re.compile(r"^#\s+(.+?)\s*#*$", re.MULTILINE)
_SURROGATES = re.compile("[\ud800-\udfff]")
_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]+)", re.IGNORECASE)


def parse(task: Task, data: bytes) -> Extract:
    """The text of a document.

    Raises:
        RefusedError: If it cannot be read; the message says why, and what to do.
    """
    limits = task.limits
    match kinds.binary_kind(data, limits=limits):
        case "pdf":
            extract = read_pdf(data, limits=limits)
        case "docx":
            extract = read_docx(data, limits=limits)
        case "pptx":
            extract = read_pptx(data, limits=limits)
        case _:
            declared = _CHARSET.search(task.mime_type)
            charset = declared[1] if declared else charset_of(data)
            text = kinds.text_of_bytes(data, declared_charset=charset)
            extract = read_text(text, task)
    text = _SURROGATES.sub("\ufffd", extract.text).replace("\0", "")
    if not text.strip():
        raise RefusedError("it is empty: there is nothing to read")
    if len(text) > limits.characters:
        message = f"it has {len(text)} characters; at most {limits.characters} are allowed: split it"
        raise RefusedError(message, reason="too_large")
    return replace(extract, text=text, title=_SURROGATES.sub("\ufffd", extract.title).replace("\0", ""))


def read_text(text: str, task: Task) -> Extract:
    """The text of a text of any kind.

    Raises:
        RefusedError: If it is not well-formed.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    kind = kinds.text_kind(text, name=task.name, mime_type=task.mime_type)
    match kind:
        case "html":
            return read_html(text)
        case "csv" | "tsv":
            return read_csv(text, kind=kind, limits=task.limits)
        case "json" | "jsonl":
            return (read_json if kind == "json" else read_jsonl)(text, limits=task.limits)
        case "markdown":
            title = _TITLE.search(text[:4096])
            return Extract(
                text=text, mime_type=kinds.MIME_TYPES[kind], structure="markdown", title=title[1] if title else ""
            )
        case "code" | "xml":
            language = "xml" if kind == "xml" else kinds.language_of(text, task.name)
            return Extract(text=text, mime_type=kinds.MIME_TYPES[kind], structure="code", language=language)
        case _:
            return Extract(text=text, mime_type=kinds.MIME_TYPES["text"])

"""What a document is: found by its content; the name only tells kinds of text apart."""

import io
import json
import mimetypes
import re
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath

from services.memory.parse.decode import decoded
from services.memory.parse.extract import Limits, RefusedError

TEXT_KINDS = ("html", "markdown", "csv", "tsv", "json", "jsonl", "xml", "code", "text")
MIME_TYPES: Mapping[str, str] = {
    "pdf": "application/pdf",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "html": "text/html",
    "markdown": "text/markdown",
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    "json": "application/json",
    "jsonl": "application/jsonl",
    "xml": "application/xml",
    "code": "text/x-source",
    "text": "text/plain",
}
LANGUAGES: Mapping[str, str] = {
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript",
    ".jsx": "javascript", ".ts": "typescript", ".tsx": "typescript", ".java": "java", ".kt": "kotlin",
    ".scala": "scala", ".go": "go", ".rs": "rust", ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp",
    ".hpp": "cpp", ".cu": "cpp", ".cs": "csharp", ".swift": "swift", ".rb": "ruby", ".php": "php", ".lua": "lua",
    ".pl": "perl", ".r": "r", ".jl": "julia", ".sh": "shell", ".bash": "shell", ".zsh": "shell", ".sql": "sql",
    ".proto": "protobuf", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".ini": "ini", ".cfg": "ini",
    ".css": "css", ".scss": "css", ".vue": "vue", ".tex": "latex", ".jsonc": "json", ".json5": "json",
    ".dart": "dart", ".ex": "elixir", ".exs": "elixir", ".erl": "erlang", ".hs": "haskell", ".ml": "ocaml",
    ".clj": "clojure", ".tf": "terraform", ".cmake": "cmake", ".gradle": "groovy", ".groovy": "groovy",
}  # fmt: skip
_BY_SUFFIX: Mapping[str, str] = {
    ".html": "html", ".htm": "html", ".xhtml": "html", ".md": "markdown", ".markdown": "markdown", ".mdx": "markdown",
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".xml": "xml", ".svg": "xml", ".txt": "text", ".text": "text", ".log": "text",
}  # fmt: skip
_BY_MIME: Mapping[str, str] = {
    **{mime: kind for kind, mime in MIME_TYPES.items() if kind in TEXT_KINDS},
    "application/xhtml+xml": "html", "text/x-markdown": "markdown", "application/x-ndjson": "jsonl", "text/xml": "xml",
    "application/x-jsonlines": "jsonl", "application/csv": "csv", "text/tsv": "tsv",
}  # fmt: skip
_CODE_MIMES = re.compile(
    r"(text|application)/(x-)?(python|script\.python|javascript|typescript|java|c|c\+\+|go|rust|sh|sql)"
)
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"), (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"), (b"II*\0", "a TIFF image"), (b"MM\0*", "a TIFF image"), (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"), (b"\xfd7zXZ\0", "an xz archive"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"), (b"\x28\xb5\x2f\xfd", "a zstd archive"), (b"ID3", "an audio file"),
    (b"OggS", "an audio file"), (b"fLaC", "an audio file"), (b"\x7fELF", "a program"), (b"MZ", "a program"),
    (b"SQLite format 3\0", "an SQLite database"), (b"PAR1", "a Parquet file"), (b"\x00asm", "a program"),
    (b"{\\rtf", "an RTF document: save it as DOCX or PDF"), (b"RIFF", "an audio, video or image file"),
    (b"%!PS", "a PostScript file: save it as PDF"),
)  # fmt: skip
_TEXTS_TOO = {b"BM", b"MZ", b"ID3", b"PAR1", b"RIFF", b"GIF8", b"BZh", b"OggS", b"fLaC"}
"""Magic that a text may begin with: it counts only where the content is no text."""
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HTML = re.compile(
    r"\s*(<\?xml[^>]*\?>\s*)?(<!--.*?-->\s*)*(<!doctype\s+html|<html|<head|<body)", re.IGNORECASE | re.DOTALL
)
_HEAD = 4096


def binary_kind(data: bytes, *, limits: Limits) -> str:
    """`pdf`, `docx` or `pptx`; empty for what may be text.

    Raises:
        RefusedError: If it is empty, or something that has no text for us.
    """
    if not data.strip(b"\0\t\n\r \xef\xbb\xbf"):
        raise RefusedError("it is empty: there is nothing to read")
    if b"%PDF-" in data[:1024]:
        return "pdf"
    if data.startswith(_OLE):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise RefusedError("it is encrypted: save it without a password")
        raise RefusedError(
            "it is an old Office file (.doc, .xls, .ppt): save it as DOCX, PPTX or CSV", reason="unsupported"
        )
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zipped(data, limits=limits)
    for magic, what in _MAGIC:
        if data.startswith(magic) and magic not in _TEXTS_TOO:
            raise _unsupported(what)
    if data[4:8] == b"ftyp":
        raise _unsupported("a video or image file")
    return ""


def text_kind(text: str, *, name: str, mime_type: str) -> str:
    """Which of `TEXT_KINDS` a text is: HTML, XML and JSON by content, the rest by name and declared type."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    declared = mime_type.partition(";")[0].strip().lower()
    named = "code" if suffix in LANGUAGES else _BY_SUFFIX.get(suffix, "")
    if named in {"", "text"}:
        named = _BY_MIME.get(declared, "code" if _CODE_MIMES.fullmatch(declared) else named)
    if named in {"markdown", "code", "csv", "tsv", "jsonl"}:
        return named
    head = text[:_HEAD].lstrip("\ufeff")
    if _HTML.match(head) or named == "html":
        return "html"
    if head.lstrip().startswith("<?xml"):
        return "xml"
    if head.lstrip().startswith(("{", "[")) and named in {"", "text", "xml"}:
        return _json_kind(text) or "text"
    if head.startswith("#!") and not named:
        return "code"
    return named or "text"


def language_of(text: str, name: str) -> str:
    """Programming language by the name, or by the line that names an interpreter."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    first = text[:200].split("\n", 1)[0]
    if suffix not in LANGUAGES and first.startswith("#!"):
        known = {
            "python": "python",
            "bash": "shell",
            "sh": "shell",
            "node": "javascript",
            "perl": "perl",
            "ruby": "ruby",
        }
        return next((language for word, language in known.items() if word in first), "")
    return LANGUAGES.get(suffix, "")


def magic_of(data: bytes) -> str:
    """What bytes that are no text look like, for an error."""
    return next((what for magic, what in _MAGIC if data.startswith(magic)), "no text: it has bytes that no text has")


def check_zip(data: bytes, *, limits: Limits) -> zipfile.ZipFile:
    """A zipped document whose parts may be read.

    Raises:
        RefusedError: If it is damaged, encrypted, or would become too large.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError) as error:
        raise RefusedError(f"it is damaged: its zip directory cannot be read ({error}); save it again") from error
    if any(part.flag_bits & 1 for part in parts):
        raise RefusedError("it is encrypted: save it without a password")
    # `zipfile` never inflates a part beyond what the directory says, so that a lie only cuts the part short.
    size = sum(part.file_size for part in parts)
    if size > limits.inflated_bytes or len(parts) > 20_000:
        message = (
            f"its {len(parts)} parts would become {size} bytes; at most {limits.inflated_bytes} are allowed: split it"
        )
        raise RefusedError(message, reason="too_large")
    return archive


def _zipped(data: bytes, *, limits: Limits) -> str:
    names = set(check_zip(data, limits=limits).namelist())
    if "word/document.xml" in names:
        return "docx"
    if "ppt/presentation.xml" in names:
        return "pptx"
    if any(name.startswith("xl/") for name in names):
        raise _unsupported("an Excel workbook: save its sheets as CSV")
    if "mimetype" in names:
        raise _unsupported("an OpenDocument file or an e-book: save it as DOCX, PDF or HTML")
    raise _unsupported("a zip archive: unpack it and ingest its files")


def _json_kind(text: str) -> str:
    try:
        json.loads(text)
    except RecursionError:
        return "json"
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()][:2]
        return "jsonl" if len(lines) == 2 and all(_is_object(line) for line in lines) else ""
    return "json"


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _unsupported(what: str) -> RefusedError:
    advice = "" if ":" in what else ": give PDF, DOCX, PPTX, HTML, Markdown, text, CSV, JSON or code"
    return RefusedError(f"it is {what}{advice}", reason="unsupported")


def text_of_bytes(data: bytes, *, declared_charset: str = "") -> str:
    """The text of bytes that no other kind claimed.

    Raises:
        RefusedError: If they are no text.
    """
    text = decoded(data, declared=declared_charset)
    if text is None:
        raise _unsupported(magic_of(data))
    return text


def guess_mime_type(head: bytes, name: str) -> str:
    """Media type by the first bytes and the name, without reading the document; empty = not known."""
    if b"%PDF-" in head[:1024]:
        return MIME_TYPES["pdf"]
    suffix = PurePosixPath(name).suffix.lower()
    if head.startswith(b"PK\x03\x04"):
        return MIME_TYPES.get(suffix.removeprefix("."), "application/zip")
    guessed = _BY_SUFFIX.get(suffix, "code" if suffix in LANGUAGES else "")
    if guessed and b"\0" not in head:
        return MIME_TYPES[guessed]
    found = next((mime for magic, mime in _MIME_MAGIC if head.startswith(magic)), "")
    return found or mimetypes.guess_type(name)[0] or ""


_MIME_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"\x1f\x8b", "application/gzip"),
)

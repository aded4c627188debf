"""PDF: the text of each page, as pdfium reads it."""

import re

import pypdfium2

from services.memory.parse.extract import Extract, Limits, RefusedError
from services.memory.parse.kinds import MIME_TYPES

_PASSWORD = ("Incorrect password", "Unsupported security")
_BROKEN_WORD = re.compile(r"[\ufffe\x02\u00ad]\r?\n?")
"""pdfium's mark of a hyphen that only broke a line."""


def read_pdf(data: bytes, *, limits: Limits) -> Extract:
    """The text of a PDF.

    Raises:
        RefusedError: If it is encrypted, damaged, too long or has no text.
    """
    try:
        document = pypdfium2.PdfDocument(data)
        count = len(document)
    except pypdfium2.PdfiumError as error:
        if any(word in str(error) for word in _PASSWORD):
            raise RefusedError("it is encrypted: save it without a password") from error
        raise RefusedError(f"it is a damaged PDF ({error}): save or print it again") from error
    if count > limits.pages:
        raise RefusedError(f"it has {count} pages; at most {limits.pages} are allowed: split it", reason="too_large")
    texts, starts, at = [], [], 0
    for number in range(count):
        text = _page(document, number)
        starts.append(at)
        texts.append(text)
        at += len(text) + 2
        if at > limits.characters:
            message = f"it has more than {limits.characters} characters by page {number + 1}: split it"
            raise RefusedError(message, reason="too_large")
    if not any(text.strip() for text in texts):
        raise RefusedError(
            f"its {count} pages have no text; if they are scanned, run character recognition (OCR) first"
        )
    title = document.get_metadata_dict().get("Title", "").strip()
    document.close()
    return Extract(text="\n\n".join(texts), mime_type=MIME_TYPES["pdf"], pages=tuple(starts), title=title)


def _page(document: pypdfium2.PdfDocument, number: int) -> str:
    try:
        page = document[number]
        content = page.get_textpage()
        text = content.get_text_range()
    except pypdfium2.PdfiumError as error:
        raise RefusedError(f"its page {number + 1} is damaged ({error}): save or print it again") from error
    content.close()
    page.close()
    text = _BROKEN_WORD.sub("", text).replace("\0", "")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()

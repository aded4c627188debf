"""Documents that come with a question: short text and images go beside it, everything else is searched."""

import hashlib
from collections.abc import Iterable

from llamastack import v1
from stack_client.content import text_of
from stack_client.errors import InvalidArgumentError

MOST_CHARACTERS = 16_000
"""Of one text that is put into the question whole; longer ones are searched."""


def bank_of(session_id: str) -> str:
    """The vector bank with the documents of a session's questions."""
    return f"attachments-{session_id}"


def beside(documents: Iterable[v1.Document]) -> list[v1.ContentItem]:
    """What of the documents belongs into the question itself."""
    items = []
    for document in documents:
        if not _is_short(document):
            continue
        for item in document.content.content.items:
            text = v1.ContentItem(text=f"\n\n[Attached file]\n{item.text}") if item.HasField("text") else item
            items.append(text)
    return items


def searched(documents: Iterable[v1.Document]) -> list[v1.RAGDocument]:
    """What of the documents goes into the session's bank, each under the hash of what it is."""
    found = []
    for document in documents:
        if _is_short(document):
            continue
        name = hashlib.sha256(document.SerializeToString(deterministic=True)).hexdigest()[:32]
        kind = document.mime_type or None
        found.append(v1.RAGDocument(document_id=name, content=document.content, mime_type=kind))
    return found


def check_documents(documents: Iterable[v1.Document]) -> None:
    """Refuse documents that are empty.

    Raises:
        InvalidArgumentError: Naming the document.
    """
    for index, document in enumerate(documents):
        field = f"documents[{index}].content"
        form = document.content.WhichOneof("form")
        if form is None or (form == "content" and not document.content.content.items):
            message = f"{field} is empty; give text, an image, or the document's address"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field=field)


def _is_short(document: v1.Document) -> bool:
    if document.content.WhichOneof("form") != "content":
        return False
    return len(text_of(document.content.content)) <= MOST_CHARACTERS

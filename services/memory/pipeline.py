"""From a source to a document that can be stored: fetched, parsed, cut."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from llamastack import v1
from services.memory import cut as cutting_package
from services.memory import filters, parse
from services.memory.bank import Bank
from services.memory.chunks import Vector
from services.memory.cut.context import ContextWriter
from services.memory.cut.cutter import Cutting, cut
from services.memory.embedder import Embedder, EmbeddingModel
from services.memory.fetch import Fetched, Fetcher, is_data
from services.memory.ingest_metrics import IngestMetrics
from services.memory.metadata import metadata_of
from services.memory.parse.pool import ParserPool
from services.memory.text import DraftChunk, DraftDocument, Parsed, Structure
from services.runtime.names import check_printable
from stack_client.content import text_of
from stack_client.errors import InvalidArgumentError

MAX_DOCUMENT_ID = 512
# A text that says nothing of its kind may hold Markdown, whose headings and lists are good borders in any text.
_PLAIN: Mapping[str, Structure] = {"": "markdown", "text/plain": "prose", "text/markdown": "markdown"}


class Store(Protocol):
    """What ingestion needs of `DocumentStore`."""

    async def recipe(self, bank: Bank, document_id: str) -> str:
        """Recipe of a stored document; empty when there is none."""

    async def put(self, bank: Bank, draft: DraftDocument) -> Any:  # noqa: ANN401 (its `Stored`: status and chunks)
        """Store or replace a document in one transaction."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A document before it is read."""

    document_id: str
    """Unique in its bank."""
    data: bytes
    """Its content; texts as UTF-8."""
    name: str = ""
    """File name or URL, as citations show it."""
    mime_type: str = ""
    """As declared; a hint among kinds of text."""
    file_id: str = ""
    """The uploaded file; empty = none."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The user's facts."""
    expires_at: int | None = None
    """Microseconds since 1970; None means never."""
    is_text: bool = False
    """It was given as text, not as a file."""


@dataclass(frozen=True)
class Prepared:
    """A document that is ready to be stored."""

    draft: DraftDocument
    contexts_failed: int
    """Lines of context that were left out."""


class Pipeline:
    """Reads and cuts documents.

    Args:
        parser: Turns bytes into text.
        embedder: Knows models and where tokens lie.
        fetcher: Fetches URLs.
        contexts: Writes lines of context.
        metrics: Told the seconds of each stage.
    """

    def __init__(
        self,
        *,
        parser: ParserPool,
        embedder: Embedder,
        fetcher: Fetcher,
        contexts: ContextWriter,
        metrics: IngestMetrics | None = None,
    ) -> None:
        self._parser = parser
        self._embedder = embedder
        self._fetcher = fetcher
        self._contexts = contexts
        self._metrics = metrics

    async def fetch(self, url: str) -> Fetched:
        """What a URL points to; see `Fetcher.fetch`."""
        with self._timed("fetch"):
            return await self._fetcher.fetch(url)

    async def model(self, bank: Bank) -> EmbeddingModel | None:
        """The bank's embedding model; None in banks without.

        Raises:
            NotFoundError: If it is no longer served.
            UnavailableError: If it cannot be asked now.
        """
        return await self._embedder.model(bank.embedding_model) if bank.embedding_model else None

    async def window(self, bank: Bank) -> int:
        """Tokens that the bank's model reads."""
        return self._embedder.counter(await self.model(bank)).window

    async def prepare(self, bank: Bank, source: Source, cutting: Cutting) -> Prepared:
        """Parse and cut a document.

        Raises:
            InvalidArgumentError: If it cannot be read, or its metadata break the bank's declarations.
            ResourceExhaustedError: If it is too large.
            StackError: If the inference service cannot be asked.
        """
        filters.facts_of(source.metadata, fields=bank.fields, field="metadata")
        with self._timed("parse"):
            parsed = as_given(source) or await self._parser.parse(
                source.data, name=source.name or source.document_id, mime_type=source.mime_type, tenant=bank.tenant
            )
        model = await self.model(bank)
        counter = self._embedder.counter(model)

        async def embed(texts: Any) -> list[Vector]:  # noqa: ANN401 (a sequence of texts)
            assert model is not None
            return await self._embedder.embed(model, texts)

        with self._timed("cut"):
            pieces = await cut(
                parsed,
                tokens=counter,
                size=cutting.size,
                overlap=cutting.overlap,
                strategy=cutting.strategy,
                embed=None if model is None else embed,
            )
        failed = 0
        if cutting.context_model is not None:
            with self._timed("context"):
                written = await self._contexts.write(parsed.text, pieces, cutting, tokens=counter)
            pieces, failed = written.pieces, written.failed
        made_by = recipe(bank, source, cutting)
        metadata = dict(source.metadata)
        draft = DraftDocument(
            document_id=source.document_id,
            parsed=parsed,
            chunks=[DraftChunk(piece=piece, metadata=metadata) for piece in pieces],
            # A document that lacks lines of context is tried again when it comes again.
            recipe_hash=f"{made_by}-{failed}" if failed else made_by,
            metadata=metadata,
            source=source.name,
            file_id=source.file_id,
            source_hash=hashlib.sha256(source.data).hexdigest(),
            expires_at=source.expires_at,
        )
        return Prepared(draft, contexts_failed=failed)

    async def ingest(self, bank: Bank, source: Source, cutting: Cutting, store: Store) -> Any:  # noqa: ANN401
        """Prepare and store a document, unless it is there already; answers the store's `Stored`, or None then.

        Raises:
            StackError: As `prepare` and the store raise it.
        """
        if await store.recipe(bank, source.document_id) == recipe(bank, source, cutting):
            return None
        prepared = await self.prepare(bank, source, cutting)
        with self._timed("store"):
            return await store.put(bank, prepared.draft)

    def _timed(self, stage: str) -> Any:  # noqa: ANN401 (a context manager)
        return self._metrics.timed(stage) if self._metrics else nullcontext()


def as_given(source: Source) -> Parsed | None:
    """A text that came as a text: it stays as it is, whatever it looks like; None where something must be read.

    Raises:
        InvalidArgumentError: If there is nothing to see in it.
    """
    kind = source.mime_type.partition(";")[0].strip().lower()
    if not source.is_text or kind not in _PLAIN:
        return None
    text = source.data.decode().replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    if not text.strip():
        raise InvalidArgumentError(f"{source.document_id!r} is empty: there is nothing to remember")
    return Parsed(text=text, mime_type=kind or "text/plain", structure=_PLAIN[kind])


def recipe(bank: Bank, source: Source, cutting: Cutting) -> str:
    """SHA-256 of everything that a document's chunks depend on, known before it is read."""
    facts = {
        "content": hashlib.sha256(source.data).hexdigest(),
        "metadata": source.metadata,
        "mime_type": source.mime_type,
        "name": source.name,
        "expires_at": source.expires_at,
        "cutting": asdict(replace(cutting, context_seconds=0.0, context_at_once=0)),
        "model": bank.embedding_model,
        "versions": [parse.VERSION, cutting_package.VERSION],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def source_of(document: v1.RAGDocument, *, expires_at: int | None = None, field: str = "document") -> Source:
    """A document that was sent with its content; `data` is empty where it names a URL.

    Raises:
        InvalidArgumentError: If it has no identifier or no content, or has images, or numbers that are not finite.
    """
    if not document.document_id:
        message = f"{field}.document_id is empty"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field=f"{field}.document_id")
    check_printable(document.document_id, most=MAX_DOCUMENT_ID, field=f"{field}.document_id")
    form = document.content.WhichOneof("form")
    if form is None:
        message = f"{field}.content is empty: give text or a URL"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field=f"{field}.content")
    if any(item.WhichOneof("item") == "image" for item in document.content.content.items):
        message = f"{field}.content has an image; memory holds text: describe it, or send a document with text"
        raise InvalidArgumentError(message, field=f"{field}.content")
    return Source(
        document_id=document.document_id,
        data=text_of(document.content.content).encode(),
        name=document.content.url.uri if form == "url" and not is_data(document.content.url.uri) else "",
        mime_type=document.mime_type,
        metadata=metadata_of(document.metadata, field=f"{field}.metadata"),
        expires_at=expires_at,
        is_text=form == "content",
    )


def file_source(
    file: Mapping[Any, Any],
    data: bytes,
    *,
    metadata: Any = None,  # noqa: ANN401 (a Struct)
    expires_at: int | None = None,
) -> Source:
    """An uploaded file, a row of `tables.files`, as a document of its own identifier."""
    return Source(
        document_id=file["file_id"],
        data=data,
        name=file["filename"],
        mime_type=file["mime_type"],
        file_id=file["file_id"],
        metadata=metadata_of(metadata) if metadata is not None else {},
        expires_at=expires_at,
    )


def fetched_source(source: Source, fetched: Fetched) -> Source:
    """A source with what its URL gave; a declared type of the caller's counts more than the server's."""
    return replace(source, data=fetched.data, mime_type=source.mime_type or fetched.mime_type)

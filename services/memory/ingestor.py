"""From what a caller sends to a stored document."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamastack import v1
from services.memory.bank import Bank
from services.memory.cut.cutter import Cutting, cutting_of
from services.memory.documents import DocumentStore, Stored
from services.memory.pipeline import Pipeline, Source, fetched_source, source_of
from services.memory.text import DraftDocument
from services.runtime.together import together
from stack_client.errors import StackError

AT_ONCE = 8
"""Documents of one call that are handled at once: their texts are embedded in shared batches."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A document that could not be stored."""

    document_id: str
    """Its identifier."""
    error: StackError
    """Why."""


class Ingestor:
    """Stores documents that come with a call.

    Args:
        pipeline: Reads and cuts them.
        documents: Where they go.
    """

    def __init__(self, pipeline: Pipeline, documents: DocumentStore) -> None:
        self._pipeline = pipeline
        self._documents = documents

    async def put(
        self,
        bank: Bank,
        document: v1.RAGDocument,
        *,
        sizes: tuple[int, int] | None = None,
        expires_at: int | None = None,
        field: str = "document",
    ) -> Stored:
        """Store a document, unless it is there already.

        Args:
            bank: A bank of documents.
            document: With its content or a URL.
            sizes: Tokens of a chunk and of overlap; None means the bank's.
            expires_at: Microseconds since 1970; None means never.
            field: Of the request, for errors.

        Raises:
            StackError: If it cannot be fetched, read, embedded or stored.
        """
        source = await self._source(document, expires_at=expires_at, field=field)
        cutting = await self._cutting(bank, sizes)
        stored = await self._pipeline.ingest(bank, source, cutting, self._documents)
        return stored or Stored(document_id=source.document_id, status="unchanged", chunks=0)

    async def put_all(
        self,
        bank: Bank,
        documents: Sequence[v1.RAGDocument],
        *,
        sizes: tuple[int, int] | None = None,
        expires_at: int | None = None,
        refused: Callable[[StackError], bool] = lambda _error: False,
    ) -> list[Stored | Refused]:
        """Store documents, each in a transaction of its own; of those with the same id the last one stays.

        Args:
            bank: A bank of documents.
            documents: In the order of the request.
            sizes: See `put`.
            expires_at: See `put`.
            refused: Whether an error is a document's own fault: it is answered as refused, and the others are stored.

        Raises:
            StackError: The first error of another kind; what was stored until then stays.
        """
        slots = asyncio.Semaphore(AT_ONCE)
        turns: dict[str, list[int]] = {}
        for index, document in enumerate(documents):
            turns.setdefault(document.document_id, []).append(index)
        outcomes: dict[int, Stored | Refused] = {}

        async def in_turn(indexes: Sequence[int]) -> None:
            for index in indexes:
                async with slots:
                    outcomes[index] = await one(index)

        async def one(index: int) -> Stored | Refused:
            document = documents[index]
            try:
                return await self.put(bank, document, sizes=sizes, expires_at=expires_at, field=f"documents[{index}]")
            except StackError as error:
                if not refused(error):
                    raise
                return Refused(document_id=document.document_id, error=error)

        await together(in_turn(indexes) for indexes in turns.values())
        return [outcomes[index] for index in range(len(documents))]

    async def draft(
        self, bank: Bank, document: v1.RAGDocument, *, expires_at: int | None = None, field: str = "document"
    ) -> DraftDocument:
        """A document that is ready to be stored.

        Raises:
            StackError: If it cannot be fetched or read.
        """
        source = await self._source(document, expires_at=expires_at, field=field)
        prepared = await self._pipeline.prepare(bank, source, await self._cutting(bank, None))
        return prepared.draft

    async def _source(self, document: v1.RAGDocument, *, expires_at: int | None, field: str) -> Source:
        source = source_of(document, expires_at=expires_at, field=field)
        if document.content.WhichOneof("form") == "url":
            source = fetched_source(source, await self._pipeline.fetch(document.content.url.uri))
        return source

    async def _cutting(self, bank: Bank, sizes: tuple[int, int] | None) -> Cutting:
        if sizes is not None:
            return Cutting(strategy="static", size=sizes[0], overlap=sizes[1])
        return cutting_of(None, bank, window=await self._pipeline.window(bank))

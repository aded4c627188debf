"""The RPC edge of vector IO: chunks in and out of vector banks."""

import bisect
from collections.abc import Sequence
from typing import Any

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.chunk_rows import LooseChunk
from services.memory.database import Database
from services.memory.documents import DocumentStore
from services.memory.documents_service import expiry
from services.memory.embedder import Embedder, content_hash, normalised
from services.memory.hits import chunk as chunk_message
from services.memory.metadata import metadata_of
from services.memory.requests import recall, remember
from services.memory.retrieve import Retriever
from services.memory.searches import limit_of, question_of, ranking_of, search_spec
from services.memory.text import DraftChunk, Piece
from services.runtime.calls import current_tenant
from services.runtime.stream import RpcContext
from stack_client.errors import InvalidArgumentError

DEFAULT_CHUNKS = 3
MAX_CHUNKS = 1000
FIELD = "vector_db_id"


class VectorIOService(v1.VectorIOServiceServicer):
    """`llamastack.v1.VectorIOService`.

    Args:
        database: Keeps answers for repeats.
        banks: Those that there are.
        documents: What is in them.
        retriever: Finds chunks.
        embedder: Counts tokens.
    """

    def __init__(
        self,
        database: Database,
        banks: BankStore,
        documents: DocumentStore,
        *,
        retriever: Retriever,
        embedder: Embedder,
    ) -> None:
        self._database = database
        self._banks = banks
        self._documents = documents
        self._retriever = retriever
        self._embedder = embedder

    async def InsertChunks(self, request: v1.InsertChunksRequest, context: RpcContext) -> v1.InsertChunksResponse:
        """Store chunks, all or none."""
        tenant = current_tenant()
        if not 1 <= len(request.chunks) <= MAX_CHUNKS:
            reason = "" if request.chunks else "MISSING_FIELD"
            message = f"chunks has {len(request.chunks)}; allowed: 1 to {MAX_CHUNKS}"
            raise InvalidArgumentError(message, reason=reason, field="chunks")
        expires_at = expiry(request.ttl_seconds if request.HasField("ttl_seconds") else None)
        async with self._database.read() as connection:
            before = await recall(connection, request, tenant=tenant, answer=v1.InsertChunksResponse)
        if before is not None:
            return before
        bank = await self._banks.require(request.vector_db_id, "vector", tenant=tenant, field=FIELD)
        loose = await self._loose(bank, request.chunks)
        answer = v1.InsertChunksResponse(chunk_ids=await self._documents.put_chunks(bank, loose, expires_at=expires_at))
        async with self._database.write() as connection:
            await remember(connection, request, tenant=tenant, answer=answer, bank=bank.number)
        return answer

    async def QueryChunks(self, request: v1.QueryChunksRequest, context: RpcContext) -> v1.QueryChunksResponse:
        """Find chunks."""
        bank = await self._banks.require(request.vector_db_id, "vector", tenant=current_tenant(), field=FIELD)
        params = request.params
        limit = limit_of(
            params.max_chunks if params.HasField("max_chunks") else None,
            default=DEFAULT_CHUNKS,
            field="params.max_chunks",
        )
        spec = await search_spec(
            self._retriever,
            bank,
            question_of(request.query, field="query"),
            mode=params.mode or v1.SEARCH_MODE_VECTOR,
            ranking=ranking_of(params.ranker, field="params.ranker"),
            filters=params.filters,
            limit=limit,
            threshold=params.score_threshold,
        )
        hits = await self._retriever.search(spec)
        return v1.QueryChunksResponse(chunks=[chunk_message(hit) for hit in hits], scores=[hit.score for hit in hits])

    async def _loose(self, bank: Bank, chunks: Sequence[v1.Chunk]) -> list[LooseChunk]:
        model = await self._embedder.model(bank.embedding_model)
        texts = [question_of(chunk.content, field=f"chunks[{index}].content") for index, chunk in enumerate(chunks)]
        counter = self._embedder.counter(model)
        # One call for all: tokens never reach over the line end between two texts.
        starts = [start for start, _ in await counter.offsets("\n".join(texts))]
        loose, at = [], 0
        for index, (chunk, text) in enumerate(zip(chunks, texts, strict=True)):
            field = f"chunks[{index}]"
            if not text.strip():
                raise InvalidArgumentError(
                    f"{field}.content is empty", reason="MISSING_FIELD", field=f"{field}.content"
                )
            if chunk.HasField("embedding_model") and chunk.embedding_model != bank.embedding_model:
                message = (
                    f"{field}.embedding_model is {chunk.embedding_model!r}; bank {bank.identifier!r} holds those of "
                    f"{bank.embedding_model!r}"
                )
                raise InvalidArgumentError(message, field=f"{field}.embedding_model")
            vector = normalised(chunk.embedding, model=model, field=f"{field}.embedding") if chunk.embedding else None
            tokens = bisect.bisect_left(starts, at + len(text)) - bisect.bisect_left(starts, at)
            at += len(text) + 1
            loose.append(_loose_chunk(chunk, text=text, tokens=tokens, vector=vector, field=field))
        return loose


def _loose_chunk(chunk: v1.Chunk, *, text: str, tokens: int, vector: Any, field: str) -> LooseChunk:  # noqa: ANN401 (a vector)
    metadata = metadata_of(chunk.metadata, field=f"{field}.metadata")
    facts = chunk.chunk_metadata
    chunk_id = chunk.chunk_id or facts.chunk_id
    document_id = facts.document_id or str(metadata.get("document_id") or "") or chunk_id or content_hash(text)[:32]
    placed = facts.HasField("span")
    name = f"{field}.chunk_metadata"
    if placed and facts.span.end < facts.span.start:
        message = f"{name}.span ends at {facts.span.end}, before it begins at {facts.span.start}"
        raise InvalidArgumentError(message, field=f"{name}.span")
    if facts.HasField("page") and not facts.page:
        raise InvalidArgumentError(f"{name}.page is 0; pages count from 1", field=f"{name}.page")
    piece = Piece(
        text=text,
        start=facts.span.start if placed else 0,
        stop=facts.span.end if placed else 0,
        tokens=facts.content_token_count or tokens,
        page=facts.page if facts.HasField("page") else None,
    )
    draft = DraftChunk(piece=piece, metadata=metadata, chunk_id=chunk_id, embedding=vector)
    return LooseChunk(document_id=document_id, source=facts.source, chunk=draft)

"""The RPC edge of the RAG tool: documents in, text for a prompt out."""

from collections.abc import Sequence
from dataclasses import replace

from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.memory.banks import BankStore
from services.memory.database import Database
from services.memory.documents_service import MAX_DOCUMENTS
from services.memory.embedder import Embedder
from services.memory.guarded import Guard
from services.memory.hits import span_of
from services.memory.ingestor import Ingestor, Refused
from services.memory.questions import QuestionWriter
from services.memory.rag_text import DEFAULT_TEMPLATE, Passage, check_template, render, write_out
from services.memory.requests import recall, remember
from services.memory.retrieve import Hit, Retriever, Spec
from services.memory.searches import limit_of, ranking_of, search_spec
from services.runtime.calls import current_tenant
from services.runtime.stream import RpcContext
from stack_client.content import content, struct
from stack_client.errors import InvalidArgumentError

DEFAULT_CHUNK, MIN_CHUNK, MAX_CHUNK = 512, 16, 4096
DEFAULT_TOKENS = 4096
DEFAULT_CHUNKS, MOST_CHUNKS = 5, 100
MAX_BANKS = 32


class RAGToolService(v1.RAGToolServiceServicer):
    """`llamastack.v1.RAGToolService`.

    Args:
        database: Keeps answers for repeats.
        banks: Those that there are.
        ingestor: Reads and stores what callers send.
        retriever: Finds chunks.
        embedder: Knows the windows of models.
        questions: Turns dialogs into queries, and counts tokens.
        guard: Judges what was found.
    """

    def __init__(
        self,
        database: Database,
        banks: BankStore,
        *,
        ingestor: Ingestor,
        retriever: Retriever,
        embedder: Embedder,
        questions: QuestionWriter,
        guard: Guard,
    ) -> None:
        self._database = database
        self._banks = banks
        self._ingestor = ingestor
        self._retriever = retriever
        self._embedder = embedder
        self._questions = questions
        self._guard = guard

    async def InsertRAGDocuments(
        self, request: v1.InsertRAGDocumentsRequest, context: RpcContext
    ) -> v1.InsertRAGDocumentsResponse:
        """Cut, embed and store documents."""
        tenant = current_tenant()
        if not 1 <= len(request.documents) <= MAX_DOCUMENTS:
            reason = "" if request.documents else "MISSING_FIELD"
            message = f"documents has {len(request.documents)}; allowed: 1 to {MAX_DOCUMENTS}"
            raise InvalidArgumentError(message, reason=reason, field="documents")
        async with self._database.read() as connection:
            before = await recall(connection, request, tenant=tenant, answer=v1.InsertRAGDocumentsResponse)
        if before is not None:
            return before
        bank = await self._banks.require(request.vector_db_id, "vector", tenant=tenant, field="vector_db_id")
        size = await self._size(request, bank.embedding_model)
        answer = v1.InsertRAGDocumentsResponse()
        for stored in await self._ingestor.put_all(bank, request.documents, sizes=(size, size // 4)):
            assert not isinstance(stored, Refused)
            answer.chunks += stored.chunks
            if stored.status == "unchanged":
                answer.unchanged_document_ids.append(stored.document_id)
        async with self._database.write() as connection:
            await remember(connection, request, tenant=tenant, answer=answer, bank=bank.number)
        return answer

    async def QueryRAG(self, request: v1.QueryRAGRequest, context: RpcContext) -> v1.QueryRAGResponse:
        """Find chunks and write them out for a prompt."""
        config = request.query_config
        template = config.chunk_template if config.HasField("chunk_template") else DEFAULT_TEMPLATE
        check_template(template, field="query_config.chunk_template")
        max_tokens = config.max_tokens_in_context if config.HasField("max_tokens_in_context") else DEFAULT_TOKENS
        if max_tokens < 1:
            field = "query_config.max_tokens_in_context"
            raise InvalidArgumentError(f"{field} is 0; give at least 1", field=field)
        question = await self._questions.question(
            request.content, config.query_generator_config, field="query_config.query_generator_config"
        )
        hits = await self._search(request, question)
        if config.HasField("score_threshold"):
            hits = [hit for hit in hits if hit.score >= config.score_threshold]
        # All that a model would read is judged: injections hide in names and metadata as well.
        shown = [render(hit, index, template) for index, hit in enumerate(hits, 1)]
        passages = [
            Passage(hit=hit, text=one.text)
            for hit, one in zip(hits, await self._guard.judge(shown), strict=True)
            if not one.withheld
        ]
        count = await self._counter(config.context_model)
        written = await write_out(passages, question=question, max_tokens=max_tokens, count=count)
        result = v1.RAGQueryResult(metadata=_metadata(written.passages, written.tokens))
        if written.parts:
            result.content.items.extend(v1.ContentItem(text=part) for part in written.parts)
        return v1.QueryRAGResponse(result=result)

    async def _search(self, request: v1.QueryRAGRequest, question: str) -> list[Hit]:
        config, names = request.query_config, list(dict.fromkeys(request.vector_db_ids))
        if not 1 <= len(names) <= MAX_BANKS:
            reason = "" if names else "MISSING_FIELD"
            message = f"vector_db_ids has {len(names)}; allowed: 1 to {MAX_BANKS}"
            raise InvalidArgumentError(message, reason=reason, field="vector_db_ids")
        limit = limit_of(
            config.max_chunks if config.HasField("max_chunks") else None,
            default=DEFAULT_CHUNKS,
            field="query_config.max_chunks",
            most=MOST_CHUNKS,
        )
        ranking = ranking_of(config.ranker, field="query_config.ranker")
        banks = [
            await self._banks.require(name, "vector", "keyword", tenant=current_tenant(), field="vector_db_ids")
            for name in names
        ]
        specs = [
            await search_spec(
                self._retriever,
                bank,
                question,
                mode=config.mode,
                ranking=ranking,
                filters=config.filters,
                limit=limit,
                field="query_config",
            )
            for bank in banks
        ]
        return await self._retriever.search(_as_one(specs))

    async def _counter(self, model: str) -> "_Counter":
        return _Counter(self._questions, await self._questions.model(model))

    async def _size(self, request: v1.InsertRAGDocumentsRequest, model_id: str) -> int:
        if not request.HasField("chunk_size_in_tokens"):
            return min(DEFAULT_CHUNK, (await self._embedder.model(model_id)).window)
        size = request.chunk_size_in_tokens
        if not MIN_CHUNK <= size <= MAX_CHUNK:
            message = f"chunk_size_in_tokens is {size}; allowed: {MIN_CHUNK} to {MAX_CHUNK}"
            raise InvalidArgumentError(message, field="chunk_size_in_tokens")
        return size


class _Counter:
    """Counts tokens as a chat model does."""

    def __init__(self, questions: QuestionWriter, model: str) -> None:
        self._questions = questions
        self._model = model

    async def __call__(self, text: str) -> int:
        return await self._questions.tokens(self._model, text)


def _as_one(specs: Sequence[Spec]) -> Spec:
    """Several databases searched as one: all vectors are ranked together, and all words."""
    if len(specs) == 1:
        return specs[0]
    legs = [
        replace(leg, name=f"{leg.name} of {leg.bank.identifier}", group=leg.name) for spec in specs for leg in spec.legs
    ]
    return replace(specs[0], legs=legs)


def _metadata(passages: Sequence[Passage], tokens: int) -> v1.RAGQueryMetadata:
    rows = [passage.hit.chunk for passage in passages]
    return v1.RAGQueryMetadata(
        document_ids=[row["document_id"] for row in rows],
        chunks=[content(row["text"]) for row in rows],
        scores=[passage.hit.score for passage in passages],
        chunk_ids=[row["chunk_id"] for row in rows],
        vector_db_ids=[passage.hit.bank.identifier for passage in passages],
        spans=[span_of(row) or v1.TextSpan() for row in rows],
        sources=[row["source"] for row in rows],
        pages=[row["page"] or 0 for row in rows],
        tokens=tokens,
        attributes=[struct(row["metadata"]) or Struct() for row in rows],
    )

"""`client.memory`: banks, what is in them, and finding it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf import json_format

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, EventStream, every_page, unary
from stack_client.content import content, plain, struct, text_of
from stack_client.errors import InvalidArgumentError
from stack_client.filters import metadata_filter
from stack_client.memory_entries import EntryCalls
from stack_client.memory_graph import GraphCalls

Where = Mapping[str, Any] | v1.MetadataFilter | None
"""A filter; see `stack_client.filters.metadata_filter`."""
DocumentLike = str | Mapping[str, Any] | v1.RAGDocument
"""A text, whose id is made of it; or a mapping with `text` or `url`, and `id`, `metadata`, `mime_type`."""

KINDS = ("vector", "keyword", "keyvalue", "graph")
MODES = {
    "": v1.SEARCH_MODE_UNSPECIFIED,
    "vector": v1.SEARCH_MODE_VECTOR,
    "keyword": v1.SEARCH_MODE_KEYWORD,
    "hybrid": v1.SEARCH_MODE_HYBRID,
}
RANKERS = ("rrf", "weighted", "neural", "mmr")
INSERT_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class MemoryHit:
    """A passage that was found."""

    text: str
    """What it says."""
    score: float
    """Greater is better; comparable only inside one answer."""
    document_id: str
    """The document that it is from."""
    chunk_id: str
    """The passage."""
    source: str
    """File name or URL of the document; empty = not known."""
    span: tuple[int, int] | None
    """First and one past the last character in the document's text; None = not known."""
    page: int | None
    """Page on which it begins, from 1; None = the document has none."""
    metadata: dict[str, Any]
    """The user's facts."""
    highlights: list[tuple[int, int]]
    """Words of the question in `text`: first and one past the last character; empty unless asked for."""

    @property
    def citation(self) -> str:
        """Where it is from, for people."""
        place = f", page {self.page}" if self.page else ""
        span = f", characters {self.span[0]} to {self.span[1]}" if self.span else ""
        return f"{self.source or self.document_id}{place}{span}"


# Named here, for a method of the class below is called `list`.
BankList: TypeAlias = list[v1.MemoryBank]
HitList: TypeAlias = list[MemoryHit]
DocumentList: TypeAlias = list[v1.StoredDocument]
JobList: TypeAlias = list[v1.Job]


class MemoryBanks(EntryCalls, GraphCalls):
    """Calls of `MemoryBanksService`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.MemoryBanksServiceStub(channel)

    async def create(
        self,
        bank: str,
        kind: str = "vector",
        *,
        embedding_model: str = "",
        chunk_size: int = 0,
        overlap: int | None = None,
        fields: Mapping[str, str] | None = None,
        searched: Mapping[str, float] | None = None,
        language: str = "",
        default_ttl_seconds: int | None = None,
        single_valued: Sequence[str] = (),
        provider_id: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.MemoryBank:
        """Make a bank; one that is there with the same settings is answered as it is.

        Args:
            bank: Its name.
            kind: `vector`, `keyword`, `keyvalue` or `graph`.
            embedding_model: Of vector banks; empty means the stack's default.
            chunk_size: Tokens of a chunk, of vector banks; 0 means as many as the model reads.
            overlap: Tokens shared with the chunk before; None means an eighth.
            fields: Metadata fields that filters may name, with their types: `string`, `number`, `boolean`,
                `string_list` or `time`; None means all, by their JSON types.
            searched: Fields of keyword banks with their boosts; None means `content` alone.
            language: BCP 47 tag of keyword banks; empty means English.
            default_ttl_seconds: Life of entries in key-value banks; None means for ever.
            single_valued: Relations of graph banks of which a source has one at a time.
            provider_id: The index, for example `scan` or `pgvector`; empty means the stack's choice.
            timeout: Seconds until the call gives up.

        Raises:
            AlreadyExistsError: If there is one with other settings.
            StackError: If the call fails.
        """
        declared = [v1.MetadataField(name=name, type=_field_type(type_)) for name, type_ in (fields or {}).items()]
        match kind:
            case "vector":
                vector = v1.VectorBankParams(
                    embedding_model=embedding_model,
                    chunk_size_in_tokens=chunk_size,
                    overlap_size_in_tokens=overlap,
                    metadata_fields=declared,
                )
                params = v1.BankParams(vector=vector)
            case "keyword":
                words = [v1.KeywordField(name=name, boost=boost) for name, boost in (searched or {}).items()]
                keyword = v1.KeywordBankParams(fields=words, language=language, metadata_fields=declared)
                params = v1.BankParams(keyword=keyword)
            case "keyvalue":
                params = v1.BankParams(keyvalue=v1.KeyValueBankParams(default_ttl_seconds=default_ttl_seconds))
            case "graph":
                params = v1.BankParams(graph=v1.GraphBankParams(single_valued_relations=single_valued))
            case _:
                message = f"no kind of bank {kind!r}; there are {', '.join(KINDS)}"
                raise InvalidArgumentError(message, field="kind")
        request = v1.RegisterMemoryBankRequest(memory_bank_id=bank, params=params, provider_id=provider_id or None)
        response: v1.RegisterMemoryBankResponse = await unary(self._stub.RegisterMemoryBank(request, timeout=timeout))
        return response.memory_bank

    async def list(self, *, timeout: float = DEFAULT_TIMEOUT) -> BankList:
        """All banks, by name.

        Raises:
            StackError: If the call fails.
        """
        return await every_page(self._stub.ListMemoryBanks, v1.ListMemoryBanksRequest(), timeout=timeout)

    async def get(self, bank: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.MemoryBank:
        """One bank.

        Raises:
            NotFoundError: If there is none of that name.
        """
        request = v1.GetMemoryBankRequest(memory_bank_id=bank)
        response: v1.GetMemoryBankResponse = await unary(self._stub.GetMemoryBank(request, timeout=timeout))
        return response.memory_bank

    async def delete(self, bank: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Delete a bank with everything in it.

        Raises:
            NotFoundError: If there is none of that name.
        """
        request = v1.UnregisterMemoryBankRequest(memory_bank_id=bank)
        await unary(self._stub.UnregisterMemoryBank(request, timeout=timeout))

    async def insert(
        self,
        bank: str,
        documents: DocumentLike | Sequence[DocumentLike],
        *,
        ttl_seconds: int | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.InsertDocumentsResponse:
        """Store documents and wait until they can be found; those that are there already cost nothing.

        Args:
            bank: A vector or keyword bank.
            documents: One or many, see `DocumentLike`.
            ttl_seconds: Their life; None means for ever.
            timeout: Seconds until one call gives up.

        Returns:
            What became of them; `failures` names those that were refused.

        Raises:
            StackError: If a call fails.
        """
        several = [documents] if isinstance(documents, str | Mapping | v1.RAGDocument) else documents
        messages = [document(item) for item in several]
        total = v1.InsertDocumentsResponse()
        for start in range(0, len(messages), INSERT_BATCH):
            some = messages[start : start + INSERT_BATCH]
            request = v1.InsertDocumentsRequest(bank_id=bank, documents=some, ttl_seconds=ttl_seconds)
            answer: v1.InsertDocumentsResponse = await unary(self._stub.InsertDocuments(request, timeout=timeout))
            for name in ("inserted", "replaced", "unchanged", "chunks"):
                setattr(total, name, getattr(total, name) + getattr(answer, name))
            total.failures.extend(answer.failures)
        return total

    async def search(
        self,
        bank: str,
        query: str,
        *,
        mode: str = "",
        k: int = 5,
        where: Where = None,
        score_threshold: float = 0.0,
        ranker: str = "rrf",
        alpha: float | None = None,
        rerank_model: str = "",
        diversity: float | None = None,
        highlight: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> HitList:
        """Find passages, best first.

        Args:
            bank: A vector or keyword bank.
            query: A question in any words; nothing in it is syntax.
            mode: `vector`, `keyword` or `hybrid`; empty means hybrid in vector banks and keyword in keyword banks.
            k: Passages at most.
            where: Only passages whose metadata match.
            score_threshold: Passages that score less are left out.
            ranker: How hybrid joins its legs: `rrf`, `weighted`, `neural` or `mmr`.
            alpha: Of `weighted`: the share of vectors, 0 to 1; None means a half.
            rerank_model: Of `neural`; empty means the stack's default.
            diversity: Of `mmr`, 0 to 1; None means 0.3.
            highlight: Mark the question's words in the passages.
            timeout: Seconds until the call gives up.

        Raises:
            StackError: If the call fails.
        """
        if mode not in MODES:
            raise InvalidArgumentError(f"no mode {mode!r}; there are vector, keyword and hybrid", field="mode")
        chosen = MODES[mode] or await self._best_mode(bank, timeout=timeout)
        params = v1.MemoryQueryParams(
            max_chunks=k,
            score_threshold=score_threshold,
            mode=chosen,
            ranker=_ranker(ranker, alpha=alpha, model=rerank_model, diversity=diversity),
            filters=metadata_filter(where),
            highlight=v1.HighlightOptions(max_spans=100) if highlight else None,
        )
        request = v1.QueryDocumentsRequest(bank_id=bank, query=content(query), params=params)
        response: v1.QueryDocumentsResponse = await unary(self._stub.QueryDocuments(request, timeout=timeout))
        return [hit(chunk, score) for chunk, score in zip(response.chunks, response.scores, strict=True)]

    async def explain(
        self, bank: str, query: str, *chunk_ids: str, where: Where = None, timeout: float = DEFAULT_TIMEOUT
    ) -> v1.ExplainQueryResponse:
        """Why passages of a bank stand where they do: rank, score and share of each leg of a hybrid search.

        Raises:
            NotFoundError: If the bank or a passage does not exist.
            StackError: If the call fails.
        """
        legs = [v1.QueryLeg(bank_id=bank, name="keyword", keyword=v1.KeywordLeg(text=query))]
        if await self._best_mode(bank, timeout=timeout) == v1.SEARCH_MODE_HYBRID:
            legs.insert(0, v1.QueryLeg(bank_id=bank, name="vector", vector=v1.VectorLeg(query=content(query))))
        search = v1.QueryHybridRequest(legs=legs, filter=metadata_filter(where))
        request = v1.ExplainQueryRequest(request=search, chunk_ids=chunk_ids)
        response: v1.ExplainQueryResponse = await unary(self._stub.ExplainQuery(request, timeout=timeout))
        return response

    async def documents(self, bank: str, *, where: Where = None, timeout: float = DEFAULT_TIMEOUT) -> DocumentList:
        """Documents without their content, oldest first.

        Raises:
            StackError: If the call fails.
        """
        request = v1.ListDocumentsRequest(bank_id=bank, filter=metadata_filter(where), page_size=1000)
        return await every_page(self._stub.ListDocuments, request, timeout=timeout)

    async def document(self, bank: str, document_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> str:
        """The text of one document; what spans of hits count in.

        Raises:
            InvalidArgumentError: If there is none of that identifier.
            StackError: If the call fails.
        """
        request = v1.GetDocumentsRequest(bank_id=bank, document_ids=[document_id])
        response: v1.GetDocumentsResponse = await unary(self._stub.GetDocuments(request, timeout=timeout))
        if not response.documents:
            raise InvalidArgumentError(f"bank {bank!r} has no document {document_id!r}", field="document_id")
        return text_of(response.documents[0].content)

    async def delete_documents(
        self, bank: str, *document_ids: str, where: Where = None, timeout: float = DEFAULT_TIMEOUT
    ) -> int:
        """Delete documents by id, by filter, or those that satisfy both; returns how many.

        Raises:
            InvalidArgumentError: If neither is given.
            StackError: If the call fails.
        """
        request = v1.DeleteDocumentsRequest(bank_id=bank, document_ids=document_ids, filter=metadata_filter(where))
        response: v1.DeleteDocumentsResponse = await unary(self._stub.DeleteDocuments(request, timeout=timeout))
        return response.deleted_count

    async def start_ingestion(
        self, request: v1.CreateIngestionJobRequest, *, timeout: float = DEFAULT_TIMEOUT
    ) -> v1.Job:
        """Begin to load documents, files or URLs into a bank, or to embed it anew; the job outlives its caller.

        Raises:
            StackError: If the call fails.
        """
        response: v1.CreateIngestionJobResponse = await unary(self._stub.CreateIngestionJob(request, timeout=timeout))
        return response.job

    async def reembed(self, bank: str, embedding_model: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> v1.Job:
        """Begin to compute all embeddings of a bank anew; queries use the old ones until the job is done.

        Raises:
            StackError: If the call fails.
        """
        source = v1.Reembedding(embedding_model=embedding_model)
        return await self.start_ingestion(v1.CreateIngestionJobRequest(bank_id=bank, reembed=source), timeout=timeout)

    async def job(self, job_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Job:
        """One ingestion job.

        Raises:
            NotFoundError: If there is none of that identifier.
        """
        response: v1.GetIngestionJobResponse = await unary(
            self._stub.GetIngestionJob(v1.GetIngestionJobRequest(job_id=job_id), timeout=timeout)
        )
        return response.job

    async def jobs(self, bank: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> JobList:
        """Ingestion jobs, newest first.

        Raises:
            StackError: If the call fails.
        """
        request = v1.ListIngestionJobsRequest(bank_id=bank)
        return await every_page(self._stub.ListIngestionJobs, request, timeout=timeout)

    async def cancel_job(self, job_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Job:
        """Ask a job to stop; what it has loaded stays.

        Raises:
            StackError: If the call fails.
        """
        response: v1.CancelIngestionJobResponse = await unary(
            self._stub.CancelIngestionJob(v1.CancelIngestionJobRequest(job_id=job_id), timeout=timeout)
        )
        return response.job

    def watch_job(self, job_id: str, *, after_sequence: int = 0) -> EventStream[v1.WatchIngestionJobResponse]:
        """A job's events after a sequence, and those to come until its end."""
        request = v1.WatchIngestionJobRequest(job_id=job_id, resume_after_sequence=after_sequence)
        return EventStream(self._stub.WatchIngestionJob(request))

    async def _best_mode(self, bank: str, *, timeout: float) -> "v1.SearchMode.ValueType":
        kind = (await self.get(bank, timeout=timeout)).params.WhichOneof("params")
        if kind not in {"vector", "keyword"}:
            message = f"bank {bank!r} is of kind {kind}; search vector and keyword banks"
            raise InvalidArgumentError(message, field="bank")
        return v1.SEARCH_MODE_HYBRID if kind == "vector" else v1.SEARCH_MODE_KEYWORD


def document(like: DocumentLike) -> v1.RAGDocument:
    """A document as the protos write it.

    Raises:
        InvalidArgumentError: If a mapping has neither text nor URL, or a key that means nothing.
    """
    if isinstance(like, v1.RAGDocument):
        return like
    fields: dict[str, Any] = {"text": like} if isinstance(like, str) else dict(like)
    unknown = set(fields) - {"id", "text", "url", "metadata", "mime_type"}
    if unknown or ("text" in fields) == ("url" in fields):
        message = (
            f"a document is a text, or has text or url, and maybe id, metadata, mime_type; this has {sorted(fields)}"
        )
        raise InvalidArgumentError(message, field="documents")
    given = v1.ContentOrUrl()
    if "url" in fields:
        given.url.uri = fields["url"]
    else:
        given.content.CopyFrom(content(fields["text"]))
    return v1.RAGDocument(
        document_id=fields.get("id") or hashlib.sha256((fields.get("text") or fields["url"]).encode()).hexdigest()[:32],
        content=given,
        mime_type=fields.get("mime_type"),
        metadata=struct(fields.get("metadata")),
    )


def hit(chunk: v1.MemoryBankChunk, score: float) -> MemoryHit:
    """A passage as Python sees it."""
    return MemoryHit(
        text=text_of(chunk.content),
        score=score,
        document_id=chunk.document_id,
        chunk_id=chunk.chunk_id,
        source=chunk.source,
        span=(chunk.span.start, chunk.span.end) if chunk.HasField("span") else None,
        page=chunk.page if chunk.HasField("page") else None,
        metadata=plain(json_format.MessageToDict(chunk.metadata)),
        highlights=[
            (span.start, span.end) for marked in chunk.highlights for span in marked.spans if marked.field == "content"
        ],
    )


def _ranker(name: str, *, alpha: float | None, model: str, diversity: float | None) -> v1.Ranker:
    if name not in RANKERS:
        raise InvalidArgumentError(f"no ranker {name!r}; there are {', '.join(RANKERS)}", field="ranker")
    given = {"alpha": (alpha, "weighted"), "rerank_model": (model or None, "neural"), "diversity": (diversity, "mmr")}
    for key, (value, of) in given.items():
        if value is not None and of != name:
            raise InvalidArgumentError(f"{key} belongs to ranker {of!r}, not to {name!r}", field=key)
    match name:
        case "weighted":
            return v1.Ranker(weighted=v1.WeightedRanker(alpha=alpha))
        case "neural":
            return v1.Ranker(neural=v1.NeuralRanker(model=model))
        case "mmr":
            return v1.Ranker(mmr=v1.MMRRanker(diversity=diversity))
        case _:
            return v1.Ranker(rrf=v1.RRFRanker())


def _field_type(name: str) -> "v1.MetadataFieldType.ValueType":
    known = {one.removeprefix("METADATA_FIELD_TYPE_").lower(): one for one in v1.MetadataFieldType.keys()}  # noqa: SIM118 (an enum)
    found = known.get(name)
    if found is None or name == "unspecified":
        names = ", ".join(sorted(set(known) - {"unspecified"}))
        raise InvalidArgumentError(f"no field type {name!r}; there are {names}", field="fields")
    return v1.MetadataFieldType.Value(found)

"""The RPC edge of vector stores: the stores themselves, and searching them."""

import secrets
from collections.abc import Sequence

from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.memory import requests
from services.memory.bank import Bank
from services.memory.embedder import Embedder
from services.memory.hits import metadata_of
from services.memory.metadata import metadata_of as given_metadata
from services.memory.questions import QuestionWriter
from services.memory.registry_service import MAX_NAME, CheckProvider, fill_vector
from services.memory.retrieve import Hit, Retriever
from services.memory.store_batches_service import StoreBatchCalls
from services.memory.store_files import attachment_of
from services.memory.store_files_service import StoreFileCalls
from services.memory.store_parts import StoreParts, listing, once
from services.memory.store_search import MAX_QUERIES, StoreSearch, ranking_of, search, threshold_of
from services.memory.vector_stores import check_expiration, refuse_expired, store_columns
from services.runtime.background import wait
from services.runtime.calls import current_tenant
from services.runtime.moments import now
from services.runtime.names import check_printable
from services.runtime.pages import decode_token, encode_token
from services.runtime.stream import RpcContext
from services.runtime.together import together
from stack_client.errors import InvalidArgumentError

MAX_FILES = 10_000
MAX_DESCRIPTION = 2000
DEFAULT_RESULTS, MAX_RESULTS = 10, 50
CHUNK_TOKENS, OVERLAP_TOKENS = 800, 400
"""Of stores; less where the model reads less."""
STOP_TRIES, STOP_SECONDS = 40, 0.25
"""How long a deletion waits for jobs that load files."""


class VectorStoresService(  # type: ignore[misc] # streams may be coroutines that write, too
    StoreFileCalls, StoreBatchCalls, v1.VectorStoresServiceServicer
):
    """`llamastack.v1.VectorStoresService`.

    Args:
        parts: Stores, their files and batches.
        embedder: Knows embedding models.
        retriever: Finds chunks.
        questions: Rewrites queries.
        check_provider: Refuses a provider that a store cannot have.
    """

    def __init__(
        self,
        parts: StoreParts,
        *,
        embedder: Embedder,
        retriever: Retriever,
        questions: QuestionWriter,
        check_provider: CheckProvider,
    ) -> None:
        self._parts = parts
        self._embedder = embedder
        self._retriever = retriever
        self._questions = questions
        self._check_provider = check_provider

    async def CreateVectorStore(
        self, request: v1.CreateVectorStoreRequest, context: RpcContext
    ) -> v1.CreateVectorStoreResponse:
        """Create a store and begin to load files."""
        parts, tenant = self._parts, current_tenant()
        _check(request)
        if request.provider_id:
            self._check_provider(request.provider_id, "vector")
        await parts.files.check_uploaded(request.file_ids, tenant=tenant, field="file_ids")
        model = await self._embedder.model(request.embedding_model, field="embedding_model")
        vector = v1.VectorBankParams(chunk_size_in_tokens=CHUNK_TOKENS, overlap_size_in_tokens=OVERLAP_TOKENS)
        if request.HasField("embedding_dimension"):
            vector.embedding_dimension = request.embedding_dimension
        fill_vector(
            vector, dimension=model.dimension, model=model.model_id, window=model.window, field="embedding_dimension"
        )
        identifier = f"vs_{secrets.token_hex(12)}"
        async with parts.database.write() as connection:
            await once(connection, parts.database, request)
            answer = await requests.recall(connection, request, tenant=tenant, answer=v1.CreateVectorStoreResponse)
            if answer is None:
                bank = await parts.banks.create(
                    connection,
                    tenant=tenant,
                    identifier=identifier,
                    kind="vector",
                    params=v1.BankParams(vector=vector),
                    provider_id=request.provider_id or "auto",
                    provider_resource_id=identifier,
                    embedding_model=model.model_id,
                    embedding_dimension=model.dimension,
                    embedding_stamp=model.stamp,
                    **store_columns(_own_fields(request), moment=now()),
                )
                wanted = [attachment_of(bank, one, Struct(), request.chunking_strategy) for one in request.file_ids]
                await parts.files.attach(connection, bank, wanted)
                (message,) = await parts.stores.messages([bank], connection=connection)
                answer = v1.CreateVectorStoreResponse(vector_store=message)
                await requests.remember(connection, request, tenant=tenant, answer=answer, bank=bank.number)
        parts.jobs.signals.tell(0)
        return answer

    async def ListVectorStores(
        self, request: v1.ListVectorStoresRequest, context: RpcContext
    ) -> v1.ListVectorStoresResponse:
        """List by time of creation."""
        parts, tenant = self._parts, current_tenant()

        async def number(store_id: str, field: str) -> int:
            return (await parts.stores.get(store_id, tenant=tenant, field=field)).number

        wanted = await listing(request, scope="ListVectorStores", number=number)
        found = await parts.stores.page(
            tenant=tenant,
            after=wanted.after,
            before=wanted.before,
            descending=wanted.descending,
            limit=wanted.limit,
        )
        page, token = wanted.cut(found, lambda bank: int(bank.number))
        if page:
            await parts.progress.advance(*(bank.number for bank in page))
        return v1.ListVectorStoresResponse(data=await parts.stores.messages(page), next_page_token=token)

    async def GetVectorStore(self, request: v1.GetVectorStoreRequest, context: RpcContext) -> v1.GetVectorStoreResponse:
        """Return one."""
        bank = await self._parts.stores.get(request.vector_store_id, tenant=current_tenant())
        return v1.GetVectorStoreResponse(vector_store=await self._message(bank))

    async def UpdateVectorStore(
        self, request: v1.UpdateVectorStoreRequest, context: RpcContext
    ) -> v1.UpdateVectorStoreResponse:
        """Change the fields that are set."""
        bank = await self._parts.stores.alive(request.vector_store_id, tenant=current_tenant())
        check_printable(request.name, most=MAX_NAME, field="name")
        if request.HasField("expires_after"):
            check_expiration(request.expires_after)
        if request.HasField("metadata"):
            given_metadata(request.metadata)
        bank = await self._parts.stores.change(bank, request)
        return v1.UpdateVectorStoreResponse(vector_store=await self._message(bank))

    async def DeleteVectorStore(
        self, request: v1.DeleteVectorStoreRequest, context: RpcContext
    ) -> v1.DeleteVectorStoreResponse:
        """Delete a store with its chunks."""
        parts = self._parts
        bank = await parts.stores.get(request.vector_store_id, tenant=current_tenant())
        await self._stop_loading(bank)
        await parts.banks.delete(bank)
        return v1.DeleteVectorStoreResponse(id=bank.identifier, deleted=True)

    async def SearchVectorStore(
        self, request: v1.SearchVectorStoreRequest, context: RpcContext
    ) -> v1.SearchVectorStoreResponse:
        """Find chunks."""
        parts = self._parts
        bank = await parts.stores.get(request.vector_store_id, tenant=current_tenant())
        _check_search(request)
        size = request.max_num_results if request.HasField("max_num_results") else DEFAULT_RESULTS
        offset = _offset(request, bank)
        ranking, threshold = ranking_of(request.ranking_options), threshold_of(request.ranking_options)
        refuse_expired(bank)
        queries: Sequence[str] = list(request.query)
        if request.rewrite_query:
            queries = await together(self._questions.rewrite(query) for query in queries)
        wanted = StoreSearch(
            queries=queries,
            mode=request.search_mode,
            filters=request.filters,
            ranking=ranking,
            threshold=threshold,
        )
        found, more = await search(self._retriever, bank, wanted, offset=offset, size=size)
        await parts.stores.searched(bank)
        answer = v1.SearchVectorStoreResponse(
            search_query=queries, data=[_result(hit, score) for hit, score in found], has_more=more
        )
        if more:
            answer.next_page = encode_token(str(offset + size), scope=_scope(request, bank))
        return answer

    async def _message(self, bank: Bank) -> v1.VectorStore:
        await self._parts.progress.advance(bank.number)
        (message,) = await self._parts.stores.messages([bank])
        return message

    async def _stop_loading(self, bank: Bank) -> None:
        """End the jobs that load files, and wait a while for it; `BankStore.delete` refuses while one runs."""
        parts = self._parts
        with parts.jobs.signals.listening(0) as changed:
            for _ in range(STOP_TRIES):
                changed.clear()
                await parts.progress.advance(bank.number)
                running = await parts.files.running(bank)
                if not running:
                    return
                await parts.files.stop(bank, running)
                await wait(changed, seconds=STOP_SECONDS)


def _own_fields(request: v1.CreateVectorStoreRequest) -> v1.VectorStore:
    store = v1.VectorStore()
    if request.HasField("name"):
        store.name = request.name
    if request.HasField("description"):
        store.description = request.description
    if request.HasField("expires_after"):
        store.expires_after.CopyFrom(request.expires_after)
    if request.HasField("metadata"):
        store.metadata.CopyFrom(request.metadata)
    return store


def _check(request: v1.CreateVectorStoreRequest) -> None:
    """Refuse what no store can be.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """
    check_printable(request.name, most=MAX_NAME, field="name")
    if len(request.description) > MAX_DESCRIPTION:
        message = f"description has {len(request.description)} characters; at most {MAX_DESCRIPTION} are allowed"
        raise InvalidArgumentError(message, field="description")
    if len(request.file_ids) > MAX_FILES:
        message = f"file_ids has {len(request.file_ids)}; at most {MAX_FILES} are allowed: attach more in batches"
        raise InvalidArgumentError(message, field="file_ids")
    if len(set(request.file_ids)) < len(request.file_ids):
        raise InvalidArgumentError("file_ids: a file is given twice", field="file_ids")
    if request.HasField("chunking_strategy") and not request.file_ids:
        message = "chunking_strategy is for file_ids, and there are none; give it with each file that is attached"
        raise InvalidArgumentError(message, field="chunking_strategy")
    if request.HasField("expires_after"):
        check_expiration(request.expires_after)
    given_metadata(request.metadata)


def _check_search(request: v1.SearchVectorStoreRequest) -> None:
    """Refuse what cannot be searched.

    Raises:
        InvalidArgumentError: If a query is empty, or a value out of range.
    """
    count = len(request.query)
    if not 1 <= count <= MAX_QUERIES:
        reason = "" if count else "MISSING_FIELD"
        raise InvalidArgumentError(f"query has {count}; allowed: 1 to {MAX_QUERIES}", reason=reason, field="query")
    for place, query in enumerate(request.query):
        if not query.strip():
            raise InvalidArgumentError(f"query[{place}] is empty; say what is looked for", field="query")
    if request.HasField("max_num_results") and not 1 <= request.max_num_results <= MAX_RESULTS:
        message = f"max_num_results is {request.max_num_results}; allowed: 1 to {MAX_RESULTS}"
        raise InvalidArgumentError(message, field="max_num_results")
    if request.search_mode not in v1.SearchMode.values():
        raise InvalidArgumentError("search_mode: give vector, keyword or hybrid", field="search_mode")


def _offset(request: v1.SearchVectorStoreRequest, bank: Bank) -> int:
    return int(decode_token(request.page_token, scope=_scope(request, bank)) or 0)


def _scope(request: v1.SearchVectorStoreRequest, bank: Bank) -> str:
    """The same for the pages of one search."""
    same = v1.SearchVectorStoreRequest()
    same.CopyFrom(request)
    same.ClearField("page_token")
    return f"SearchVectorStore {bank.number} {same.SerializeToString(deterministic=True).hex()}"


def _result(hit: Hit, score: float) -> v1.VectorStoreSearchResult:
    row = hit.chunk
    return v1.VectorStoreSearchResult(
        file_id=row["file_id"] or row["document_id"],
        filename=row["source"] or row["document_id"],
        score=score,
        attributes=metadata_of(row),
        content=[v1.VectorStoreContent(text=row["text"])],
    )

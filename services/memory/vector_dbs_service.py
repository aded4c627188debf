"""The RPC edge of vector databases: vector banks under their older name."""

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.database import Database
from services.memory.embedder import Embedder
from services.memory.registry_service import CheckProvider, check_name, fill_vector
from services.runtime.calls import current_tenant
from services.runtime.pages import decode_token, encode_token, page_size
from services.runtime.stream import RpcContext

FIELD = "vector_db_id"


class VectorDBsService(v1.VectorDBsServiceServicer):
    """`llamastack.v1.VectorDBsService`.

    Args:
        database: Where banks are.
        banks: Those that there are.
        embedder: Knows embedding models.
        check_provider: Refuses a provider that a vector bank cannot have.
    """

    def __init__(
        self, database: Database, banks: BankStore, embedder: Embedder, *, check_provider: CheckProvider
    ) -> None:
        self._database = database
        self._banks = banks
        self._embedder = embedder
        self._check_provider = check_provider

    async def ListVectorDBs(self, request: v1.ListVectorDBsRequest, context: RpcContext) -> v1.ListVectorDBsResponse:
        """List by identifier."""
        size, scope = page_size(request), "ListVectorDBs"
        after = decode_token(request.page_token, scope=scope)
        found = await self._banks.page(tenant=current_tenant(), after=after, limit=size + 1, kinds=["vector"])
        token = encode_token(found[size - 1].identifier, scope=scope) if len(found) > size else ""
        return v1.ListVectorDBsResponse(data=[_message(bank) for bank in found[:size]], next_page_token=token)

    async def GetVectorDB(self, request: v1.GetVectorDBRequest, context: RpcContext) -> v1.GetVectorDBResponse:
        """Return one."""
        bank = await self._banks.require(request.vector_db_id, "vector", tenant=current_tenant(), field=FIELD)
        return v1.GetVectorDBResponse(vector_db=_message(bank))

    async def RegisterVectorDB(
        self, request: v1.RegisterVectorDBRequest, context: RpcContext
    ) -> v1.RegisterVectorDBResponse:
        """Register."""
        check_name(request.vector_db_id, field=FIELD)
        model = await self._embedder.model(request.embedding_model)
        params = v1.BankParams(vector=v1.VectorBankParams())
        if request.HasField("embedding_dimension"):
            params.vector.embedding_dimension = request.embedding_dimension
        fill_vector(
            params.vector,
            dimension=model.dimension,
            model=model.model_id,
            window=model.window,
            field="embedding_dimension",
        )
        if request.provider_id:
            self._check_provider(request.provider_id, "vector")
        async with self._database.write() as connection:
            bank = await self._banks.create(
                connection,
                tenant=current_tenant(),
                identifier=request.vector_db_id,
                kind="vector",
                params=params,
                provider_id=request.provider_id or "auto",
                provider_resource_id=request.provider_vector_db_id or request.vector_db_id,
                display_name=request.vector_db_name if request.HasField("vector_db_name") else None,
                embedding_model=model.model_id,
                embedding_dimension=model.dimension,
                embedding_stamp=model.stamp,
            )
        return v1.RegisterVectorDBResponse(vector_db=_message(bank))

    async def UnregisterVectorDB(
        self, request: v1.UnregisterVectorDBRequest, context: RpcContext
    ) -> v1.UnregisterVectorDBResponse:
        """Remove with its chunks."""
        bank = await self._banks.require(request.vector_db_id, "vector", tenant=current_tenant(), field=FIELD)
        await self._banks.delete(bank)
        return v1.UnregisterVectorDBResponse()


def _message(bank: Bank) -> v1.VectorDB:
    return v1.VectorDB(
        identifier=bank.identifier,
        provider_resource_id=bank.provider_resource_id,
        provider_id=bank.provider_id,
        type=v1.RESOURCE_TYPE_VECTOR_DB,
        embedding_model=bank.embedding_model,
        embedding_dimension=bank.embedding_dimension,
        vector_db_name=bank.display_name,
    )

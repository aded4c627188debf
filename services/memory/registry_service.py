"""Bank calls of the memory service: list, get, register, unregister."""

import math
import re
from collections.abc import Callable, Sequence

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.database import Database
from services.memory.embedder import Embedder
from services.runtime.calls import current_tenant
from services.runtime.moments import stamp
from services.runtime.names import check_printable
from services.runtime.pages import decode_token, encode_token, page_size
from services.runtime.stream import RpcContext
from stack_client.errors import InvalidArgumentError

MAX_NAME = 256
MIN_CHUNK, MAX_CHUNK = 16, 4096
DEFAULT_CHUNK = 512
"""Of models that could read more."""
MAX_FIELDS = 32
TYPES = frozenset(v1.MetadataFieldType.values()) - {v1.METADATA_FIELD_TYPE_UNSPECIFIED}
_LANGUAGE = re.compile(r"(?=.{1,35}\Z)[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8})*")
"""BCP 47, loosely (RFC 5646, section 2.1: subtags of at most 8 letters and digits)."""

CheckProvider = Callable[[str, str], None]
"""Refuses a provider that a kind of bank cannot have."""


class BankCalls:
    """Part of `MemoryBanksService`.

    Args:
        database: Where banks are.
        banks: Those that there are.
        embedder: Knows embedding models.
        check_provider: Told the provider and the kind of a new bank; refuses what cannot be.
    """

    def __init__(
        self, database: Database, banks: BankStore, embedder: Embedder, *, check_provider: CheckProvider
    ) -> None:
        self._database = database
        self._banks = banks
        self._embedder = embedder
        self._check_provider = check_provider

    async def ListMemoryBanks(
        self, request: v1.ListMemoryBanksRequest, context: RpcContext
    ) -> v1.ListMemoryBanksResponse:
        """List by identifier."""
        size, scope = page_size(request), "ListMemoryBanks"
        after = decode_token(request.page_token, scope=scope)
        found = await self._banks.page(tenant=current_tenant(), after=after, limit=size + 1)
        token = encode_token(found[size - 1].identifier, scope=scope) if len(found) > size else ""
        counts = await self._banks.counts(found[:size])
        data = [bank_message(bank, count=counts[bank.number]) for bank in found[:size]]
        return v1.ListMemoryBanksResponse(data=data, next_page_token=token)

    async def GetMemoryBank(self, request: v1.GetMemoryBankRequest, context: RpcContext) -> v1.GetMemoryBankResponse:
        """Return one."""
        bank = await self._banks.get(request.memory_bank_id, tenant=current_tenant(), field="memory_bank_id")
        counts = await self._banks.counts([bank])
        return v1.GetMemoryBankResponse(memory_bank=bank_message(bank, count=counts[bank.number]))

    async def RegisterMemoryBank(
        self, request: v1.RegisterMemoryBankRequest, context: RpcContext
    ) -> v1.RegisterMemoryBankResponse:
        """Register."""
        check_name(request.memory_bank_id, field="memory_bank_id")
        kind, params = request.params.WhichOneof("params"), v1.BankParams()
        params.CopyFrom(request.params)
        model = None
        if kind is None:
            known = "vector, keyvalue, keyword or graph"
            raise InvalidArgumentError(f"params: give one of {known}", reason="MISSING_FIELD", field="params")
        if kind == "vector":
            model = await self._embedder.model(params.vector.embedding_model, field="params.vector.embedding_model")
            fill_vector(params.vector, dimension=model.dimension, model=model.model_id, window=model.window)
        check_params(params)
        if request.provider_id:
            self._check_provider(request.provider_id, kind)
        async with self._database.write() as connection:
            bank = await self._banks.create(
                connection,
                tenant=current_tenant(),
                identifier=request.memory_bank_id,
                kind=kind,
                params=params,
                provider_id=request.provider_id or "auto",
                provider_resource_id=request.provider_memory_bank_id or request.memory_bank_id,
                embedding_model=model.model_id if model else "",
                embedding_dimension=model.dimension if model else 0,
                embedding_stamp=model.stamp if model else "",
            )
        counts = await self._banks.counts([bank])
        return v1.RegisterMemoryBankResponse(memory_bank=bank_message(bank, count=counts[bank.number]))

    async def UnregisterMemoryBank(
        self, request: v1.UnregisterMemoryBankRequest, context: RpcContext
    ) -> v1.UnregisterMemoryBankResponse:
        """Remove with everything in it."""
        bank = await self._banks.get(request.memory_bank_id, tenant=current_tenant(), field="memory_bank_id")
        await self._banks.delete(bank)
        return v1.UnregisterMemoryBankResponse()


def bank_message(bank: Bank, *, count: int) -> v1.MemoryBank:
    """A bank as callers see it."""
    return v1.MemoryBank(
        identifier=bank.identifier,
        provider_resource_id=bank.provider_resource_id,
        provider_id=bank.provider_id,
        type=v1.RESOURCE_TYPE_MEMORY_BANK,
        params=bank.params,
        created_at=stamp(bank.created_at),
        entry_count=count,
    )


def fill_vector(
    params: v1.VectorBankParams,
    *,
    dimension: int,
    model: str,
    window: int,
    field: str = "params.vector.embedding_dimension",
) -> None:
    """Fill in the defaults: chunks fit the model's window, an eighth overlaps.

    Raises:
        InvalidArgumentError: If another dimension is asked for than the model's.
    """
    if params.HasField("embedding_dimension") and params.embedding_dimension != dimension:
        message = f"{field} is {params.embedding_dimension}; {model!r} makes {dimension}"
        raise InvalidArgumentError(message, field=field)
    params.embedding_model, params.embedding_dimension = model, dimension
    params.chunk_size_in_tokens = params.chunk_size_in_tokens or min(max(window, MIN_CHUNK), DEFAULT_CHUNK)
    if not params.HasField("overlap_size_in_tokens"):
        params.overlap_size_in_tokens = params.chunk_size_in_tokens // 8


def check_params(params: v1.BankParams) -> None:
    """Refuse what no bank can be.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """
    if params.HasField("vector"):
        size, overlap = params.vector.chunk_size_in_tokens, params.vector.overlap_size_in_tokens
        if not MIN_CHUNK <= size <= MAX_CHUNK:
            field = "params.vector.chunk_size_in_tokens"
            raise InvalidArgumentError(f"{field} is {size}; allowed: {MIN_CHUNK} to {MAX_CHUNK}", field=field)
        if overlap >= size:
            field = "params.vector.overlap_size_in_tokens"
            raise InvalidArgumentError(f"{field} is {overlap}; it must be below the chunk size, {size}", field=field)
        _check_fields(params.vector.metadata_fields, field="params.vector.metadata_fields")
    keyvalue = params.keyvalue
    if keyvalue.HasField("default_ttl_seconds") and not keyvalue.default_ttl_seconds:
        field = "params.keyvalue.default_ttl_seconds"
        raise InvalidArgumentError(f"{field} is 0; give at least 1, or leave it out for ever", field=field)
    if params.HasField("keyword"):
        _check_fields(params.keyword.metadata_fields, field="params.keyword.metadata_fields")
        check_keyword_fields(params.keyword.fields, field="params.keyword.fields")
        _check_language(params.keyword.language, field="params.keyword.language")


def check_keyword_fields(fields: Sequence[v1.KeywordField], *, field: str) -> None:
    """Refuse fields that cannot be searched by words.

    Raises:
        InvalidArgumentError: If a name is empty or given twice, or a boost is not above 0.
    """
    if len(fields) > MAX_FIELDS:
        raise InvalidArgumentError(f"{field} has {len(fields)} fields; at most {MAX_FIELDS} are allowed", field=field)
    names = [one.name for one in fields]
    for index, one in enumerate(fields):
        if not one.name or one.name in names[:index]:
            raise InvalidArgumentError(f"{field}[{index}].name is empty or given twice: {one.name!r}", field=field)
        if one.HasField("boost") and not 0 < one.boost < math.inf:
            message = f"{field}[{index}].boost is {one.boost:g}; it must be above 0, and finite"
            raise InvalidArgumentError(message, field=field)


def check_name(name: str, *, field: str) -> None:
    """Refuse a name that cannot be addressed.

    Raises:
        InvalidArgumentError: If it is empty, blank, too long or has control characters.
    """
    if not name:
        raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
    if name.isspace():
        raise InvalidArgumentError(f"{field} is made of spaces alone", field=field)
    check_printable(name, most=MAX_NAME, field=field)


def _check_language(tag: str, *, field: str) -> None:
    if tag and not _LANGUAGE.fullmatch(tag):
        message = f"{field} {tag[:40]!r} is no BCP 47 tag; give one such as en or pt-BR"
        raise InvalidArgumentError(message, field=field)


def _check_fields(fields: Sequence[v1.MetadataField], *, field: str) -> None:
    names = [one.name for one in fields]
    for index, one in enumerate(fields):
        if not one.name or one.name in names[:index]:
            raise InvalidArgumentError(f"{field}[{index}].name is empty or given twice: {one.name!r}", field=field)
        if one.type not in TYPES:
            message = f"{field}[{index}].type: give string, number, boolean, string_list or time"
            raise InvalidArgumentError(message, reason="MISSING_FIELD", field=field)

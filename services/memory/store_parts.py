"""What the calls of vector stores share."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from llamastack import v1
from services.memory.bank import Bank
from services.memory.banks import BankStore
from services.memory.database import Database
from services.memory.documents import DocumentStore
from services.memory.jobs import JobStore
from services.memory.store_files import FileRow, StoreFiles, status_of
from services.memory.store_progress import StoreProgress
from services.memory.vector_stores import VectorStores
from services.runtime.pages import decode_token, encode_token, page_size
from stack_client.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

SWEEP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class StoreParts:
    """Everything about vector stores but the RPC edge."""

    database: Database
    banks: BankStore
    documents: DocumentStore
    jobs: JobStore
    stores: VectorStores
    files: StoreFiles
    progress: StoreProgress
    draining: asyncio.Event
    """Set when the service is about to shut down."""
    grace_seconds: float
    """How long streams may go on then."""

    async def sweep(self) -> float:
        """Take over what jobs reported, finish what was begun, erase what expired; answers the seconds until the next.

        Raises:
            StackError: If the database failed.
        """
        await self.progress.advance()
        await self.progress.settle()
        for bank in await self.stores.expired():
            await self.files.stop(bank, await self.files.running(bank))
            try:
                await self.documents.delete(bank)
                await self.files.forget(bank)
            except (NotFoundError, FailedPreconditionError):  # deleted meanwhile
                continue
        return SWEEP_SECONDS


class Listing(NamedTuple):
    """What a list call asks for."""

    size: int
    after: int | None
    before: int | None
    descending: bool
    scope: str

    @property
    def limit(self) -> int:
        """Rows to be read: one more than the page shows whether there are others."""
        return self.size if self.before is not None else self.size + 1

    def cut(self, rows: Sequence[Any], number: Callable[[Any], int]) -> tuple[list[Any], str]:
        """The page, and the token of the next one."""
        # A page that ends before a row has at least that row behind it.
        more = bool(rows) if self.before is not None else len(rows) > self.size
        page = list(rows[: self.size])
        return page, encode_token(str(number(page[-1])), scope=self.scope) if more else ""


async def listing(
    request: Any,  # noqa: ANN401 (a list request with `after`, `before` and `order`)
    *,
    scope: str,
    number: Callable[[str, str], Awaitable[int]],
) -> Listing:
    """What a list call asks for.

    Args:
        request: Of the call.
        scope: The list and its filters.
        number: Number of the row of an identifier; the second argument is the request's field, for errors.

    Raises:
        InvalidArgumentError: If size or token are wrong, or several places are given.
        NotFoundError: If the row named does not exist.
    """
    size = page_size(request)
    if bool(request.page_token) + bool(request.after) + bool(request.before) > 1:
        raise InvalidArgumentError("give only one of page_token, after and before", field="page_token")
    if request.order not in {v1.SORT_ORDER_UNSPECIFIED, v1.SORT_ORDER_ASC, v1.SORT_ORDER_DESC}:
        raise InvalidArgumentError("order: give asc or desc", field="order")
    scope = f"{scope} {request.order}"
    token = decode_token(request.page_token, scope=scope)
    after = int(token) if token else None
    if request.after:
        after = await number(request.after, "after")
    before = await number(request.before, "before") if request.before else None
    return Listing(size, after, before, request.order != v1.SORT_ORDER_ASC, scope)


async def file_page(
    parts: StoreParts,
    bank: Bank,
    request: v1.ListVectorStoreFilesRequest | v1.ListVectorStoreFileBatchFilesRequest,
    *,
    scope: str,
    only: "sa.Select[Any] | None" = None,
) -> tuple[list[FileRow], str]:
    """The files of a store that a call lists, and the token of the next page; see `listing` and `StoreFiles.page`."""

    async def number(file_id: str, _field: str) -> int:
        return int((await parts.files.get(bank, file_id))["number"])

    wanted = await listing(request, scope=f"{scope} {request.filter}", number=number)
    rows = await parts.files.page(
        bank,
        status=status_of(request.filter),
        after=wanted.after,
        before=wanted.before,
        descending=wanted.descending,
        limit=wanted.limit,
        only=only,
    )
    return wanted.cut(rows, lambda row: int(row["number"]))


async def once(connection: AsyncConnection, database: Database, request: Any) -> None:  # noqa: ANN401
    """Let only one of equal requests go on at a time; the others find its answer."""
    if request.request_id and database.dialect == "postgresql":  # SQLite has one writer anyway
        key = {"key": f"{request.DESCRIPTOR.name} {request.request_id}"}
        await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(:key))"), key)

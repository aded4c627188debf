"""The RPC edge of the batches."""

import asyncio

from llamastack import v1
from services.gateway.batches.config import BatchesConfig
from services.gateway.batches.execute import ENDPOINTS
from services.gateway.batches.rows import ENDED, BatchRow, message_of
from services.gateway.batches.store import BatchStore
from services.gateway.batches.transfer import Transfer
from services.runtime.background import wait
from services.runtime.calls import current_tenant
from services.runtime.names import check_printable
from services.runtime.pages import decode_token, encode_token, page_size
from services.runtime.stream import EventWriter, RpcContext
from stack_client.calls import terminal_events
from stack_client.errors import InvalidArgumentError, NotFoundError, OutOfRangeError, ResourceExhaustedError

WINDOW = "24h"
MAX_METADATA = 16
MAX_KEY = 64
MAX_VALUE = 512
MAX_NAME = 256
_SCOPE = "ListBatches"


class BatchesService(v1.BatchesServiceServicer):
    """`llamastack.v1.BatchesService`.

    Args:
        store: The batches.
        transfer: Their files.
        config: Bounds.
        draining: Set when the service is about to shut down.
        grace_seconds: How long streams may go on then.
    """

    def __init__(
        self,
        store: BatchStore,
        transfer: Transfer,
        *,
        config: BatchesConfig,
        draining: asyncio.Event,
        grace_seconds: float = 0.0,
    ) -> None:
        self._store = store
        self._transfer = transfer
        self._config = config
        self._draining = draining
        self._grace = grace_seconds

    async def CreateBatch(self, request: v1.CreateBatchRequest, context: RpcContext) -> v1.CreateBatchResponse:
        """Start one."""
        _check(request)
        tenant = current_tenant()
        # A repeat is answered also when the file is gone by now.
        answer = await self._store.recall(request, tenant=tenant)
        if answer is None:
            await self._check_file(request.input_file_id)
            answer = await self._store.create(request, tenant=tenant)
        return answer

    async def GetBatch(self, request: v1.GetBatchRequest, context: RpcContext) -> v1.GetBatchResponse:
        """Return one."""
        return v1.GetBatchResponse(batch=message_of(await self._batch(request.batch_id)))

    async def ListBatches(self, request: v1.ListBatchesRequest, context: RpcContext) -> v1.ListBatchesResponse:
        """List, newest first."""
        size, tenant = page_size(request), current_tenant()
        if request.page_token and request.after:
            raise InvalidArgumentError("give only one of page_token and after", field="page_token")
        token = decode_token(request.page_token, scope=_SCOPE)
        before = int(token) if token else None
        if request.after:
            before = (await self._store.get(request.after, tenant=tenant, field="after"))["number"]
        rows = await self._store.page(tenant=tenant, before=before, limit=size + 1)
        next_token = encode_token(str(rows[size - 1]["number"]), scope=_SCOPE) if len(rows) > size else ""
        return v1.ListBatchesResponse(data=[message_of(row) for row in rows[:size]], next_page_token=next_token)

    async def CancelBatch(self, request: v1.CancelBatchRequest, context: RpcContext) -> v1.CancelBatchResponse:
        """Ask for its end."""
        _required(request.batch_id, field="batch_id")
        row = await self._store.cancel(request.batch_id, tenant=current_tenant())
        return v1.CancelBatchResponse(batch=message_of(row))

    # A coroutine that writes, not a generator: `EventWriter` sends heartbeats beside it.
    async def WatchBatch(  # type: ignore[override]
        self, request: v1.WatchBatchRequest, context: RpcContext
    ) -> None:
        """Replay a batch's events and follow it."""
        row, after = await self._batch(request.batch_id), request.resume_after_sequence
        if after > row["last_sequence"]:
            message = f"resume_after_sequence is {after}; the batch's last event has {row['last_sequence']}"
            raise OutOfRangeError(message, field="resume_after_sequence")
        if row["status"] in ENDED:
            after = min(after, row["last_sequence"] - 1)  # each stream ends with the terminal event, also a late one
        writer = EventWriter(
            context,
            v1.WatchBatchResponse,
            draining=self._draining,
            grace_seconds=self._grace,
            last_sequence=after,
        )
        await writer.run(self._follow(row["number"], writer, after=after))

    async def _follow(self, number: int, writer: EventWriter[v1.WatchBatchResponse], *, after: int) -> None:
        last = terminal_events(v1.WatchBatchResponse.DESCRIPTOR)
        with self._store.signals.listening(number) as changed:
            while True:
                changed.clear()
                events = await self._store.events(number, after=after)
                if events and events[0].sequence != after + 1:
                    oldest = events[0].sequence
                    message = f"the events up to {oldest - 1} are no longer kept; watch again after {oldest - 1}"
                    raise OutOfRangeError(message, metadata={"oldest_sequence": str(oldest)})
                for event in events:
                    await writer.forward(event)
                    after = event.sequence
                    if event.WhichOneof("event") in last:
                        return
                if not events:
                    await wait(changed, seconds=self._config.poll_seconds)

    async def _batch(self, batch_id: str) -> BatchRow:
        _required(batch_id, field="batch_id")
        return await self._store.get(batch_id, tenant=current_tenant())

    async def _check_file(self, file_id: str) -> None:
        """See that there is something to read.

        Raises:
            NotFoundError: If the tenant has no such file.
            InvalidArgumentError: If it is no file of requests.
            ResourceExhaustedError: If it is too large.
        """
        try:
            file = await self._transfer.get(file_id)
        except NotFoundError as error:
            raise NotFoundError(error.message, field="input_file_id") from error
        if file.purpose != v1.FILE_PURPOSE_BATCH:
            message = f"file {file_id!r} was not uploaded with purpose batch; upload it again with that purpose"
            raise InvalidArgumentError(message, field="input_file_id")
        if file.bytes > self._config.max_file_bytes:
            message = (
                f"file {file_id!r} has {file.bytes} bytes; a batch reads at most {self._config.max_file_bytes}: make "
                "several batches of it"
            )
            raise ResourceExhaustedError(message, reason="MESSAGE_TOO_LARGE", field="input_file_id")


def _check(request: v1.CreateBatchRequest) -> None:
    """Refuse what no batch can be.

    Raises:
        InvalidArgumentError: If a value is missing or out of range.
    """
    for field in ("input_file_id", "endpoint", "completion_window"):
        _required(getattr(request, field), field=field)
    if request.endpoint not in ENDPOINTS:
        message = f"endpoint {request.endpoint[:80]!r} cannot be run in a batch; these can: {', '.join(ENDPOINTS)}"
        raise InvalidArgumentError(message, field="endpoint")
    if request.completion_window != WINDOW:
        message = f"completion_window is {request.completion_window[:40]!r}; there is only {WINDOW}"
        raise InvalidArgumentError(message, field="completion_window")
    if len(request.metadata) > MAX_METADATA:
        message = f"metadata has {len(request.metadata)} entries; at most {MAX_METADATA} are allowed"
        raise InvalidArgumentError(message, field="metadata")
    for key, value in request.metadata.items():
        if not 1 <= len(key) <= MAX_KEY or len(value) > MAX_VALUE:
            message = f"metadata {key[:MAX_KEY]!r}: keys have 1 to {MAX_KEY} characters, values at most {MAX_VALUE}"
            raise InvalidArgumentError(message, field="metadata")
    for field in ("input_file_id", "idempotency_key", "request_id"):
        check_printable(getattr(request, field), most=MAX_NAME, field=field)
    if request.HasField("idempotency_key") and not request.idempotency_key:
        raise InvalidArgumentError("idempotency_key is empty; leave it out or give one", field="idempotency_key")


def _required(value: str, *, field: str) -> None:
    if not value:
        raise InvalidArgumentError(f"{field} is empty", reason="MISSING_FIELD", field=field)
    check_printable(value, most=MAX_NAME, field=field)

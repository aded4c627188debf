"""`client.batches`: files of requests that run in the background, and end as files of answers."""

import asyncio
import builtins
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, EventStream, every_page, unary
from stack_client.errors import StreamBrokenError, UnavailableError

RETRIES = 5
"""Times in a row that a lost stream is taken up again."""
RETRY_SECONDS = 0.5


class Batches:
    """Calls of `BatchesService`; creating carries a fresh request id, so that a retry cannot do it twice."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.BatchesServiceStub(channel)

    async def create(
        self,
        input_file_id: str,
        endpoint: str = "/v1/chat/completions",
        *,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        request_id: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.Batch:
        """Start a batch.

        Args:
            input_file_id: File with purpose batch: a JSON object a line, with `custom_id`, `method`, `url`, `body`.
            endpoint: Path of every request.
            completion_window: Longest run; only `24h`.
            metadata: The user's facts, at most 16.
            idempotency_key: A repeat with the same parameters answers the same batch.
            request_id: A UUID that marks repeats of this call; empty means a fresh one.
            timeout: Seconds until the call gives up.

        Raises:
            NotFoundError: If the file does not exist.
            AlreadyExistsError: If the idempotency key belongs to a batch with other parameters.
            InvalidArgumentError: If a value is not supported, or the file has another purpose.
        """
        request = v1.CreateBatchRequest(
            input_file_id=input_file_id,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
            idempotency_key=idempotency_key,
            request_id=request_id or str(uuid.uuid4()),
        )
        response: v1.CreateBatchResponse = await unary(self._stub.CreateBatch(request, timeout=timeout))
        return response.batch

    async def get(self, batch_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Batch:
        """A batch as it stands.

        Raises:
            NotFoundError: If there is none of that identifier.
        """
        request = v1.GetBatchRequest(batch_id=batch_id)
        response: v1.GetBatchResponse = await unary(self._stub.GetBatch(request, timeout=timeout))
        return response.batch

    async def list(self, *, after: str = "", timeout: float = DEFAULT_TIMEOUT) -> builtins.list[v1.Batch]:
        """All batches, newest first, or those that come after one of them.

        Raises:
            NotFoundError: If there is no batch `after`.
        """
        first: v1.ListBatchesResponse = await unary(
            self._stub.ListBatches(v1.ListBatchesRequest(after=after), timeout=timeout)
        )
        if not first.next_page_token:
            return [*first.data]
        request = v1.ListBatchesRequest(page_token=first.next_page_token)
        return [*first.data, *await every_page(self._stub.ListBatches, request, timeout=timeout)]

    async def cancel(self, batch_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Batch:
        """Ask a batch to stop; what is done stays in its output.

        Raises:
            NotFoundError: If there is none of that identifier.
            FailedPreconditionError: If it has ended.
        """
        request = v1.CancelBatchRequest(batch_id=batch_id)
        response: v1.CancelBatchResponse = await unary(self._stub.CancelBatch(request, timeout=timeout))
        return response.batch

    def watch(self, batch_id: str, *, after_sequence: int = 0) -> EventStream[v1.WatchBatchResponse]:
        """The events of a batch from a sequence on; see `follow` for a stream that is taken up again when lost."""
        request = v1.WatchBatchRequest(batch_id=batch_id, resume_after_sequence=after_sequence)
        return EventStream(self._stub.WatchBatch(request))

    async def follow(self, batch_id: str, *, after_sequence: int = 0) -> AsyncIterator[v1.Batch]:
        """The batch after each change, up to its end; a lost stream goes on where it was.

        Raises:
            NotFoundError: If there is none of that identifier.
            UnavailableError: If the service stays away.
        """
        sequence, breaks = after_sequence, 0
        while True:
            try:
                async with self.watch(batch_id, after_sequence=sequence) as events:
                    async for event in events:
                        if event.sequence:
                            sequence, breaks = event.sequence, 0
                            yield getattr(event, event.WhichOneof("event") or "")
                return
            except (StreamBrokenError, UnavailableError):
                breaks += 1
                if breaks > RETRIES:
                    raise
            await asyncio.sleep(RETRY_SECONDS * breaks)

    async def wait(self, batch_id: str) -> v1.Batch:
        """The batch once it has ended, well or badly: see its status.

        Raises:
            NotFoundError: If there is none of that identifier.
            UnavailableError: If the service stays away.
        """
        async for _ in self.follow(batch_id):
            pass
        return await self.get(batch_id)

"""Adding spans to a dataset of the evaluation service."""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from llamastack import v1
from services.telemetry.queries import Queries
from stack_client.calls import unary
from stack_client.errors import InvalidArgumentError, ResourceExhaustedError, UnsupportedError

MAX_ROWS = 10_000
"""Rows that one call adds at most, so that all or none are."""
_PAGE = 1000


class Saver:
    """Finds spans and hands them over as rows.

    Args:
        queries: Finds them.
        channel: To the evaluation service; None where there is none.
    """

    def __init__(self, queries: Queries, *, channel: grpc.aio.Channel | None) -> None:
        self._queries = queries
        self._stub: Any = None if channel is None else v1.DatasetIOServiceStub(channel)

    async def save(self, request: v1.SaveSpansToDatasetRequest, *, tenant: str) -> v1.SaveSpansToDatasetResponse:
        """Add a row per span, the oldest first.

        Raises:
            UnsupportedError: If no service keeps datasets.
            InvalidArgumentError: If the dataset is not named.
            ResourceExhaustedError: If there are too many spans for one call.
            StackError: As the evaluation service raises it.
        """
        if self._stub is None:
            message = "datasets are kept by the evaluation service, and this stack has none; use QuerySpans"
            raise UnsupportedError(f"{message}, or set addresses.evaluation", field="dataset_id")
        if not request.dataset_id:
            raise InvalidArgumentError("dataset_id is missing", reason="MISSING_FIELD", field="dataset_id")
        spans = await self._find(request, tenant=tenant)
        if not spans:
            return v1.SaveSpansToDatasetResponse()
        rows = [_row(span, request.attributes_to_save) for span in reversed(spans)]
        append = v1.AppendRowsRequest(dataset_id=request.dataset_id, rows=rows, request_id=request.request_id)
        await unary(self._stub.AppendRows(append))
        return v1.SaveSpansToDatasetResponse(row_count=len(rows))

    async def _find(self, request: v1.SaveSpansToDatasetRequest, *, tenant: str) -> list[v1.Span]:
        query = v1.QuerySpansRequest(page_size=_PAGE, attribute_filters=request.attribute_filters)
        if request.HasField("max_depth"):
            query.max_depth = request.max_depth
        found: list[v1.Span] = []
        while True:
            page = await self._queries.spans(query, tenant=tenant)
            found += page.data
            if len(found) > MAX_ROWS:
                message = f"more than {MAX_ROWS} spans meet the conditions; add attribute_filters"
                raise ResourceExhaustedError(message, reason="QUOTA_EXCEEDED")
            if not page.next_page_token:
                return found
            query.page_token = page.next_page_token


def _row(span: v1.Span, wanted: Iterable[str]) -> Struct:
    """A span as columns: what it is, and the attributes asked for, null where it has none."""
    said = MessageToDict(span, preserving_proto_field_name=True)
    facts = said.pop("attributes", {})
    names = ("trace_id", "span_id", "parent_span_id", "name", "start_time", "end_time")
    row = Struct()
    row.update({name: said.get(name) for name in names} | {name: facts.get(name) for name in wanted})
    return row

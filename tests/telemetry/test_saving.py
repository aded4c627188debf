"""Spans become rows of a dataset where a service keeps datasets."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
from google.protobuf import json_format

from llamastack import v1
from services.runtime.process import hosting
from services.runtime.service import ServiceContext
from stack_client import StackClient
from stack_client.calls import unary
from stack_client.errors import InvalidArgumentError, NotFoundError
from tests.telemetry.mesh import BUILDS, event, stack_config, start


class Datasets(v1.DatasetIOServiceServicer):
    """Keeps the rows of one dataset, `kept`."""

    name = "evaluation"

    def __init__(self, context: ServiceContext) -> None:
        self.readiness = context.readiness
        self.rows: list[Any] = []

    async def __aenter__(self) -> Self:
        self.readiness.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def add_to(self, server: grpc.aio.Server) -> Sequence[str]:
        v1.add_DatasetIOServiceServicer_to_server(self, server)
        return ["llamastack.v1.DatasetIOService"]

    async def AppendRows(self, request: v1.AppendRowsRequest, context: Any) -> v1.AppendRowsResponse:  # noqa: N802
        if request.dataset_id != "kept":
            raise NotFoundError(f"no dataset {request.dataset_id!r}")
        self.rows += [json_format.MessageToDict(row) for row in request.rows]
        return v1.AppendRowsResponse(row_count=len(self.rows))

    async def IterateRows(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError


async def test_each_span_becomes_a_row_with_null_for_what_it_does_not_say(home: Path) -> None:
    made: list[Datasets] = []

    def build(context: ServiceContext) -> Datasets:
        made.append(Datasets(context))
        return made[-1]

    config = stack_config(home, "telemetry", "evaluation")
    builds = {"telemetry": BUILDS["telemetry"], "evaluation": build}
    async with hosting(builds, config=config, home=home), StackClient(config.addresses) as client:
        for name, facts in (("one", {"said": "x"}), ("two", {})):
            await client.telemetry.log_event(
                event("ab", name.encode().hex(), facts={"mine": True, **facts}, structured_log=start(name))
            )
        stub: Any = v1.TelemetryServiceStub(client.channel("telemetry"))
        request = v1.SaveSpansToDatasetRequest(dataset_id="kept", attributes_to_save=["said"])
        request.attribute_filters.add(key="mine", op=v1.QUERY_CONDITION_OP_EQ).value.bool_value = True
        assert (await unary(stub.SaveSpansToDataset(request))).row_count == 2
        assert [(row["name"], row["trace_id"], row["said"]) for row in made[0].rows] == [
            ("one", "ab", "x"),
            ("two", "ab", None),
        ]
        request.dataset_id = "nosuch"
        with pytest.raises(NotFoundError, match="no dataset 'nosuch'"):
            await unary(stub.SaveSpansToDataset(request))
        request.dataset_id = ""
        with pytest.raises(InvalidArgumentError, match="dataset_id is missing"):
            await unary(stub.SaveSpansToDataset(request))

"""Errors arrive as the same type, reason, field and metadata with which the service raised them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamastack import v1
from stack_client import StackClient, SyncStackClient, errors
from stack_client.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from tests.sdk.conftest import InFlight


async def test_an_unknown_model_names_itself_and_what_is_served(client: StackClient) -> None:
    with pytest.raises(NotFoundError) as caught:
        await client.inference.chat("llama-9b", "hi")
    error = caught.value
    assert error.message.startswith("no model 'llama-9b'; this stack serves: ")
    assert (error.reason, error.field) == ("MODEL_NOT_FOUND", "model_id")
    assert error.metadata == {"model": "llama-9b"}
    assert error.retry_after is None


async def test_a_model_of_the_wrong_type_is_refused_with_its_reason(client: StackClient) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await client.inference.chat("words", "hi")
    assert caught.value.reason == "WRONG_MODEL_TYPE"


async def test_a_model_that_exists_with_other_content_is_refused(client: StackClient) -> None:
    with pytest.raises(AlreadyExistsError):
        await client.models.register("scripted", provider_id="scripted", metadata={"script": []})


async def test_a_passed_deadline_is_raised_and_ends_the_work(client: StackClient, calls_in_flight: InFlight) -> None:
    with pytest.raises(DeadlineExceededError):
        await client.inference.chat("scripted", "hang", timeout=0.3)
    await calls_in_flight(0)


async def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    async with StackClient({"inference": f"unix:{tmp_path / 'none.sock'}"}) as client:
        with pytest.raises(UnavailableError, match=r"nothing answers: .*none.sock.*`stack up`"):
            await client.inference.chat("scripted", "hi")


async def test_a_service_that_the_stack_lacks_is_named(client: StackClient) -> None:
    with pytest.raises(
        InvalidArgumentError,
        match="no evaluation service; it has: agents, gateway, inference, memory, safety, telemetry, tools",
    ):
        client.channel("evaluation")


async def test_a_closed_client_says_so(client: StackClient) -> None:
    other = client.copy()
    assert await other.models.list()
    await other.close()
    with pytest.raises(FailedPreconditionError, match="closed"):
        await other.models.list()


def test_errors_reach_synchronous_code_as_they_are(sync_client: SyncStackClient) -> None:
    with pytest.raises(NotFoundError) as caught:
        sync_client.inference.chat("llama-9b", "hi")
    assert caught.value.metadata == {"model": "llama-9b"}


def test_every_error_has_its_own_place_in_the_tree() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.StackError)]
    for kind in kinds:
        packed = errors.to_status(kind("why", field="a.b", metadata={"k": "v"}, retry_after=1.5))
        again = errors.from_status(packed)
        if kind is not errors.StackError:
            assert type(again) is kind
        assert (again.message, again.field, again.metadata, again.retry_after) == ("why", "a.b", {"k": "v"}, 1.5)


class Flaky(v1.ModelsServiceServicer, v1.AgentsServiceServicer):
    """Is unavailable for the first calls."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.attempts = 0
        self.request_ids: list[str] = []

    async def _answer(self, context: Any, response: Any) -> Any:
        self.attempts += 1
        if self.attempts <= self.failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "just starting")
        return response

    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer(context, v1.GetModelResponse())

    async def UnregisterModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer(context, v1.UnregisterModelResponse())

    async def DeleteAgent(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer(context, v1.DeleteAgentResponse())

    async def CreateTurn(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.request_ids.append(request.request_id)
        return await self._answer(context, v1.CreateTurnResponse())


@asynccontextmanager
async def flaky(failures: int) -> AsyncIterator[tuple[Flaky, StackClient]]:
    service = Flaky(failures)  # type: ignore[abstract] # the rest is not called
    server = grpc.aio.server()
    port = server.add_insecure_port("localhost:0")
    v1.add_ModelsServiceServicer_to_server(service, server)
    v1.add_AgentsServiceServicer_to_server(service, server)
    await server.start()
    try:
        async with StackClient(dict.fromkeys(("inference", "agents"), f"localhost:{port}")) as client:
            yield service, client
    finally:
        await server.stop(None)


async def test_reading_is_tried_again_while_the_service_starts() -> None:
    async with flaky(failures=2) as (service, client):
        await client.models.get("any")
        assert service.attempts == 3


async def test_creating_is_tried_again_under_one_request_id() -> None:
    async with flaky(failures=2) as (service, client):
        await client.agents.create_turn("agent", "session", [])
        assert service.attempts == 3
        assert len(set(service.request_ids)) == 1
        assert service.request_ids[0]


async def test_deleting_is_never_tried_again() -> None:
    async with flaky(failures=1) as (service, client):
        with pytest.raises(UnavailableError, match="just starting"):
            await client.models.unregister("any")
        assert service.attempts == 1
    async with flaky(failures=1) as (service, client):
        with pytest.raises(UnavailableError, match="just starting"):
            await client.agents.delete("any")
        assert service.attempts == 1


async def test_trying_again_has_an_end() -> None:
    async with flaky(failures=100) as (service, client):
        with pytest.raises(UnavailableError, match="just starting"):
            await client.models.get("any")
        assert service.attempts == 4


async def test_a_task_that_is_cancelled_is_cancelled_and_nothing_else(
    client: StackClient, calls_in_flight: InFlight
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await client.inference.chat("scripted", "hang")
    await calls_in_flight(0)

"""Clients that go away from streams end the work behind them."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from llamastack import v1
from tests.gateway.clients.environments import LLAMA_STACK_0_2, OPENAI, Environment
from tests.stacks import StackProcess

MOST_SECONDS = 20.0


async def in_flight(stack: StackProcess) -> int:
    """Calls that the inference service handles now, but for the one that asks."""
    async with grpc.aio.insecure_channel(stack.addresses["inference"]) as channel:
        status = await v1.InspectServiceStub(channel).GetStatus(v1.GetStatusRequest())
        return status.calls_in_flight - 1


@pytest.mark.parametrize(
    ("environment", "program"),
    [(OPENAI, "leave_openai.py"), (LLAMA_STACK_0_2, "leave_llama_stack.py")],
    ids=["openai", "llama-stack-client"],
)
async def test_a_client_that_closes_its_streams_ends_the_work(
    environment: Environment,
    program: str,
    gateway_stack: StackProcess,
    made: Callable[[Environment], Environment],
) -> None:
    await asyncio.to_thread(made, environment)
    before = await in_flight(gateway_stack)
    with environment.running(program, url=gateway_stack.url) as process:
        assert process.stdout is not None
        said = await asyncio.to_thread(process.stdout.readline)
        if said != "left\n":
            process.kill()
            pytest.fail(process.communicate()[1])
        async with asyncio.timeout(MOST_SECONDS):
            while await in_flight(gateway_stack) > before:
                await asyncio.sleep(0.02)
        assert process.poll() is None, "it was not the end of the process that ended the work"

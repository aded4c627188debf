"""`SyncStackClient`: the same client without `await`."""

import asyncio
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from llamastack import v1
from stack_client import SyncStackClient, content
from stack_client.errors import UnavailableError
from tests.sdk.conftest import BOUND_SECONDS, InFlight
from tests.stacks import ROOT, StackProcess, environment, running


def test_calls_answer(sync_client: SyncStackClient) -> None:
    answer = sync_client.inference.chat("scripted", "say hello")
    assert content.text_of(answer.completion_message.content) == "hello"
    assert "scripted" in [model.identifier for model in sync_client.models.list()]
    assert len(sync_client.inference.embed("words", ["a", "b"])) == 2


def test_streams_are_plain_iterators(sync_client: SyncStackClient) -> None:
    events = list(sync_client.inference.stream_chat("scripted", "say red green"))
    assert "".join(event.progress.delta.text for event in events) == "red green"
    assert events[-1].WhichOneof("event") == "complete"


def test_an_error_in_the_middle_of_a_stream_is_raised(sync_client: SyncStackClient) -> None:
    with pytest.raises(UnavailableError, match="the scripted engine broke"):
        list(sync_client.inference.stream_chat("scripted", "break"))


async def test_leaving_a_stream_by_break_cancels_the_call(
    sync_client: SyncStackClient, calls_in_flight: InFlight
) -> None:
    def watch() -> None:
        for event in sync_client.inference.stream_chat("scripted", "hang"):
            if event.WhichOneof("event") == "progress":
                break

    await asyncio.to_thread(watch)
    await calls_in_flight(0)


async def test_a_stream_can_be_closed_by_a_with_block(sync_client: SyncStackClient, calls_in_flight: InFlight) -> None:
    with sync_client.inference.stream_chat("scripted", "hang") as stream:
        next(stream)
        await calls_in_flight(1)
    await calls_in_flight(0)
    assert list(stream) == []


async def test_a_stream_that_is_never_read_is_cancelled(
    sync_client: SyncStackClient, calls_in_flight: InFlight
) -> None:
    stream = sync_client.inference.stream_chat("scripted", "hang")
    await calls_in_flight(1)
    del stream
    await calls_in_flight(0)


async def test_it_works_inside_a_running_loop_as_in_jupyter(sync_client: SyncStackClient) -> None:
    assert asyncio.get_running_loop().is_running()
    answer = sync_client.inference.chat("scripted", "say jupyter")
    assert content.text_of(answer.completion_message.content) == "jupyter"
    assert len(list(sync_client.inference.stream_chat("scripted", "say jupyter"))) == 3


def test_several_threads_share_a_client(sync_client: SyncStackClient) -> None:
    def ask(number: int) -> str:
        return content.text_of(sync_client.inference.chat("scripted", f"say {number}").completion_message.content)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(64))) == [str(number) for number in range(64)]


def test_the_portal_is_one_though_many_threads_begin_at_once() -> None:
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
from stack_client.portal import portal
start = threading.Barrier(16)
def first(_):
    start.wait()
    return portal()
with ThreadPoolExecutor(16) as threads:
    assert len(set(threads.map(first, range(16)))) == 1
"""
    assert python(code).returncode == 0


def test_a_namespace_or_method_that_does_not_exist_is_named(sync_client: SyncStackClient) -> None:
    with pytest.raises(
        AttributeError,
        match="no namespace 'chat'; it has: inference, models, safety, shields, memory, files, tools, agents",
    ):
        sync_client.chat  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'caht'"):
        sync_client.inference.caht  # noqa: B018


def test_namespaces_and_methods_show_in_notebooks(sync_client: SyncStackClient) -> None:
    assert {"inference", "models", "agents", "close"} <= set(dir(sync_client))
    assert {"chat", "stream_chat", "embed"} <= set(dir(sync_client.inference))
    assert "Answer a dialog." in (sync_client.inference.chat.__doc__ or "")


def test_a_program_ends_though_it_left_a_stream_open(stack: StackProcess) -> None:
    code = f"""
from stack_client import SyncStackClient
client = SyncStackClient({stack.addresses!r})
stream = client.inference.stream_chat("scripted", "hang")
print(next(stream).WhichOneof("event"))
"""
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "start\n", "")


def test_an_asynchronous_program_ends_though_it_left_streams_open(stack: StackProcess) -> None:
    code = f"""
import asyncio
from stack_client import Agent, StackClient
async def main():
    global client, stream, run
    client = StackClient({stack.addresses!r})
    stream = client.inference.stream_chat("scripted", "hang")
    print((await anext(stream)).WhichOneof("event"))
    run = Agent("scripted", client=client).astream("hang")
    print((await anext(run)).text)
asyncio.run(main())
"""
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "start\none\n", "")


async def test_ctrl_c_ends_a_call_at_both_sides(stack: StackProcess, calls_in_flight: InFlight) -> None:
    code = f"""
from stack_client import SyncStackClient
client = SyncStackClient({stack.addresses!r})
try:
    client.inference.chat("scripted", "hang")
except KeyboardInterrupt:
    print("interrupted", flush=True)
    print(client.inference.complete("scripted", "say on").content)
"""
    with running([sys.executable, "-c", code]) as process:
        await calls_in_flight(1)
        process.send_signal(signal.SIGINT)
        out, _ = await asyncio.to_thread(process.communicate, timeout=BOUND_SECONDS)
    assert out == "interrupted\non\n"
    await calls_in_flight(0)


async def test_ctrl_c_cancels_the_turn_of_an_agent(stack: StackProcess, calls_in_flight: InFlight) -> None:
    code = f"""
from stack_client import Agent, SyncStackClient
client = SyncStackClient({stack.addresses!r})
agent = Agent("scripted", client=client)
try:
    agent.run("hang")
except KeyboardInterrupt:
    print(client.agents.get_session(agent.session_id).turns[0].status)
"""
    with running([sys.executable, "-c", code]) as process:
        await calls_in_flight(1)
        process.send_signal(signal.SIGINT)
        out, _ = await asyncio.to_thread(process.communicate, timeout=BOUND_SECONDS)
    assert out == f"{v1.TURN_STATUS_CANCELLED}\n"


def test_closing_leaves_no_thread_of_its_own(stack: StackProcess) -> None:
    with SyncStackClient(stack.addresses) as client:
        client.models.list()
    before = threading.active_count()
    with SyncStackClient(stack.addresses) as client:
        client.models.list()
    assert threading.active_count() == before


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=BOUND_SECONDS, check=False,
    )  # fmt: skip

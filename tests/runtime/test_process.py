"""A real process: started, signalled, ended."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services.runtime.config import RuntimeConfig
from services.runtime.listen import open_channel
from tests.runtime.echo import unary

START = (
    "import sys; from pathlib import Path; from services.runtime.process import run; "
    "sys.exit(run(sys.argv[2:], config_path=Path(sys.argv[1]), home=Path(sys.argv[1]).parent))"
)


@asynccontextmanager
async def process(folder: Path, *names: str, runtime: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    config = folder / "stack.yaml"
    config.write_text(f"runtime: {{tcp: false, socket_dir: {folder}{runtime}}}")
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", START, str(config), *names, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def test_one_process_hosts_several_services_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    names = ("one=tests.runtime.echo:build", "two=tests.runtime.echo:build")
    async with process(tmp_path, *names) as running, asyncio.timeout(60):
        for name in ("one", "two"):
            async with open_channel(f"unix:{tmp_path}/{name}.sock", config=RuntimeConfig()) as channel:
                answer = await unary(channel, "Unary")(StringValue(value=name), wait_for_ready=True)
                assert answer.value == name
        os.kill(running.pid, signal.SIGTERM)
        assert await running.wait() == 0
    assert not list(tmp_path.glob("*.sock"))


async def test_sigterm_lets_a_running_call_end_and_a_second_one_cuts_it_off(tmp_path: Path) -> None:
    async with process(tmp_path, "echo=tests.runtime.echo:build") as running, asyncio.timeout(60):
        async with open_channel(f"unix:{tmp_path}/echo.sock", config=RuntimeConfig()) as channel:
            call = unary(channel, "Unary")
            await call(StringValue(value="up"), wait_for_ready=True)
            draining, stuck = call(StringValue(value="draining")), call(StringValue(value="forever"))
            await call(StringValue(value="both have arrived"))
            os.kill(running.pid, signal.SIGTERM)
            assert (await draining).value == "draining"
            os.kill(running.pid, signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stuck
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await running.wait() == 0


@pytest.mark.parametrize(
    ("name", "runtime", "said"),
    [
        ("nosuch", "", 'no service "nosuch"; the mesh has: inference'),
        ("echo=tests.runtime.echo:build", ", hosst: x", 'runtime.hosst: unknown key; did you mean "host"?'),
    ],
)
async def test_what_cannot_start_says_why_and_exits_with_2(tmp_path: Path, name: str, runtime: str, said: str) -> None:
    async with process(tmp_path, name, runtime=runtime) as running:
        _, stderr = await running.communicate()
        assert running.returncode == 2
        assert said in stderr.decode()
        assert "Traceback" not in stderr.decode()


async def test_a_second_process_on_the_same_socket_names_the_first(tmp_path: Path) -> None:
    async with process(tmp_path, "echo=tests.runtime.echo:build") as first, asyncio.timeout(60):
        async with open_channel(f"unix:{tmp_path}/echo.sock", config=RuntimeConfig()) as channel:
            await unary(channel, "Unary")(StringValue(value="up"), wait_for_ready=True)
            async with process(tmp_path, "echo=tests.runtime.echo:build") as second:
                _, stderr = await second.communicate()
                assert second.returncode == 2
                assert f"belongs to a running process (pid {first.pid})" in stderr.decode()
            assert (await unary(channel, "Unary")(StringValue(value="still"))).value == "still"


async def test_a_light_process_imports_neither_torch_nor_opentelemetry() -> None:
    code = "import sys, services.runtime.process; print(*sorted({'torch', 'opentelemetry', 'rich'} & {*sys.modules}))"
    running = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    stdout, _ = await running.communicate()
    assert stdout.decode().strip() == ""

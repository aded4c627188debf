"""kill -9 of the service while a tool runs: an unsafe tool ran once, and nobody claims to know what came of it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llamastack import v1
from tests.stacks import ROOT, environment

LAUNCH = """
import sys
from pathlib import Path
from services.runtime.process import run
sys.exit(run(["tools"], config_path=Path(sys.argv[1]) / "stack.yaml", home=Path(sys.argv[1])))
"""
BOUND = 30.0


@contextmanager
def service(home: Path, *, effect: str) -> Iterator[tuple["subprocess.Popen[bytes]", Any]]:
    """The service as a process, and a stub of it."""
    functions = {"python::kill": {"functions": ["tests.tools.workshop:write_line"]}}
    config = {
        "runtime": {"tcp": False, "socket_dir": str(home), "drain_notice_seconds": 0},
        "tools": {
            "toolgroups": [{"identifier": "python::kill", "provider_id": "python", "settings": {"effect": effect}}],
            "providers": {"python": {"groups": functions}, "code-interpreter": {"prepare": "use"}},
        },
    }
    (home / "stack.yaml").write_text(json.dumps(config))
    with (home / "log.txt").open("ab") as log:
        command = [sys.executable, "-c", LAUNCH, str(home)]
        process = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=log, stderr=log)
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    try:
        with grpc.insecure_channel(f"unix:{home}/tools.sock", options=options) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(  # type: ignore[attr-defined] # missing in its stubs
                health_pb2.HealthCheckRequest(), timeout=BOUND, wait_for_ready=True
            )
            assert any(news.status == health_pb2.HealthCheckResponse.SERVING for news in watch)
            watch.cancel()
            yield process, v1.ToolRuntimeServiceStub(channel)
    finally:
        process.kill()
        process.wait(BOUND)


def call(file: Path) -> v1.InvokeToolRequest:
    arguments = json.dumps({"path": str(file), "line": "ran"})
    return v1.InvokeToolRequest(
        tool_name="python::kill/write_line", kwargs_json=arguments, idempotency_key="k1", approved_by="ada"
    )


def until_lines(file: Path, count: int) -> None:
    bound = time.monotonic() + BOUND
    while not file.exists() or len(file.read_text().splitlines()) < count:
        assert time.monotonic() < bound, "the tool was not started"
        time.sleep(0.01)


def kill_while_it_runs(home: Path, file: Path, *, effect: str) -> None:
    with service(home, effect=effect) as (process, stub):
        running = stub.InvokeTool.future(call(file), timeout=BOUND)
        until_lines(file, 1)
        process.kill()
        process.wait(BOUND)
        assert running.code() is grpc.StatusCode.UNAVAILABLE


def test_an_unsafe_call_is_lost_and_never_runs_again(home: Path) -> None:
    file = home / "lines"
    kill_while_it_runs(home, file, effect="write")
    with service(home, effect="write") as (_, stub):
        found = stub.GetInvocation(v1.GetInvocationRequest(idempotency_key="k1")).invocation
        assert found.status == v1.INVOCATION_STATUS_LOST
        assert not found.HasField("result")
        again = stub.InvokeTool(call(file), timeout=BOUND).result
        assert again.error_code == 520
        assert "not known" in again.error_message
    assert file.read_text() == "ran\n"


@pytest.mark.parametrize("effect", ["read", "idempotent_write"])
def test_a_call_that_may_be_repeated_runs_again_under_its_key(home: Path, effect: str) -> None:
    file = home / "lines"
    kill_while_it_runs(home, file, effect=effect)
    with service(home, effect=effect) as (_, stub):
        running = stub.InvokeTool.future(call(file), timeout=BOUND)
        until_lines(file, 2)
        stub.CancelInvocation(v1.CancelInvocationRequest(idempotency_key="k1"))
        assert running.result().result.error_code == 499
    assert file.read_text() == "ran\nran\n"

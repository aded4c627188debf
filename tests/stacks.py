"""A stack for tests: the real inference and agents services in a process of their own, with scripted models."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stack_client.home import Home, ServiceRecord, StackRecord

ROOT = Path(__file__).parent.parent
START_SECONDS = 30.0
SERVICES = ("inference", "safety", "memory", "tools", "agents")
EVERYTHING = (*SERVICES, "telemetry", "gateway")
LAUNCH = """
import sys
from pathlib import Path
from services.runtime.process import run
sys.exit(run(sys.argv[2:], config_path=Path(sys.argv[1]) / "stack.yaml", home=Path(sys.argv[1])))
"""

SCRIPT: Sequence[Mapping[str, Any]] = (
    {"role": "user", "match": r"^say (.+)", "reply": "{1}"},
    {"role": "user", "match": "^hang", "reply": "one two three", "hang": True},
    {"role": "user", "match": "^slowly (.+)", "reply": "{1}", "token_seconds": 0.02},
    {"role": "user", "match": "^break", "reply": "one two three", "error": "the scripted engine broke"},
    {"role": "user", "tools": True, "match": "weather twice", "tool_calls": [
        {"tool_name": "get_weather", "arguments": {"city": "Oslo"}},
        {"tool_name": "get_weather", "arguments": {"city": "Bergen"}},
    ]},
    {"role": "user", "tools": True, "match": "weather", "tool_calls": [
        {"tool_name": "get_weather", "arguments": {"city": "Oslo"}},
    ]},
    {"role": "user", "tools": True, "match": "order A17[?]", "tool_calls": [
        {"tool_name": "order_status", "arguments": {"order_id": "A17"}},
    ]},
    {"role": "user", "tools": True, "match": "^Refund", "tool_calls": [
        {"tool_name": "refund", "arguments": {"order_id": "A17", "amount": 5.0}},
    ]},
    {"role": "user", "tools": True, "match": "^Ask the poet", "tool_calls": [
        {"tool_name": "poet", "arguments": {"message": "say Rain writes on the roof."}},
    ]},
    {"role": "user", "tools": True, "match": "invoice", "tool_calls": [{"tool_name": "transfer_to_billing"}]},
    {"role": "user", "tools": True, "match": "^Book the room", "tool_calls": [
        {"tool_name": "book_room", "arguments": {"day": "Monday"}},
    ]},
    {"role": "user", "tools": True, "match": "^find (foxes|owls)", "tool_calls": [
        {"tool_name": "knowledge_search", "arguments": {"query": "animals of the woods"}},
    ]},
    {"role": "user", "tools": True, "match": "^calculate", "tool_calls": [
        {"tool_name": "wolfram_alpha", "arguments": {"query": "6 * 7"}},
    ]},
    {"role": "user", "tools": True, "match": "^Search for (.+)", "tool_calls": [
        {"tool_name": "web_search", "arguments": {"query": "fjords"}},
    ]},
    {"role": "user", "match": "heating", "reply": '{"subject": "No heating", "urgency": "high"}'},
    {"role": "tool", "reply": "The tool says: {0}"},
)  # fmt: skip


class StackProcess:
    """Services in a process, on unix sockets; they can be stopped and started again on the same data."""

    def __init__(self, home: Path, *, gateway: Mapping[str, Any] | None = None, traces: bool = False) -> None:
        self.home = home
        self.addresses = {name: f"unix:{home / name}.sock" for name in EVERYTHING}
        self.url = f"http://127.0.0.1:{free_port()}"
        """Where the gateway serves HTTP, once it is started."""
        self._processes: dict[tuple[str, ...], subprocess.Popen[bytes]] = {}
        scripted = {"model_id": "scripted", "provider_id": "scripted", "metadata": {"script": list(SCRIPT)}}
        guard_script = [
            {"match": "stall", "hang": True},
            {"match": "forbidden", "reply": "unsafe\nS1"},
            {"reply": "safe"},
        ]
        guard = {"model_id": "the-guard", "provider_id": "scripted", "metadata": {"script": guard_script}}
        embedding = {"model_id": "words", "provider_id": "scripted", "model_type": "embedding"}
        config: dict[str, Any] = {
            "addresses": self.addresses,
            "runtime": {"tcp": False, "socket_dir": str(home), "drain_notice_seconds": 0, "drain_grace_seconds": 1},
            "inference": {"models": [scripted, guard, embedding]},
            "safety": {"baseline": False},
            "gateway": {"http_port": int(self.url.rpartition(":")[2]), **(gateway or {})},
            "tools": {
                "egress_allow": ["127.0.0.1"],  # for the MCP servers that examples start
                "providers": {"code-interpreter": {"prepare": "use"}},  # not compiled where no test runs code
            },
        }
        if traces:
            config["runtime"] |= {"telemetry": {"traces": True}}
        (home / "stack.yaml").write_text(json.dumps(config))

    def start(self, *services: str) -> None:
        """Start services, all in one process, and wait until they serve."""
        with (self.home / "log.txt").open("ab") as log:
            command = [sys.executable, "-c", LAUNCH, str(self.home), *services]
            self._processes[services] = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
        for service in services:
            self._wait(service)

    def stop(self, *services: str, kill: bool = False) -> None:
        """Stop services that were started together."""
        process = self._processes.pop(services)
        if kill:
            process.kill()
        else:
            process.terminate()
        process.wait(START_SECONDS)

    def pid(self, *services: str) -> int:
        """The process of services that were started together."""
        return self._processes[services].pid

    def stop_all(self) -> None:
        for services in list(self._processes):
            self.stop(*services, kill=True)

    @contextlib.contextmanager
    def declared(self) -> Iterator[None]:
        """Let clients find this stack by its home, as if `stack up` had started it."""
        home = Home.choose(self.home)
        started = [name for names in self._processes for name in names]
        services = {name: ServiceRecord(process=name, addresses=[self.addresses[name]]) for name in started}
        with home.locked():
            home.write_record(
                StackRecord(pid=os.getpid(), version="test", started_at="", config=None, services=services)
            )
            yield

    def _wait(self, service: str) -> None:
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        with grpc.insecure_channel(self.addresses[service], options=options) as channel:
            request = health_pb2.HealthCheckRequest()
            watch = health_pb2_grpc.HealthStub(channel).Watch(  # type: ignore[attr-defined] # missing in its stubs
                request, timeout=START_SECONDS, wait_for_ready=True
            )
            try:
                for news in watch:
                    if news.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            except grpc.RpcError as error:
                log = (self.home / "log.txt").read_text()
                raise RuntimeError(f"{service} did not start: {error}\n{log}") from error
            finally:
                watch.cancel()


def free_port() -> int:
    """A TCP port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def stack_process(*, gateway: Mapping[str, Any] | None = None, traces: bool = False) -> Iterator[StackProcess]:
    """A stack in a folder of its own; nothing runs yet.

    Args:
        gateway: Laid over the gateway's settings.
        traces: Whether the services send their spans to the telemetry service, which then has to be started.
    """
    # Not pytest's folder: paths of unix sockets must be short.
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        stack = StackProcess(Path(folder), gateway=gateway, traces=traces)
        try:
            yield stack
        finally:
            stack.stop_all()


@contextlib.contextmanager
def running(command: Sequence[str], **changes: str) -> Iterator["subprocess.Popen[str]"]:
    """A command in the background, with its output in pipes; it never outlives the block."""
    process = subprocess.Popen(
        command, env=environment(**changes), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def environment(**changes: str) -> dict[str, str]:
    """The environment for a process that runs from the checkout."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "protos" / "gen")])
    return {**os.environ, "PYTHONPATH": paths, **changes}

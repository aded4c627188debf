"""A router and inference nodes as real processes on this machine, over unix sockets, with scripted models."""

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamastack import v1
from stack_client.content import content, text_of
from tests.stacks import environment

START_SECONDS = 20.0
LEASE_SECONDS = 2.0
RUNTIME = {"tcp": False, "drain_notice_seconds": 0, "drain_grace_seconds": 5}


def script(name: str) -> list[dict[str, Any]]:
    """What the model `scripted` of a node says; `who` tells the node."""
    return [
        {"match": "who", "reply": name},
        {"match": "^slow (.+)", "reply": "{1}", "token_seconds": 0.01},
        {"match": "^hang", "reply": "one two", "hang": True},
    ]


class Cluster:
    """A router and nodes in a folder; nothing runs before `start_router` and `start_node`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix:{folder}/router.sock"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        # No retries here, unlike the SDK's channels: what fails must be seen.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        self.channel = grpc.aio.insecure_channel(self.address, options=options)
        self.inference: Any = v1.InferenceServiceStub(self.channel)
        self.models: Any = v1.ModelsServiceStub(self.channel)
        self.nodes: Any = v1.NodesServiceStub(self.channel)

    def start_router(self) -> None:
        self._start("router", "router", {"router": {"lease_seconds": LEASE_SECONDS, "overload_requests": 100}})

    def start_node(self, name: str) -> None:
        scripted = {"model_id": "scripted", "provider_id": "scripted", "metadata": {"script": script(name)}}
        words = {"model_id": "words", "provider_id": "scripted", "model_type": "embedding"}
        link = {
            "address": self.address, "advertise": f"unix:{self.folder}/{name}.sock", "node_id": name,
            "renew_seconds": 0.2,
        }  # fmt: skip
        self._start(name, "inference", {"inference": {"models": [scripted, words], "router": link}})

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def end(self, name: str) -> None:
        """Wait for a process that was told to end."""
        assert self.processes.pop(name).wait(START_SECONDS) is not None

    async def listed(self) -> dict[str, v1.Node]:
        answer = await self.nodes.ListNodes(v1.ListNodesRequest(), wait_for_ready=True, timeout=START_SECONDS)
        return {node.node_id: node for node in answer.data}

    async def until(self, condition: Callable[[dict[str, v1.Node]], bool]) -> dict[str, v1.Node]:
        """The nodes as the router sees them, once a condition on them holds."""
        nodes: dict[str, v1.Node] = {}
        try:
            async with asyncio.timeout(START_SECONDS):
                while not condition(nodes := await self.listed()):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            logs = "\n".join(log.read_text() for log in self.folder.glob("*.log"))
            raise AssertionError(f"the condition does not hold: {nodes}\n{logs}") from None
        return nodes

    async def ready(self, *names: str) -> None:
        """Wait until exactly these nodes get work."""
        await self.until(
            lambda nodes: (
                {name for name, node in nodes.items() if node.state == v1.NODE_STATE_READY and node.ready_models}
                == {*names}
            )
        )

    async def ask(self, text: str, *, session: str = "", seconds: float = 60.0) -> str:
        """The answer to a message."""
        metadata = [("x-session-id", session)] if session else []
        answer = await self.inference.ChatCompletion(chat(text), metadata=metadata, timeout=seconds)
        return text_of(answer.completion_message.content)

    def stream(self, text: str) -> Any:
        return self.inference.StreamChatCompletion(v1.StreamChatCompletionRequest(request=chat(text)))

    def _start(self, name: str, service: str, config: dict[str, Any]) -> None:
        home = self.folder / f"{name}-home"
        home.mkdir(exist_ok=True)
        addresses = {service: f"unix:{self.folder}/{name}.sock"}
        (home / "stack.yaml").write_text(
            json.dumps({"addresses": addresses, "runtime": {**RUNTIME, "socket_dir": str(home)}, **config})
        )
        serve = ["serve", service, "--config", str(home / "stack.yaml"), "--home", str(home)]
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "stack_client.cli", *serve]
            self.processes[name] = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)


def chat(text: str) -> v1.ChatCompletionRequest:
    user = v1.Message(user=v1.UserMessage(content=content(text)))
    return v1.ChatCompletionRequest(model_id="scripted", messages=[user])


@contextmanager
def cluster_in(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        for process in cluster.processes.values():
            process.kill()
        for process in cluster.processes.values():
            process.wait(START_SECONDS)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """A router with two nodes, `a` and `b`."""
    # Not pytest's folder: paths of unix sockets must be short.
    with tempfile.TemporaryDirectory(prefix="router-") as folder, cluster_in(Path(folder)) as cluster:
        cluster.start_router()
        cluster.start_node("a")
        cluster.start_node("b")
        await cluster.ready("a", "b")
        yield cluster
        await cluster.channel.close(None)

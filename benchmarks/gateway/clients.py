"""The stack that is measured, and the cheapest clients of both doors, so that the client's own work weighs little."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import grpc

from benchmarks.measure import STACK, cpu_seconds
from llamastack import v1

START_SECONDS = 60.0
SLOW_TOKEN_SECONDS = 0.02
"""A model as large ones are: 50 tokens a second for each caller."""
SERVICES = ("inference", "agents", "memory", "safety", "tools")


@dataclass
class Stack:
    """What runs."""

    url: str
    inference: str
    gateway_pid: int
    ready_cpu: float


@contextlib.contextmanager
def stack_of(home: Path) -> Iterator[Stack]:
    """Inference with a scripted model, agents, and the gateway, each in a process of its own."""
    script = [
        {"role": "user", "match": "^say (.+)", "reply": "{1}"},
        {"role": "user", "match": "^slowly", "reply": " ".join("abcdefghij" * 4), "token_seconds": SLOW_TOKEN_SECONDS},
        {"role": "user", "match": "^count", "reply": " ".join(str(number % 10) for number in range(400))},
    ]
    models = [{"model_id": "scripted", "provider_id": "scripted", "metadata": {"script": script}}]
    sockets = {name: f"unix:{home / name}.sock" for name in (*SERVICES, "gateway")}
    config = {
        "addresses": sockets,
        "runtime": {"tcp": False, "socket_dir": str(home), "log_level": "WARNING", "drain_grace_seconds": 0.5},
        "inference": {"models": models},
        "safety": {"baseline": False},
        "gateway": {"http_port": 0},
    }
    file = home / "stack.yaml"
    file.write_text(json.dumps(config))
    with contextlib.ExitStack() as running:
        for name in SERVICES:
            _start(name, file, home, running)
        for name in SERVICES:
            _wait(sockets[name])
        gateway = _start("gateway", file, home, running)
        status = _wait(sockets["gateway"])
        ready = cpu_seconds(gateway.pid)
        yield Stack(status.details["http"], sockets["inference"], gateway.pid, ready)


def _start(name: str, file: Path, home: Path, running: contextlib.ExitStack) -> "subprocess.Popen[bytes]":
    command = [*STACK, "serve", name, "--config", str(file), "--home", str(home)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=sys.stderr)

    def end() -> None:
        process.send_signal(signal.SIGTERM)
        process.wait(20)

    running.callback(end)
    return process


def _wait(address: str) -> v1.GetStatusResponse:
    until = time.monotonic() + START_SECONDS
    with grpc.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 100)]) as channel:
        while time.monotonic() < until:
            with contextlib.suppress(grpc.RpcError):
                status = v1.InspectServiceStub(channel).GetStatus(v1.GetStatusRequest(), timeout=1)
                if status.state == v1.SERVICE_STATE_READY:
                    return status
            time.sleep(0.05)
    raise RuntimeError(f"{address} did not become ready")


class Http:
    """HTTP/1.1 over kept connections, with nothing parsed that is not needed to find an answer's end."""

    def __init__(self, url: str, *, prefix: str = "/v1") -> None:
        self._prefix = prefix
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _, writer in self._free:
            writer.close()

    async def chat(self, text: str) -> None:
        """One whole chat."""
        await self._post(f"{self._prefix}/chat/completions", {"model": "scripted", "messages": _user(text)})

    async def response(self, text: str) -> None:
        """One stored response."""
        await self._post(f"{self._prefix}/responses", {"model": "scripted", "input": text})

    async def stream(self, tokens: int) -> None:
        """One streamed chat."""
        body = {"model": "scripted", "messages": _user("count"), "stream": True, "max_tokens": tokens}
        await self._post(f"{self._prefix}/chat/completions", body)

    async def slow(self) -> None:
        """One streamed chat of a slow model."""
        body = {"model": "scripted", "messages": _user("slowly"), "stream": True}
        await self._post(f"{self._prefix}/chat/completions", body)

    async def first_token(self) -> float:
        """Seconds until a streamed chat shows its first text."""
        began = time.monotonic()
        body = {"model": "scripted", "messages": _user("count"), "stream": True}
        seen: list[float] = []
        await self._post(f"{self._prefix}/chat/completions", body, seen=seen)
        return seen[0] - began

    async def _post(self, path: str, body: dict[str, Any], *, seen: list[float] | None = None) -> None:
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection(self._host, self._port)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 200"):
            raise RuntimeError(f"{path}: {answer[:80]!r}")
        if b"content-length:" in answer:
            length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        else:
            await self._chunks(reader, seen)
        self._free.append((reader, writer))

    async def _chunks(self, reader: asyncio.StreamReader, seen: list[float] | None) -> None:
        while size := int(await reader.readline() or b"0", 16):
            piece = await reader.readexactly(size + 2)
            if seen is not None and b'"content":"' in piece and b'"content":""' not in piece:
                seen.append(time.monotonic())
        await reader.readline()


class Direct:
    """gRPC straight to the inference service."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub: Any = v1.InferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close(None)

    async def chat(self, text: str) -> None:
        """One whole chat."""
        await self._stub.ChatCompletion(_request(text))

    async def stream(self, tokens: int) -> None:
        """One streamed chat."""
        request = _request("count")
        request.sampling_params.max_tokens = tokens
        async for _ in self._stub.StreamChatCompletion(v1.StreamChatCompletionRequest(request=request)):
            pass

    async def slow(self) -> None:
        """One streamed chat of a slow model."""
        async for _ in self._stub.StreamChatCompletion(v1.StreamChatCompletionRequest(request=_request("slowly"))):
            pass

    async def first_token(self) -> float:
        """Seconds until a streamed chat shows its first text."""
        began, first = time.monotonic(), 0.0
        async for event in self._stub.StreamChatCompletion(v1.StreamChatCompletionRequest(request=_request("count"))):
            if not first and event.progress.delta.text:
                first = time.monotonic() - began
        return first


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _request(text: str) -> v1.ChatCompletionRequest:
    content = v1.InterleavedContent(items=[v1.ContentItem(text=text)])
    return v1.ChatCompletionRequest(model_id="scripted", messages=[v1.Message(user=v1.UserMessage(content=content))])

"""A small stack of this program's own, for tests: real agents and tools services, and models that answer from here.

The services run in one process that ends with this one; their model calls come back to this program, where the
`Answerer` of the model answers them.
"""

import asyncio
import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import grpc

from llamastack import v1
from stack_client.client import StackClient
from stack_client.errors import (
    DETAILS_KEY,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    StackError,
    UnavailableError,
    to_status,
)
from stack_client.portal import portal

START_SECONDS = 60.0
SERVICES = ("agents", "tools")


class Answerer(Protocol):
    """A model."""

    def answer(self, request: v1.ChatCompletionRequest) -> AsyncIterator[v1.StreamChatCompletionResponse]:
        """The events of an answer."""


class PrivateStack:
    """The services and the way back; started when the first model is used."""

    def __init__(self) -> None:
        self.models: dict[str, Answerer] = {}
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._server: grpc.aio.Server | None = None
        self._addresses: Mapping[str, str] = {}

    def addresses(self) -> Mapping[str, str]:
        """Where its services are; starts them when they do not run.

        Raises:
            FailedPreconditionError: If they cannot be started here.
        """
        if self._process is not None and self._process.poll() is None:
            return self._addresses
        self.stop()
        # The paths of sockets must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="stack-fake-"))
        atexit.register(self.stop)
        self._addresses = {name: f"unix:{self._folder}/{name}.sock" for name in ("inference", *SERVICES)}
        portal().run(self._serve())
        portal().run(self._start(self._folder))
        portal().run(self._ready())
        return self._addresses

    def stop(self) -> None:
        """End the services and remove what they stored."""
        atexit.unregister(self.stop)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._server is not None:
            server, self._server = self._server, None
            with contextlib.suppress(RuntimeError, FailedPreconditionError):  # the loop may be gone at the end
                portal().run(server.stop(None))
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def _serve(self) -> None:
        self._server = grpc.aio.server()
        edge = cast("Any", _Edge)(self.models)  # other calls answer UNIMPLEMENTED
        v1.add_InferenceServiceServicer_to_server(edge, self._server)
        self._server.add_insecure_port(self._addresses["inference"])
        await self._server.start()

    async def _start(self, folder: Path) -> None:
        # On the portal's thread: the kernel ends the services with the thread that started them.
        runtime = {"tcp": False, "socket_dir": str(folder), "log_level": "WARNING"}
        config = folder / "stack.json"
        # What a test does not use is not compiled for it.
        tools = {"providers": {"code-interpreter": {"prepare": "use"}}}
        config.write_text(json.dumps({"addresses": dict(self._addresses), "runtime": runtime, "tools": tools}))
        command = [sys.executable, "-m", "stack_client.cli", "serve", *SERVICES, "--config", str(config)]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603 (our own command; returns at once)
                [*command, "--home", str(folder), "--parent", str(os.getpid())],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    async def _ready(self) -> None:
        assert self._process is not None
        assert self._folder is not None
        until = time.monotonic() + START_SECONDS
        async with StackClient(self._addresses) as client:
            while True:
                try:
                    await client.agents.list(timeout=5)
                    await client.tools.groups(timeout=5)
                    return
                except UnavailableError as error:
                    if self._process.poll() is not None or time.monotonic() > until:
                        log = (self._folder / "log").read_text(errors="replace")[-2000:]
                        message = f"the private stack does not start (pip install llama-stack-mesh[server]): {log}"
                        raise FailedPreconditionError(message) from error
                await asyncio.sleep(0.05)


class _Edge(v1.InferenceServiceServicer):
    """The model calls of the services; they make no others."""

    def __init__(self, models: Mapping[str, Answerer]) -> None:
        self._models = models

    async def StreamChatCompletion(  # noqa: N802 (as in the protos)
        self, request: v1.StreamChatCompletionRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[v1.StreamChatCompletionResponse]:
        """The events of an answer."""
        try:
            async for event in self._model(request.request.model_id).answer(request.request):
                yield event
        except StackError as error:
            await _fail(context, error)

    async def ChatCompletion(  # noqa: N802 (as in the protos)
        self, request: v1.ChatCompletionRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> v1.ChatCompletionResponse:
        """An answer at once."""
        try:
            async for event in self._model(request.model_id).answer(request):
                if event.HasField("complete"):
                    done = event.complete
                    return v1.ChatCompletionResponse(
                        completion_message=done.completion_message,
                        model_id=request.model_id,
                        finish_reason=done.finish_reason,
                        usage=done.usage,
                    )
            raise InternalError("the model's answer has no end")
        except StackError as error:
            await _fail(context, error)
            raise

    def _model(self, model_id: str) -> Answerer:
        if model_id not in self._models:
            known = ", ".join(self._models) or "none"
            raise NotFoundError(f"no model {model_id!r}; this private stack has: {known}", reason="MODEL_NOT_FOUND")
        return self._models[model_id]


async def _fail(context: "grpc.aio.ServicerContext[Any, Any]", error: StackError) -> None:
    status = to_status(error)
    await context.abort(error.code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


_STACK = PrivateStack()


def private_stack() -> PrivateStack:
    """The one of this program."""
    return _STACK

"""The engine's process: reads commands from a pipe, steps every model that has work, sends one message per step.

It is started by `multiprocessing` with the spawn method (a fork would inherit the server's threads and sockets) and
ends when the pipe closes, so it never outlives the service.
"""

import logging
import os
import queue
import signal
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait

import torch

from services.inference.engine.bert import BertEmbedder
from services.inference.engine.commands import (
    Abort,
    Add,
    Command,
    Embed,
    Embedded,
    Event,
    Load,
    Loaded,
    LoadFailed,
    Progress,
    RequestFailed,
    Stepped,
    Stop,
    Unload,
)
from services.inference.engine.engine import Engine
from services.inference.engine.memory import fitting_tokens
from services.inference.engine.request import Figures
from services.inference.engine.runner import TorchRunner
from services.llama.checkpoint import load_model, load_text, prepare

logger = logging.getLogger(__name__)

EMBED_TEXTS_PER_TURN = 16  # so that a large embedding request does not starve decoding


@dataclass
class EmbedWork:
    """An `Embed` in progress: texts are embedded shortest first, so that a batch pads little."""

    command: Embed
    order: list[int]
    rows: dict[int, torch.Tensor] = field(default_factory=dict)


def main(connection: Connection, threads: int) -> None:
    """Run the worker until the pipe closes."""
    # Signals to the whole process group reach us too, but the service decides when to end: it closes the pipe.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s engine %(levelname)s %(message)s")
    torch.set_num_threads(threads)
    logger.info("engine started pid=%d threads=%d torch=%s", os.getpid(), threads, torch.__version__)
    Worker(connection).run()


class Worker:
    """State of the process: models by identifier, and loads that are under way in threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._engines: dict[str, Engine] = {}
        self._embedders: dict[str, BertEmbedder] = {}
        self._embeds: deque[EmbedWork] = deque()
        self._told: dict[str, Figures] = {}
        self._ready: queue.SimpleQueue[tuple[Load, Engine | BertEmbedder, Loaded]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = Pipe(duplex=False)
        self._send_lock = threading.Lock()

    def run(self) -> None:
        """Serve until the pipe closes."""
        while True:
            idle = not self._embeds and all(engine.idle for engine in self._engines.values())
            readable = wait([self._connection, self._wake_read], timeout=None if idle else 0)
            if self._wake_read in readable:
                self._wake_read.recv_bytes()
                self._install()
            if self._connection in readable and not self._receive():
                return
            self._turn()

    def _turn(self) -> None:
        """One step of every model that has work, then a few texts of the first embedding job."""
        for model, engine in self._engines.items():
            emissions = [] if engine.idle else engine.step()
            self._report_failures(engine)
            figures = engine.figures
            if figures != self._told.get(model):  # a step changes them, and so does an abort without one
                self._told[model] = figures
                self._send(Stepped(model=model, emissions=emissions, figures=figures, queued=engine.queued))
                engine.queued = []
        if self._embeds:
            self._embed_some()

    def _report_failures(self, engine: Engine) -> None:
        for request_id, error in engine.failures:
            internal = not isinstance(error, ValueError)
            if internal:
                logger.error("request %s failed", request_id, exc_info=error)
            self._send(RequestFailed(request_id=request_id, message=str(error), internal=internal))
        engine.failures.clear()

    def _receive(self) -> bool:
        """Handle every command that has arrived; False when it is time to end."""
        while self._connection.poll():
            try:
                command: Command = self._connection.recv()
            except (EOFError, OSError):
                return False
            if isinstance(command, Stop):
                return False
            self._handle(command)
        return True

    def _handle(self, command: Command) -> None:
        match command:
            case Add():
                self._add(command)
            case Abort():
                if command.model in self._engines:
                    self._engines[command.model].abort(command.request_id)
                self._embeds = deque(work for work in self._embeds if work.command.request_id != command.request_id)
            case Embed():
                order = sorted(range(len(command.texts)), key=lambda index: len(command.texts[index]))
                self._embeds.append(EmbedWork(command, order))
            case Load():
                threading.Thread(target=self._load, args=(command,), daemon=True).start()
            case Unload():
                self._engines.pop(command.model, None)
                self._told.pop(command.model, None)
                self._embedders.pop(command.model, None)

    def _add(self, command: Add) -> None:
        engine = self._engines.get(command.model)
        request_id = command.request.request_id
        if engine is None:
            self._send(RequestFailed(request_id=request_id, message=f"model {command.model} is not loaded"))
            return
        try:
            engine.add(command.request)
        except ValueError as error:
            self._send(RequestFailed(request_id=request_id, message=str(error)))

    def _load(self, command: Load) -> None:
        """Read a model in a thread of its own, so that the others go on serving."""
        try:
            self._send(Progress(model=command.model, message="reading weights"))
            if command.kind == "embedding":
                embedder = BertEmbedder.load(command.path, device=command.device)
                loaded = Loaded(
                    model=command.model,
                    folder=command.path,
                    dtype="float32",
                    parameters=embedder.parameters,
                    dimension=embedder.config.dim,
                )
                self._ready.put((command, embedder, loaded))
            else:
                if command.path.suffix == ".gguf":
                    self._send(Progress(model=command.model, message="converting (once, then cached)"))
                folder = prepare(command.path, cache_dir=command.cache_dir)
                self._send(Progress(model=command.model, message="loading weights"))
                dtype: torch.dtype = getattr(torch, command.dtype)
                model = load_model(folder, dtype=dtype, device=command.device)
                tokens = command.limits.cached_tokens or fitting_tokens(
                    model.config, dtype=dtype, device=model.embed.weight.device
                )
                loaded = Loaded(
                    model=command.model,
                    folder=folder,
                    dtype=command.dtype,
                    parameters=sum(parameter.numel() for parameter in model.parameters()),
                    cached_tokens=tokens,
                )
                limits = replace(command.limits, cached_tokens=tokens)
                runner = TorchRunner(model, blocks=limits.blocks, block_size=limits.block_size)
                engine = Engine(runner, limits=limits, tokenizer=load_text(folder).tokenizer)
                self._ready.put((command, engine, loaded))
            self._wake_write.send_bytes(b"loaded")
        except Exception as error:
            logger.exception("model %s failed to load", command.model)
            self._send(LoadFailed(model=command.model, message=f"{type(error).__name__}: {error}"))

    def _install(self) -> None:
        """Take over models that their threads have read."""
        while not self._ready.empty():
            command, served, loaded = self._ready.get()
            if isinstance(served, Engine):
                self._engines[command.model] = served
            else:
                self._embedders[command.model] = served
            self._send(loaded)

    def _embed_some(self) -> None:
        """Embed a few texts of the first job; the rest waits until the other jobs have had their turn."""
        work = self._embeds[0]
        embedder = self._embedders.get(work.command.model)
        if embedder is None:
            self._embeds.popleft()
            message = f"model {work.command.model} is not loaded"
            self._send(RequestFailed(request_id=work.command.request_id, message=message))
            return
        indexes, work.order = work.order[:EMBED_TEXTS_PER_TURN], work.order[EMBED_TEXTS_PER_TURN:]
        vectors_BD = embedder.embed([work.command.texts[index] for index in indexes]).cpu()
        work.rows.update(zip(indexes, vectors_BD, strict=True))
        if not work.order:
            self._embeds.popleft()
            result = torch.stack([work.rows[index] for index in range(len(work.rows))])
            self._send(
                Embedded(
                    request_id=work.command.request_id, vectors=result.numpy().tobytes(), dimension=result.shape[1]
                )
            )
        else:
            self._embeds.rotate(-1)

    def _send(self, event: Event) -> None:
        with self._send_lock:
            try:
                self._connection.send(event)
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)  # the service is gone; nobody is left to serve

"""The engine's process: reads commands from a pipe, steps every model that has work, sends one message per step.

It is started by `multiprocessing` with the spawn method (a fork would inherit the server's threads and sockets) and
ends when the pipe closes, so it never outlives the service.
"""

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Container
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe, wait

import torch

from services.inference.engine.batch_queue import BatchQueue, Window
from services.inference.engine.bert import BertEmbedder
from services.inference.engine.classifier import Classifier
from services.inference.engine.commands import (
    Abort,
    Add,
    Classified,
    Classify,
    Command,
    Embed,
    Embedded,
    Event,
    Load,
    LoadAdapter,
    Loaded,
    LoadFailed,
    Progress,
    RequestFailed,
    Stepped,
    Stop,
    Unload,
)
from services.inference.engine.cuda.drawing import DrawingRunner
from services.inference.engine.cuda.engine import DeviceEngine
from services.inference.engine.engine import Engine
from services.inference.engine.loading import build_runner
from services.inference.engine.request import Figures
from services.inference.engine.reranker import LateInteraction, load_reranker
from services.inference.engine.tool_text import prepare_classifier
from services.llama.checkpoint import load_text, prepare, weights_hash
from services.llama.config import LlamaConfig
from services.llama.lora import LoraAdapter, read_adapter

logger = logging.getLogger(__name__)

WINDOWS_PER_TURN = 16  # of an encoder, so that large requests do not starve decoding
TOKENS_PER_TURN = 1024  # a turn is what decode steps wait for; on CPUs longer batches are no faster per window


Ready = tuple[Load | LoadAdapter, Engine | BertEmbedder | Classifier | LateInteraction | LoraAdapter, Loaded]


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
        self._embeds = BatchQueue(windows=WINDOWS_PER_TURN, tokens=TOKENS_PER_TURN)
        self._classifiers: dict[str, Classifier | LateInteraction] = {}
        self._classifies = BatchQueue(windows=WINDOWS_PER_TURN, tokens=TOKENS_PER_TURN)
        self._wanted: dict[str, Load | LoadAdapter] = {}
        """The last load of every model and adapter that was not unloaded: what another one brings is dropped."""
        self._ready: queue.SimpleQueue[Ready] = queue.SimpleQueue()
        self._told: dict[str, Figures] = {}
        self._wake_read, self._wake_write = Pipe(duplex=False)
        self._send_lock = threading.Lock()

    def run(self) -> None:
        """Serve until the pipe closes."""
        while True:
            busy = self._embeds or self._classifies or not all(engine.idle for engine in self._engines.values())
            readable = wait([self._connection, self._wake_read], timeout=0 if busy else None)
            if self._wake_read in readable:
                self._wake_read.recv_bytes()
                self._install()
            if self._connection in readable and not self._receive():
                return
            self._turn()

    def _turn(self) -> None:
        """One step of every model that has work, then a batch of texts to embed and one to classify."""
        for model, engine in self._engines.items():
            emissions = [] if engine.idle else engine.step()
            self._report_failures(engine)
            figures = engine.figures
            # A step changes the figures, and so does an abort without one; reading an earlier step may not.
            if emissions or figures != self._told.get(model):
                self._told[model] = figures
                self._send(Stepped(model=model, emissions=emissions, figures=figures, queued=engine.queued))
                engine.queued = []
        if self._embeds:
            self._embed_some()
        if self._classifies:
            self._classify_some()

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
                self._embeds.drop(command.request_id)
                self._classifies.drop(command.request_id)
            case Embed():
                self._embeds.add(command.model, command.request_id, command.texts)
            case Classify():
                self._classifies.add(command.model, command.request_id, command.windows, command.firsts)
            case Load():
                self._wanted[command.model] = command
                threading.Thread(target=self._load, args=(command,), daemon=True).start()
            case LoadAdapter():
                self._wanted[command.model] = command
                if command.base in self._engines:
                    self._start_adapter(command)
                elif command.base not in self._wanted:
                    self._send(LoadFailed(model=command.model, message=f"model {command.base} is not loaded"))
                # else it starts when its base is there
            case Unload():
                self._unload(command.model)

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

    def _unload(self, model: str) -> None:
        command = self._wanted.pop(model, None)
        if isinstance(command, LoadAdapter):
            if command.base in self._engines:
                self._engines[command.base].unload_adapter(model)
        else:
            self._told.pop(model, None)
            engine = self._engines.pop(model, None)
            if engine is not None:
                engine.close()
            self._embedders.pop(model, None)
            self._classifiers.pop(model, None)

    def _start_adapter(self, command: LoadAdapter) -> None:
        base = self._wanted[command.base]
        assert isinstance(base, Load)
        config = self._engines[command.base].config
        threading.Thread(target=self._load_adapter, args=(command, base, config), daemon=True).start()

    def _load_adapter(self, command: LoadAdapter, base: Load, config: LlamaConfig) -> None:
        """Read an adapter in a thread of its own."""
        try:
            folder = prepare(base.path, cache_dir=base.cache_dir)
            identity = weights_hash(folder, cache_dir=base.cache_dir)
            adapter = read_adapter(command.path, config=config, weights_hash=identity)
            loaded = Loaded(
                model=command.model,
                folder=command.path,
                dtype=base.dtype,
                parameters=sum(pair.a_RI.numel() + pair.b_OR.numel() for pair in adapter.pairs.values()),
                weights_hash=adapter.base_model_hash,
                rank=adapter.rank,
                targets=tuple(adapter.targets),
            )
            self._ready.put((command, adapter, loaded))
            self._wake_write.send_bytes(b"loaded")
        except Exception as error:
            logger.exception("adapter %s failed to load", command.model)
            self._send(LoadFailed(model=command.model, message=f"{type(error).__name__}: {error}"))

    def _load(self, command: Load) -> None:
        """Read a model in a thread of its own, so that the others go on serving."""

        def report(message: str) -> None:
            self._send(Progress(model=command.model, message=message))

        try:
            report("reading weights")
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
            elif command.kind in {"classifier", "rerank"}:
                self._ready.put(_load_classifier(command, report))
            else:
                if command.path.suffix == ".gguf":
                    report("converting (once, then cached)")
                folder = prepare(command.path, cache_dir=command.cache_dir)
                text = load_text(folder)
                report("identifying weights (read once, then remembered)")
                identity = weights_hash(folder, cache_dir=command.cache_dir)
                report("loading weights")
                built = build_runner(folder, command, report=report)
                loaded = Loaded(
                    model=command.model,
                    folder=folder,
                    dtype=command.dtype,
                    quantisation=built.quantisation,
                    kernels=built.kernels,
                    parameters=text.config.parameter_count,
                    cached_tokens=built.limits.cached_tokens,
                    weights_hash=identity,
                )
                if isinstance(built.runner, DrawingRunner):
                    engine: Engine = DeviceEngine(built.runner, limits=built.limits, tokenizer=text.tokenizer)
                else:
                    engine = Engine(built.runner, limits=built.limits, tokenizer=text.tokenizer)
                self._ready.put((command, engine, loaded))
            self._wake_write.send_bytes(b"loaded")
        except Exception as error:
            logger.exception("model %s failed to load", command.model)
            self._send(LoadFailed(model=command.model, message=f"{type(error).__name__}: {error}"))
            for other in list(self._wanted.values()):
                if isinstance(other, LoadAdapter) and other.base == command.model:
                    self._send(LoadFailed(model=other.model, message=f"its base {command.model} failed to load"))

    def _install(self) -> None:
        """Take over models and adapters that their threads have read."""
        while not self._ready.empty():
            command, served, loaded = self._ready.get()
            if self._wanted.get(command.model) is not command:  # unloaded, or loaded anew, in between
                if isinstance(served, Engine):
                    served.close()
                continue
            match served:
                case Engine():
                    self._engines[command.model] = served
                    for other in self._wanted.values():
                        if isinstance(other, LoadAdapter) and other.base == command.model:
                            self._start_adapter(other)
                case BertEmbedder():
                    self._embedders[command.model] = served
                case Classifier() | LateInteraction():
                    self._classifiers[command.model] = served
                case LoraAdapter():
                    assert isinstance(command, LoadAdapter)
                    if command.base not in self._engines:
                        continue  # unloaded, or starts this one again when it is loaded anew
                    if not self._take_adapter(command, served):
                        continue
            self._send(loaded)

    def _take_adapter(self, command: LoadAdapter, adapter: LoraAdapter) -> bool:
        """Hand an adapter to its base's engine; False when it has no room for it, for example on its GPU."""
        try:
            self._engines[command.base].load_adapter(command.model, adapter)
        except Exception as error:
            logger.exception("adapter %s failed to load", command.model)
            self._send(LoadFailed(model=command.model, message=f"{type(error).__name__}: {error}"))
            return False
        return True

    def _embed_some(self) -> None:
        """Embed one batch of texts."""

        def reply(request_id: str, rows: torch.Tensor) -> None:
            self._send(Embedded(request_id=request_id, vectors=rows.numpy().tobytes(), dimension=rows.shape[1]))

        def run(model: str, batch: list[Window]) -> torch.Tensor:
            return self._embedders[model].embed([window.ids for window in batch])

        self._encode_some(self._embeds, self._embedders, run, reply)

    def _classify_some(self) -> None:
        """Classify one batch of windows."""

        def reply(request_id: str, rows: torch.Tensor) -> None:
            self._send(Classified(request_id=request_id, logits=rows.numpy().tobytes(), classes=rows.shape[1]))

        def run(model: str, batch: list[Window]) -> torch.Tensor:
            firsts = [window.first for window in batch if window.first is not None]  # all of a model, or none
            return self._classifiers[model].logits([window.ids for window in batch], firsts or None)

        self._encode_some(self._classifies, self._classifiers, run, reply)

    def _encode_some(
        self,
        queue: BatchQueue,
        loaded: Container[str],
        run: Callable[[str, list[Window]], torch.Tensor],
        reply: Callable[[str, torch.Tensor], None],
    ) -> None:
        """Run one batch of a queue; a fault ends the requests that have windows in it."""
        model, batch = queue.take()
        failure: RequestFailed | None = None
        rows = torch.empty(0)
        if model not in loaded:
            failure = RequestFailed(request_id="", message=f"model {model} is not loaded")
        else:
            try:
                rows = run(model, batch).float().cpu()
            except Exception as error:
                logger.exception("encoding %d windows by %s failed", len(batch), model)
                failure = RequestFailed(request_id="", message=f"{type(error).__name__}: {error}", internal=True)
        if failure is not None:
            for request_id in {window.request_id for window in batch}:
                queue.drop(request_id)
                self._send(replace(failure, request_id=request_id))
            return
        for window, row in zip(batch, rows, strict=True):
            whole = queue.put(window, row)
            if whole is not None:
                reply(window.request_id, whole)

    def _send(self, event: Event) -> None:
        with self._send_lock:
            try:
                self._connection.send(event)
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)  # the service is gone; nobody is left to serve


def _load_classifier(command: Load, report: Callable[[str], None]) -> tuple[Load, Classifier | LateInteraction, Loaded]:
    """Read a classifier or a rerank model, converted first where it is packaged in another format.

    Raises:
        ValueError: If it is none, or one of an unknown kind.
    """
    folder = prepare_classifier(command.path, cache_dir=command.cache_dir)
    load = load_reranker if command.kind == "rerank" else Classifier.load
    classifier = load(folder, device=command.device)
    report("identifying weights (read once, then remembered)")
    loaded = Loaded(
        model=command.model,
        folder=folder,
        dtype="float32",
        parameters=classifier.parameters,
        dimension=classifier.classes,
        architecture=classifier.architecture,
        weights_hash=weights_hash(folder, cache_dir=command.cache_dir),
    )
    return command, classifier, loaded

"""The service's side of the engine process: starts it for the first model, talks to it, starts it again when it dies.

Two threads carry the pipe (a full pipe must never stop the event loop); everything else runs on the loop.
"""

import asyncio
import logging
import multiprocessing
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from services.inference.engine import commands
from services.inference.engine.request import Emission, Figures, Request
from stack_client.errors import InternalError, InvalidArgumentError, UnavailableError

logger = logging.getLogger(__name__)

RESTART_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 15.0)
STOP_SECONDS = 5.0

Outbox = queue.SimpleQueue[commands.Command]


class Generation:
    """A generation in flight."""

    def __init__(self, model: str, on_token: Callable[[Emission], None]) -> None:
        self.model = model
        self.on_token = on_token
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Job:
    """A request in flight that has one answer: an embedding or a classification."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class Loading:
    """A model or an adapter that is being loaded or is loaded."""

    def __init__(self, command: commands.Load | commands.LoadAdapter, report: Callable[[str], None]) -> None:
        self.command = command
        self.report = report
        self.done: asyncio.Future[commands.Loaded] = asyncio.get_running_loop().create_future()


class EngineClient:
    """One engine process and its models; used on one event loop."""

    def __init__(self, *, threads: int) -> None:
        self._threads = threads
        self._process: multiprocessing.process.BaseProcess | None = None
        self._outbox: Outbox = queue.SimpleQueue()
        self._models: dict[str, Loading] = {}
        self._serving: set[str] = set()
        self._generations: dict[str, Generation] = {}
        self._jobs: dict[str, Job] = {}
        self._stopping = False
        self._deaths = 0
        self._restart: asyncio.TimerHandle | None = None
        self.figures: dict[str, Figures] = {}
        """How each text model's engine is doing, as of its last step."""
        self.on_queued: Callable[[str, float], object] = lambda model, seconds: None  # noqa: ARG005
        """Called with the model and the seconds that a request waited for its first step."""

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None while there is none."""
        return self._process.pid if self._process else None

    @property
    def in_flight(self) -> int:
        """Generations that have not ended."""
        return len(self._generations)

    def start(self) -> None:
        """Spawn the process; returns at once, commands wait in the pipe until it listens."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._outbox = queue.SimpleQueue()
        self._process = context.Process(target=commands.run, args=(theirs, self._threads), name="engine", daemon=True)
        self._process.start()
        theirs.close()
        loop = asyncio.get_running_loop()
        threading.Thread(target=_write, args=(ours, self._outbox), daemon=True).start()
        threading.Thread(target=self._read, args=(ours, loop), daemon=True).start()

    async def stop(self) -> None:
        """End the process; what is in flight ends with UNAVAILABLE."""
        self._stopping = True
        if self._restart:
            self._restart.cancel()
        self._outbox.put(commands.Stop())
        if self._process is not None:
            await asyncio.to_thread(self._process.join, STOP_SECONDS)
            if self._process.is_alive():
                self._process.kill()
                await asyncio.to_thread(self._process.join, STOP_SECONDS)
        self._fail_in_flight(UnavailableError("the inference service is shutting down", reason="DRAINING"))

    async def load(
        self, command: commands.Load | commands.LoadAdapter, report: Callable[[str], None]
    ) -> commands.Loaded:
        """Load a model or an adapter; it is loaded again by itself whenever the process had to be restarted.

        Raises:
            InvalidArgumentError: If it cannot be read; the message is the engine's.
            UnavailableError: If the service stops first.
        """
        loading = Loading(command, report)
        self._models[command.model] = loading
        if self._process is None:
            self.start()
        self._outbox.put(command)
        return await loading.done

    def unload(self, model: str) -> None:
        """Free a model or an adapter; its requests in flight end with UNAVAILABLE."""
        self._models.pop(model, None)
        self.figures.pop(model, None)
        self._serving.discard(model)
        self._outbox.put(commands.Unload(model=model))
        error = UnavailableError(f"model {model} was unregistered while it answered")
        for key in [key for key, generation in self._generations.items() if generation.model == model]:
            _fail(self._generations.pop(key), error)
        for key in [key for key, job in self._jobs.items() if job.model == model]:
            _fail(self._jobs.pop(key), error)

    async def generate(self, model: str, request: Request, on_token: Callable[[Emission], None]) -> None:
        """Run a request to its end, calling `on_token` for every token; when cancelled the request is aborted.

        Raises:
            UnavailableError: If the engine process dies.
            InvalidArgumentError: If the engine refuses the request.
        """
        self._check_serving(model)
        engine = model
        command = self._models[model].command
        if isinstance(command, commands.LoadAdapter):
            engine, request = command.base, replace(request, adapter=model)
        generation = Generation(model, on_token)
        self._generations[request.request_id] = generation
        try:
            self._outbox.put(commands.Add(model=engine, request=request))
            await generation.done
        finally:
            if self._generations.pop(request.request_id, None) is not None:
                self._outbox.put(commands.Abort(model=engine, request_id=request.request_id))

    async def embed(self, model: str, request_id: str, texts: list[list[int]]) -> commands.Embedded:
        """Embed texts given as token ids.

        Raises:
            UnavailableError: If the engine process dies.
        """
        embedded: commands.Embedded = await self._job(commands.Embed(model=model, request_id=request_id, texts=texts))
        return embedded

    async def classify(
        self, model: str, request_id: str, windows: list[list[int]], *, firsts: list[int] | None = None
    ) -> commands.Classified:
        """Classify windows given as token ids with their special tokens; when cancelled its windows leave the queue.

        Args:
            model: A classifier, or a rerank model.
            request_id: Of this call alone.
            windows: Single texts, or pairs of a query and an item.
            firsts: With pairs, how many tokens of each belong to the query.

        Raises:
            UnavailableError: If the engine process dies.
        """
        classified: commands.Classified = await self._job(
            commands.Classify(model=model, request_id=request_id, windows=windows, firsts=firsts)
        )
        return classified

    async def _job(self, command: commands.Embed | commands.Classify) -> Any:  # noqa: ANN401 (the command's answer)
        self._check_serving(command.model)
        job = self._jobs[command.request_id] = Job(command.model)
        try:
            self._outbox.put(command)
            return await job.done
        finally:
            if self._jobs.pop(command.request_id, None) is not None:
                self._outbox.put(commands.Abort(model=command.model, request_id=command.request_id))

    def _read(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Thread: hand every event of the engine to the loop, and its death last."""
        while True:
            try:
                event: commands.Event = connection.recv()
            except (EOFError, OSError):
                break
            loop.call_soon_threadsafe(self._handle, event)
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._died)

    def _handle(self, event: commands.Event) -> None:
        match event:
            case commands.Stepped():
                self._stepped(event)
            case commands.RequestFailed():
                error = InternalError(event.message) if event.internal else InvalidArgumentError(event.message)
                _fail(self._generations.pop(event.request_id, None), error)
                _fail(self._jobs.pop(event.request_id, None), error)
            case commands.Embedded() | commands.Classified():
                job = self._jobs.pop(event.request_id, None)
                if job and not job.done.done():
                    job.done.set_result(event)
            case commands.Progress():
                if event.model in self._models:
                    self._models[event.model].report(event.message)
            case commands.Loaded():
                self._loaded(event)
            case commands.LoadFailed():
                loading = self._models.pop(event.model, None)
                if loading and loading.done.done():
                    loading.report(f"it could not be loaded again: {event.message}")
                elif loading:
                    loading.done.set_exception(InvalidArgumentError(event.message))

    def _stepped(self, event: commands.Stepped) -> None:
        if event.model in self._models:  # else unloaded while it ran
            self.figures[event.model] = event.figures
            for seconds in event.queued:
                self.on_queued(event.model, seconds)
        for emission in event.emissions:
            self._emit(emission)

    def _loaded(self, event: commands.Loaded) -> None:
        self._deaths = 0
        loading = self._models.get(event.model)
        if loading is None:  # unloaded in between
            return
        self._serving.add(event.model)
        if loading.done.done():
            loading.report("")  # it serves again after a restart
        else:
            loading.done.set_result(event)

    def _check_serving(self, model: str) -> None:
        if model not in self._serving:
            message = f"the engine starts again and has not loaded {model} yet; ask again in a second"
            raise UnavailableError(message, reason="NOT_READY", retry_after=1.0)

    def _emit(self, emission: Emission) -> None:
        generation = self._generations.get(emission.request_id)
        if generation is None:  # aborted while the step ran
            return
        if emission.finish:
            del self._generations[emission.request_id]
        generation.on_token(emission)
        if emission.finish and not generation.done.done():
            generation.done.set_result(None)

    def _died(self) -> None:
        """The pipe closed: end what was in flight and start anew, unless we are stopping."""
        if self._stopping:
            return
        delay = RESTART_BACKOFF_SECONDS[min(self._deaths, len(RESTART_BACKOFF_SECONDS) - 1)]
        self._deaths += 1
        logger.error("engine process died pid=%s restart_in_seconds=%s", self.pid, delay)
        message = f"the engine process died; it starts again in {delay:g} s, ask again then"
        self._fail_in_flight(UnavailableError(message, reason="ENGINE_DIED", retry_after=delay))
        for model in self._serving:
            self._models[model].report("the engine process died and starts again")
        self._serving.clear()
        self.figures.clear()
        self._outbox.put(commands.Stop())  # lets the old writer's thread end; what else is in there is void
        self._restart = asyncio.get_running_loop().call_later(delay, self._start_again)

    def _start_again(self) -> None:
        self.start()
        for loading in self._models.values():
            self._outbox.put(loading.command)

    def _fail_in_flight(self, error: UnavailableError) -> None:
        requests: list[Generation | Job] = [*self._generations.values(), *self._jobs.values()]
        for request in requests:
            _fail(request, error)
        if self._stopping:
            for loading in self._models.values():
                _fail_future(loading.done, error)
        self._generations.clear()
        self._jobs.clear()


def _write(connection: Connection, outbox: Outbox) -> None:
    """Thread: send commands in order, to the last one or until the engine is gone."""
    command: commands.Command | None = None
    while not isinstance(command, commands.Stop):
        command = outbox.get()
        try:
            connection.send(command)
        except (BrokenPipeError, ConnectionResetError, OSError):
            return  # the reader sees the same end and reports it


def _fail(request: Generation | Job | None, error: Exception) -> None:
    if request:
        _fail_future(request.done, error)


def _fail_future(future: "asyncio.Future[Any] | None", error: Exception) -> None:
    if future and not future.done():
        future.set_exception(error)

"""A model that several processes compute together, each with a shard of its weights and of its key/value heads."""

import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from services.inference.engine.group import Group, join, open_store
from services.inference.engine.ranks import Allocate, DropAdapter, Message, Start, Started, Step, TakeAdapter, send
from services.inference.engine.runner import Part, TorchRunner
from services.llama.checkpoint import load_config, load_model
from services.llama.checkpoint.layout import linear_specs
from services.llama.checkpoint.shard import Shard
from services.llama.config import LlamaConfig, Quantisation
from services.llama.lora import LoraAdapter, LoraPair
from services.llama.model import Llama

logger = logging.getLogger(__name__)

JOIN_SECONDS = 5.0


class TensorParallelRunner:
    """Rank 0 of a tensor-parallel model and the processes of the other ranks; a `Runner`.

    Args:
        folder: The prepared checkpoint; every rank reads its own shard from it.
        count: Ranks.
        dtype: Of weights and arithmetic.
        device: `cpu`, or `cuda`: then rank r computes on the r-th GPU.
        threads: CPU threads of all ranks together.
        quantisation: Format of the weights; each rank quantises its own shard.
    """

    def __init__(
        self, folder: Path, *, count: int, dtype: str, device: str, threads: int, quantisation: Quantisation = "none"
    ) -> None:
        self.config = load_config(folder)
        self._folder = folder
        self._count = count
        self._dtype = dtype
        self._quantisation = quantisation
        self._device = device
        self._threads = max(threads // count, 1)
        self._ranks: list[_Rank] = []
        self._model: Llama | None = None
        self._runner: TorchRunner | None = None
        self._store = open_store(Shard(count=count), port=0)

    def load(self) -> int:
        """Load the shards, all at once; returns this process's bytes.

        Raises:
            LlamaError: If this process's shard cannot be loaded, or the model cannot be divided.
            RuntimeError: If another rank's cannot be loaded.
        """
        try:
            return self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> int:
        for rank in range(1, self._count):
            shard = Shard(rank=rank, count=self._count)
            start = Start(
                folder=self._folder,
                shard=shard,
                dtype=self._dtype,
                quantisation=self._quantisation,
                device=_device_of(self._device, rank),
                threads=self._threads,
                port=self._store.port,
            )
            shard.config(self.config)  # refuse before a process is started
            self._ranks.append(_Rank(start))
        dtype: torch.dtype = getattr(torch, self._dtype)
        shard = Shard(count=self._count)
        model = load_model(
            self._folder,
            dtype=dtype,
            device=_device_of(self._device, 0),
            shard=shard,
            quantisation=self._quantisation,
        )
        for rank_ in self._ranks:
            rank_.wait_loaded()
        self._model = model
        return model.weight_bytes

    def allocate(self, *, blocks: int, block_size: int) -> None:
        """Make room for keys and values on every rank; from then on it computes steps."""
        assert self._model is not None
        self._tell(Allocate(blocks=blocks, block_size=block_size))
        shard = Shard(count=self._count)
        group = Group(shard, self._store, device=self._model.embed.weight.device)
        join(self._model, group, shard=shard, whole=self.config)
        self._runner = TorchRunner(self._model, blocks=blocks, block_size=block_size)
        for rank in self._ranks:
            rank.watch()

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """See `Runner`."""
        assert self._runner is not None
        self._tell(Step(parts=parts))
        return self._runner.forward(parts)

    def load_adapter(self, name: str, adapter: LoraAdapter) -> None:
        """See `Runner`."""
        assert self._runner is not None
        for number, rank in enumerate(self._ranks, start=1):
            part = shard_adapter(adapter, Shard(rank=number, count=self._count), config=self.config)
            rank.tell(TakeAdapter(name=name, adapter=part))
        self._runner.load_adapter(name, shard_adapter(adapter, Shard(count=self._count), config=self.config))

    def unload_adapter(self, name: str) -> None:
        """See `Runner`."""
        assert self._runner is not None
        self._tell(DropAdapter(name=name))
        self._runner.unload_adapter(name)

    def close(self) -> None:
        """End the other ranks."""
        for rank in self._ranks:
            rank.close()
        self._ranks.clear()

    def _tell(self, message: Message) -> None:
        for rank in self._ranks:
            rank.tell(message)


class _Rank:
    """The process of a rank. `multiprocessing` is no help: it lets daemons, as the engine's process is, have none."""

    def __init__(self, start: Start) -> None:
        self.number = start.shard.rank
        self._closing = False
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            # Not `-m`: messages are pickled with the name of the module that defines them, which must not be __main__.
            code = f"from services.inference.engine.ranks import main; main({theirs.fileno()})"
            self._process = subprocess.Popen(  # noqa: S603 (our own code)
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=environment
            )
        self._connection = Connection(ours.detach())
        send(self._connection, start)

    def wait_loaded(self) -> None:
        """Return once the rank has its weights."""
        try:
            started: Started = pickle.loads(self._connection.recv_bytes())  # noqa: S301 (from our own child)
        except (EOFError, OSError):
            started = Started(error=f"it ended with {self._process.wait()}")
        if started.error:
            raise RuntimeError(f"rank {self.number} could not load its shard: {started.error}")

    def tell(self, message: Message) -> None:
        """Send a message; a rank that is gone is the watching thread's matter."""
        send(self._connection, message)

    def watch(self) -> None:
        """End this process as soon as the rank ends: a step without it would wait for it."""
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """End the process and wait for it."""
        self._closing = True
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(JOIN_SECONDS)
        self._process.kill()
        self._process.wait()

    def _watch(self) -> None:
        code = self._process.wait()
        if not self._closing:
            logger.error("rank %d ended code=%s; the engine's process ends with it", self.number, code)
            os._exit(1)


def shard_adapter(adapter: LoraAdapter, shard: Shard, *, config: LlamaConfig) -> LoraAdapter:
    """What one rank adds: the part of B that gives its outputs, or the part of A that takes its inputs."""
    pairs = {}
    for spec in linear_specs(config):
        name = spec.ours.removesuffix(".weight")
        if name in adapter.pairs:
            pair, span = adapter.pairs[name], shard.span(spec)
            part = slice(span.start, span.stop)
            if span.axis == 0:
                pairs[name] = LoraPair(pair.a_RI, pair.b_OR[part].contiguous())
            else:
                pairs[name] = LoraPair(pair.a_RI[:, part].contiguous(), pair.b_OR)
    return LoraAdapter(pairs=pairs, base_model_hash=adapter.base_model_hash)


def _device_of(device: str, rank: int) -> str:
    return f"cuda:{rank}" if device.startswith("cuda") else device

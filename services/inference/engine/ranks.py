"""What the ranks of a tensor-parallel model are told, and the process that runs each of them but the first.

Rank 0 lives in the engine's process and drives: it sends every step's parts down a pipe to each rank, then all compute.
A rank ends when its pipe closes, so it never outlives the engine's process; the engine's process ends when a rank does.
"""

import logging
import os
import pickle
import queue
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from services.inference.engine.group import Group, join, open_store
from services.inference.engine.runner import Part, TorchRunner
from services.llama.checkpoint import load_config, load_model
from services.llama.checkpoint.shard import Shard
from services.llama.config import Quantisation
from services.llama.lora import LoraAdapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first message to a rank: load your shard. It answers with `Started`."""

    folder: Path
    shard: Shard
    dtype: str
    quantisation: Quantisation
    device: str
    threads: int
    port: int


@dataclass(frozen=True, kw_only=True)
class Started:
    """A rank has its weights, or could not load them."""

    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Allocate:
    """Make room for keys and values; from then on come steps."""

    blocks: int
    block_size: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """Compute a step."""

    parts: Sequence[Part]


@dataclass(frozen=True, kw_only=True)
class TakeAdapter:
    """Load the rank's part of an adapter."""

    name: str
    adapter: LoraAdapter


@dataclass(frozen=True, kw_only=True)
class DropAdapter:
    """Unload an adapter."""

    name: str


Message = Allocate | Step | TakeAdapter | DropAdapter


def send(connection: Connection, message: Start | Started | Message) -> None:
    """Send by value: multiprocessing's own pickler would pass tensors as shared memory."""
    connection.send_bytes(pickle.dumps(message))


def main(descriptor: int) -> None:
    """Run a rank on the pipe that the engine's process gave it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    start: Start = pickle.loads(connection.recv_bytes())  # noqa: S301 (from our own parent)
    rank = start.shard.rank
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s engine rank {rank} %(levelname)s %(message)s")
    torch.set_num_threads(start.threads)
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, messages), daemon=True).start()
    try:
        config = load_config(start.folder)
        dtype: torch.dtype = getattr(torch, start.dtype)
        model = load_model(
            start.folder, dtype=dtype, device=start.device, shard=start.shard, quantisation=start.quantisation
        )
    except Exception as error:
        logger.exception("shard failed to load")
        send(connection, Started(error=f"{type(error).__name__}: {error}"))
        return
    send(connection, Started())
    allocate = messages.get()
    assert isinstance(allocate, Allocate)
    group = Group(start.shard, open_store(start.shard, port=start.port), device=model.embed.weight.device)
    join(model, group, shard=start.shard, whole=config)
    runner = TorchRunner(model, blocks=allocate.blocks, block_size=allocate.block_size)
    while True:
        match messages.get():
            case Step(parts=parts):
                runner.forward(parts)
            case TakeAdapter(name=name, adapter=adapter):
                runner.load_adapter(name, adapter)
            case DropAdapter(name=name):
                runner.unload_adapter(name)


def _read(connection: Connection, messages: "queue.SimpleQueue[Message]") -> None:
    """Thread: take messages; when the pipe closes the process ends, whatever it waits for."""
    while True:
        try:
            messages.put(pickle.loads(connection.recv_bytes()))  # noqa: S301 (from our own parent)
        except (EOFError, OSError):
            os._exit(0)

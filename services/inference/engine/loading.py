"""From a prepared checkpoint to a runner that has its weights and its key/value blocks."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from services.inference.engine.commands import Load
from services.inference.engine.memory import fitting_tokens
from services.inference.engine.parallel import TensorParallelRunner
from services.inference.engine.request import EngineLimits
from services.inference.engine.runner import Runner, TorchRunner
from services.llama.checkpoint import load_config, load_model
from services.llama.checkpoint.shard import Shard

logger = logging.getLogger(__name__)


def build_runner(folder: Path, command: Load) -> tuple[Runner, EngineLimits]:
    """Load a text model as a command asks; returns the limits with the size of the cache decided.

    Raises:
        LlamaError: If the model cannot be read, or not be divided.
        RuntimeError: If another rank could not load its shard.
    """
    dtype: torch.dtype = getattr(torch, command.dtype)
    if command.tensor_parallel == 1:
        model = load_model(folder, dtype=dtype, device=command.device, quantisation=command.quantisation)
        limits = _with_cache(command, folder, dtype=dtype)
        _log(command, weight_bytes=model.weight_bytes)
        return TorchRunner(model, blocks=limits.blocks, block_size=limits.block_size), limits
    runner = TensorParallelRunner(
        folder,
        count=command.tensor_parallel,
        dtype=command.dtype,
        quantisation=command.quantisation,
        device=command.device,
        threads=command.threads,
    )
    _log(command, weight_bytes=runner.load())
    limits = _with_cache(command, folder, dtype=dtype)
    runner.allocate(blocks=limits.blocks, block_size=limits.block_size)
    return runner, limits


def _with_cache(command: Load, folder: Path, *, dtype: torch.dtype) -> EngineLimits:
    """The limits with as many cached tokens as fit, where none are given."""
    device = torch.device(command.device)
    config = load_config(folder)
    if device.type == "cuda":  # each rank has a GPU, and its part of the heads, for itself
        config = Shard(count=command.tensor_parallel).config(config)
    tokens = command.limits.cached_tokens or fitting_tokens(config, dtype=dtype, device=device)
    return replace(command.limits, cached_tokens=tokens)


def _log(command: Load, *, weight_bytes: int) -> None:
    logger.info(
        "model %s loaded dtype=%s quantisation=%s ranks=%d weight_bytes_per_rank=%d",
        command.model, command.dtype, command.quantisation, command.tensor_parallel, weight_bytes,
    )  # fmt: skip

"""From a prepared checkpoint to a runner that has its weights and its key/value blocks.

Which runner serves a model is decided here, from what the command asks and what the machine offers, and logged with its
reason.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from services.inference.engine.commands import Load
from services.inference.engine.cuda.probe import open_attention
from services.inference.engine.cuda.runner import CudaRunner
from services.inference.engine.memory import fitting_tokens
from services.inference.engine.native import loading as native
from services.inference.engine.native.pack import Format
from services.inference.engine.native.runner import NativeRunner
from services.inference.engine.parallel import TensorParallelRunner
from services.inference.engine.prepacked import can_prepack, prepack
from services.inference.engine.request import EngineLimits
from services.inference.engine.runner import Runner, TorchRunner
from services.llama.checkpoint import load_config, load_model
from services.llama.checkpoint.shard import Shard
from services.llama.config import LlamaConfig, Quantisation

logger = logging.getLogger(__name__)

Report = Callable[[str], None]
NATIVE_ITEM_SIZE = 2  # the kernels keep keys and values in bf16


@dataclass(frozen=True, kw_only=True)
class Built:
    """A text model that is ready to step."""

    runner: Runner
    limits: EngineLimits
    """With the size of the cache decided."""
    quantisation: Quantisation
    """Format of the weights."""
    kernels: str = ""
    """Variant of the compiled kernels that runs it; empty for plain PyTorch."""


def build_runner(folder: Path, command: Load, *, report: Report) -> Built:
    """Load a text model as a command asks.

    Raises:
        LlamaError: If the model cannot be read, or not be divided.
        ValueError: If the command asks for what this machine cannot do.
        RuntimeError: If another rank could not load its shard.
    """
    variant, reason = _choose_kernels(load_config(folder), command)
    quantisation = command.quantisation
    if quantisation == "auto":
        quantisation = "int8" if variant else "none"
    if variant and (quantisation in {"int8", "int4"}):
        form: Format = "int4" if quantisation == "int4" else "int8"
        return _native(folder, command, variant=variant, form=form, reason=reason, report=report)
    if command.tensor_parallel > 1:
        return _parallel(folder, command, quantisation)
    if torch.device(command.device).type == "cuda":
        return _cuda(folder, command, quantisation, report=report)
    return _plain(folder, command, quantisation, reason=reason)


def _choose_kernels(config: LlamaConfig, command: Load) -> tuple[str, str]:
    """The variant of the compiled kernels, or "", and the reason."""
    if not command.kernels:
        return "", "dtype is given"
    if command.tensor_parallel > 1:
        return "", "tensor_parallel runs on plain PyTorch"
    return native.choose(config, device=command.device, block_size=command.limits.block_size)


def _native(folder: Path, command: Load, *, variant: str, form: Format, reason: str, report: Report) -> Built:
    config = load_config(folder)
    limits = _with_cache(command, config, item_size=NATIVE_ITEM_SIZE)
    arrays = native.open_packed(folder, form=form, cache_dir=command.cache_dir, report=report)
    runner = NativeRunner(
        config,
        arrays,
        variant=variant,
        threads=command.threads,
        blocks=limits.blocks,
        block_size=limits.block_size,
    )
    logger.info(
        "model %s loaded runner=native kernels=%s (%s) quantisation=%s weight_bytes=%d",
        command.model, variant, reason, form, sum(array.nbytes for array in arrays.values()),
    )  # fmt: skip
    return Built(runner=runner, limits=limits, quantisation=form, kernels=variant)


def _plain(folder: Path, command: Load, quantisation: Quantisation, *, reason: str) -> Built:
    dtype: torch.dtype = getattr(torch, command.dtype)
    model = load_model(folder, dtype=dtype, device=command.device, quantisation=quantisation)
    weight_bytes = model.weight_bytes
    prepacked = can_prepack(model)
    if prepacked:
        prepack(model)
    limits = _with_cache(command, model.config, item_size=dtype.itemsize)
    logger.info(
        "model %s loaded runner=torch dtype=%s quantisation=%s prepacked=%s weight_bytes=%d (kernels: %s)",
        command.model, command.dtype, quantisation, prepacked, weight_bytes, reason,
    )  # fmt: skip
    runner = TorchRunner(model, blocks=limits.blocks, block_size=limits.block_size)
    return Built(runner=runner, limits=limits, quantisation=quantisation)


def _cuda(folder: Path, command: Load, quantisation: Quantisation, *, report: Report) -> Built:
    dtype: torch.dtype = getattr(torch, command.dtype)
    model = load_model(folder, dtype=dtype, device=command.device, quantisation=quantisation)
    limits = _with_cache(command, model.config, item_size=dtype.itemsize)
    logger.info(
        "model %s loaded runner=cuda dtype=%s quantisation=%s weight_bytes=%d",
        command.model, command.dtype, quantisation, model.weight_bytes,
    )  # fmt: skip
    attention = open_attention(
        model.config,
        block_size=limits.block_size,
        requests=limits.running_requests,
        dtype=dtype,
        device=model.embed.weight.device,
    )
    runner = CudaRunner(
        model,
        blocks=limits.blocks,
        block_size=limits.block_size,
        requests=limits.running_requests,
        attention=attention,
    )
    report("capturing decode steps")
    runner.warm_up()
    return Built(runner=runner, limits=limits, quantisation=quantisation)


def _parallel(folder: Path, command: Load, quantisation: Quantisation) -> Built:
    config, count = load_config(folder), command.tensor_parallel
    runner = TensorParallelRunner(
        folder,
        count=count,
        dtype=command.dtype,
        quantisation=quantisation,
        device=command.device,
        threads=command.threads,
    )
    weight_bytes = runner.load()
    if torch.device(command.device).type == "cuda":  # each rank has a GPU, and its part of the heads, for itself
        config = Shard(count=count).config(config)
    dtype: torch.dtype = getattr(torch, command.dtype)
    limits = _with_cache(command, config, item_size=dtype.itemsize)
    runner.allocate(blocks=limits.blocks, block_size=limits.block_size)
    logger.info(
        "model %s loaded runner=parallel dtype=%s quantisation=%s ranks=%d weight_bytes_per_rank=%d",
        command.model, command.dtype, quantisation, count, weight_bytes,
    )  # fmt: skip
    return Built(runner=runner, limits=limits, quantisation=quantisation)


def _with_cache(command: Load, config: LlamaConfig, *, item_size: int) -> EngineLimits:
    """The limits with as many cached tokens as fit, where none are given."""
    device = torch.device(command.device)
    tokens = command.limits.cached_tokens or fitting_tokens(config, item_size=item_size, device=device)
    return replace(command.limits, cached_tokens=tokens)

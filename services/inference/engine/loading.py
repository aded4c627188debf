"""Which runner serves a text model: one probe of what the machine offers, logged with its reason."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from services.inference.engine.commands import Load
from services.inference.engine.memory import fitting_tokens
from services.inference.engine.native import loading as native
from services.inference.engine.native.runner import NativeRunner
from services.inference.engine.prepacked import can_prepack, prepack
from services.inference.engine.runner import Runner, TorchRunner
from services.llama.checkpoint import load_config, load_model

logger = logging.getLogger(__name__)

NATIVE_ITEM_SIZE = 2  # the kernels keep keys and values in bf16


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What became of a model."""

    arithmetic: str
    """How its weights are kept, for example `int8` or `bfloat16`."""
    cached_tokens: int
    """Tokens that the key/value cache holds."""


def load_runner(command: Load, folder: Path, *, report: Callable[[str], None]) -> tuple[Runner, Facts]:
    """Load the weights of a prepared checkpoint in the way that suits the machine and the command.

    Raises:
        ValueError: If the command asks for what this machine cannot do.
        CheckpointError, ConfigError: If the checkpoint cannot be read.
    """
    config, limits = load_config(folder), command.limits
    variant, reason = native.choose(config, device=command.device, block_size=limits.block_size)
    quantisation = command.quantisation
    if quantisation == "auto":
        quantisation = "int8" if variant else "none"
    elif quantisation != "none" and not variant:
        raise ValueError(f"quantisation {quantisation} needs the compiled kernels: {reason}")
    if quantisation == "none":
        dtype: torch.dtype = getattr(torch, command.dtype)
        model = load_model(folder, dtype=dtype, device=command.device)
        prepacked = can_prepack(model)
        logger.info(
            "model %s runner=torch dtype=%s prepacked=%s (kernels: %s)",
            command.model, command.dtype, prepacked, variant or reason,
        )  # fmt: skip
        device = model.embed.weight.device
        if prepacked:
            prepack(model)
        tokens = limits.cached_tokens or fitting_tokens(config, item_size=dtype.itemsize, device=device)
        blocks = -(-tokens // limits.block_size)
        runner = TorchRunner(model, blocks=blocks, block_size=limits.block_size)
        return runner, Facts(arithmetic=command.dtype, cached_tokens=tokens)
    logger.info("model %s runner=native kernels=%s (%s) weights=%s", command.model, variant, reason, quantisation)
    tokens = limits.cached_tokens or fitting_tokens(
        config, item_size=NATIVE_ITEM_SIZE, device=torch.device(command.device)
    )
    arrays = native.open_packed(folder, form=quantisation, cache_dir=command.cache_dir, report=report)
    compiled = NativeRunner(
        config,
        arrays,
        variant=variant,
        threads=command.threads,
        blocks=-(-tokens // limits.block_size),
        block_size=limits.block_size,
    )
    return compiled, Facts(arithmetic=quantisation, cached_tokens=tokens)

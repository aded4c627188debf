"""From a prepared checkpoint to packed weights, which are made once and mapped afterwards."""

from collections.abc import Callable, Mapping
from pathlib import Path

from services.inference.engine.native import library, pack
from services.inference.engine.native.pack import Array, Format
from services.llama.checkpoint import load_model
from services.llama.checkpoint.build_once import build_once
from services.llama.checkpoint.identity import weights_hash
from services.llama.config import LlamaConfig


def choose(config: LlamaConfig, *, device: str, block_size: int) -> tuple[str, str]:
    """The variant of the kernels that is to run a model, or "" for plain PyTorch, and the reason."""
    if device != "cpu":
        return "", f"the kernels are for CPUs, the device is {device}"
    variant, reason = library.choose()
    if variant and (unsupported := pack.unsupported(config, block_size=block_size)):
        return "", unsupported
    return variant, reason


def open_packed(folder: Path, *, form: Format, cache_dir: Path, report: Callable[[str], None]) -> Mapping[str, Array]:
    """The packed weights of a prepared checkpoint, mapped from the cache.

    Raises:
        CheckpointError, ConfigError: If the checkpoint cannot be read.
        OSError: If the cache cannot be written.
    """
    name = weights_hash(folder, cache_dir=cache_dir).replace(":", "-")
    file = cache_dir / "packed" / f"{name}-{form}-v{pack.VERSION}"

    def build(partial: Path) -> None:
        report(f"packing the weights as {form} (once, then cached)")
        # As they are stored: 4-bit blocks lie on a grid that rounding to bf16 would leave.
        pack.pack(load_model(folder, dtype=None), form=form, file=partial)

    build_once(file, build)
    return pack.unpack(file)

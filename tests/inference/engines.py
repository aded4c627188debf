"""Engines in the test's own process."""

from pathlib import Path

from services.inference.engine.engine import Engine
from services.inference.engine.native import library, pack
from services.inference.engine.native.pack import Format
from services.inference.engine.native.runner import NativeRunner
from services.inference.engine.request import EngineLimits
from services.inference.engine.runner import TorchRunner
from services.llama.model import Llama
from services.llama.tokenizer import Tokenizer


def torch_engine(model: Llama, *, limits: EngineLimits, tokenizer: Tokenizer | None = None) -> Engine:
    """An engine on plain PyTorch."""
    runner = TorchRunner(model, blocks=limits.blocks, block_size=limits.block_size)
    return Engine(runner, limits=limits, tokenizer=tokenizer)


def native_runner(
    model: Llama, *, folder: Path, variant: str = "", form: Format = "int8", **options: int
) -> NativeRunner:
    """A model on compiled kernels, its packed weights in `folder`; the best variant unless one is named."""
    file = folder / form
    if not file.exists():
        pack.pack(model, form=form, file=file)
    sizes = {"threads": 2, "blocks": 64, "block_size": 16, **options}
    return NativeRunner(model.config, pack.unpack(file), variant=variant or library.choose()[0], **sizes)

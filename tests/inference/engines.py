"""Engines in the test's own process."""

from services.inference.engine.engine import Engine
from services.inference.engine.request import EngineLimits
from services.inference.engine.runner import TorchRunner
from services.llama.model import Llama
from services.llama.tokenizer import Tokenizer


def torch_engine(model: Llama, *, limits: EngineLimits, tokenizer: Tokenizer | None = None) -> Engine:
    """An engine on plain PyTorch."""
    runner = TorchRunner(model, blocks=limits.blocks, block_size=limits.block_size)
    return Engine(runner, limits=limits, tokenizer=tokenizer)

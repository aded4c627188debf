"""Engines in the test's own process."""

from pathlib import Path

from services.inference.engine.cuda.attention import PagedAttention
from services.inference.engine.cuda.engine import DeviceEngine
from services.inference.engine.cuda.probe import open_attention
from services.inference.engine.cuda.runner import CudaRunner
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


def cuda_runner(model: Llama, *, limits: EngineLimits, attention: PagedAttention | None = None) -> CudaRunner:
    """The GPU's runner on the model's device, with the attention that is chosen there unless one is given."""
    weights, requests = model.embed.weight, limits.running_requests
    chosen = attention or open_attention(
        model.config, block_size=limits.block_size, requests=requests, dtype=weights.dtype, device=weights.device
    )
    runner = CudaRunner(model, blocks=limits.blocks, block_size=limits.block_size, requests=requests, attention=chosen)
    runner.warm_up()
    return runner


def device_engine(
    model: Llama, *, limits: EngineLimits, tokenizer: Tokenizer | None = None, overlap: bool = True
) -> Engine:
    """An engine whose runner samples by itself."""
    return DeviceEngine(cuda_runner(model, limits=limits), limits=limits, tokenizer=tokenizer, overlap=overlap)


def native_runner(
    model: Llama, *, folder: Path, variant: str = "", form: Format = "int8", **options: int
) -> NativeRunner:
    """A model on compiled kernels, its packed weights in `folder`; the best variant unless one is named."""
    file = folder / form
    if not file.exists():
        pack.pack(model, form=form, file=file)
    sizes = {"threads": 2, "blocks": 64, "block_size": 16, **options}
    return NativeRunner(model.config, pack.unpack(file), variant=variant or library.choose()[0], **sizes)

"""The GPU runner: its answers beside fp32 on the CPU, its speed beside what the machine's memory and products reach.

Decoding reads weights, keys and values once per step, so its ceiling is bandwidth; a prompt's is matrix products. Both
ceilings are measured here, by a copy and by one large product. Weights of the 8B shape are random: speed does not
depend on them.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.measure import report, report_median
from services.inference.engine.cuda.drawing import UNREAD, Draw
from services.inference.engine.cuda.probe import open_attention
from services.inference.engine.cuda.runner import CudaRunner
from services.inference.engine.request import Sampling
from services.inference.engine.runner import Part, Runner, TorchRunner
from services.inference.packaged import find_packaged
from services.llama import checkpoint
from services.llama.config import PRESETS, LlamaConfig
from services.llama.model import Llama

BLOCK = 16
CONTEXT = 1024
STEPS = 64
ROUNDS = 5


def main() -> None:
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here")
        return
    device = torch.device("cuda")
    print(f"gpu: {torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    bandwidth, products = measure_bandwidth(device), measure_products(device)
    with tempfile.TemporaryDirectory() as cache:
        folder = checkpoint.prepare(find_packaged("smollm2-135m"), cache_dir=Path(cache))
        compare("SmolLM2-135M", checkpoint.load_model(folder, dtype=torch.float32, device="cpu"), device=device)
    shape = PRESETS["llama-3.1-8b"]
    few = Llama.seeded(dataclasses.replace(shape, n_layers=2), seed=1)
    compare("8B shape, 2 layers", few, device=device)
    del few
    measure(random_model(shape, device=device), bandwidth=bandwidth, products=products)


def seconds(run: Callable[[], object], *, device: torch.device) -> float:
    """Wall time of what `run` makes the device do."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_bandwidth(device: torch.device, *, size: int = 4 * 2**30) -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = max(2 * size / seconds(lambda: target.copy_(source), device=device) for _ in range(10))
    report("gpu copy", best / 1e9, "GB/s")
    return best


def measure_products(device: torch.device, *, width: int = 8192) -> float:
    """Operations per second of one large bf16 product."""
    left = torch.randn((width, width), device=device).bfloat16()
    left @ left
    best = max(2 * width**3 / seconds(lambda: left @ left, device=device) for _ in range(10))
    report("gpu bf16 products", best / 1e12, "TFLOP/s")
    return best


def random_model(config: LlamaConfig, *, device: torch.device) -> Llama:
    with torch.device("meta"):
        model = Llama(config)
    model = model.to(torch.bfloat16).to_empty(device=device)
    model.reset_rope(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, config.dim**-0.5)
    return model.eval().requires_grad_(requires_grad=False)


def runner_of(model: Llama, *, tokens: int, requests: int) -> CudaRunner:
    weights = model.embed.weight
    attention = open_attention(
        model.config, block_size=BLOCK, requests=requests, dtype=weights.dtype, device=weights.device
    )
    runner = CudaRunner(model, blocks=tokens // BLOCK, block_size=BLOCK, requests=requests, attention=attention)
    runner.warm_up()
    return runner


def compare(name: str, exact: Llama, *, device: torch.device, prompt: int = 256, decoded: int = 32) -> None:
    """Divergence of bf16 on the device from fp32 on the CPU, on the same random tokens."""
    source = torch.Generator().manual_seed(1)
    ids = torch.randint(exact.config.vocab_size, (prompt + decoded,), generator=source).tolist()
    blocks = -(-len(ids) // BLOCK)
    steps = [[_part(ids, 0, prompt, blocks)]]
    steps += [[_part(ids, place, place + 1, blocks)] for place in range(prompt, len(ids))]
    expected = _logits(TorchRunner(exact, blocks=blocks, block_size=BLOCK), steps)
    copy = exact.to(device, torch.bfloat16)
    answered = _logits(runner_of(copy, tokens=blocks * BLOCK, requests=4), steps)
    divergences = (expected.softmax(-1) * (expected.log_softmax(-1) - answered.log_softmax(-1))).sum(-1)
    report(f"gpu KL after a prompt, {name}", float(divergences[0]), "nats")
    report(f"gpu KL while decoding, {name}", float(divergences[1:].mean()), "nats")
    report(f"gpu top-1, {name}", float((expected.argmax(-1) == answered.argmax(-1)).float().mean()), "share")


def measure(
    model: Llama,
    *,
    bandwidth: float,
    products: float,
    batches: Sequence[int] = (1, 16, 64),
    prompt: int = 4096,
    context: int = CONTEXT,
) -> None:
    """Decode and prefill rates, and their shares of the ceilings."""
    config, weights = model.config, model.embed.weight
    room = context + STEPS * (ROUNDS + 1)
    blocks = -(-room // BLOCK)
    runner = runner_of(model, tokens=max(max(batches) * blocks * BLOCK, prompt), requests=max(batches))
    head = 0 if config.tied_head else weights.numel()
    linear = sum(parameter.numel() for parameter in model.layers.parameters())
    for batch in batches:
        times = decode_seconds(runner, batch=batch, blocks=blocks, context=context, device=weights.device)
        read = (linear + (head or weights.numel())) * weights.itemsize
        read += batch * context * 2 * config.n_layers * config.n_kv_heads * config.head_dim * weights.itemsize
        share = read / min(times) / bandwidth
        note = f"{share:.0%} of the measured bandwidth"
        report_median(
            f"gpu decode, batch {batch}, context {context}", [batch / t for t in times], "tokens/s", note=note
        )
    ids = list(range(prompt))
    whole = Part(token_ids=ids, start=0, blocks=range(-(-prompt // BLOCK)), logits=True)
    runner.forward([whole])
    times = [seconds(lambda: runner.forward([whole]), device=weights.device) for _ in range(ROUNDS)]
    work = 2 * linear * prompt + 2 * config.n_layers * config.n_heads * config.head_dim * prompt**2
    note = f"{work / min(times) / products:.0%} of the measured products"
    report_median(f"gpu prefill, {prompt} tokens", [prompt / t for t in times], "tokens/s", note=note)


def decode_seconds(runner: CudaRunner, *, batch: int, blocks: int, context: int, device: torch.device) -> list[float]:
    """Seconds per step, of several runs of `STEPS` steps; the tokens stay on the device, as in overlapped steps."""

    def launch(number: int, token: int) -> None:
        parts = [
            Part(
                token_ids=[token],
                start=context + number,
                blocks=range(row * blocks, (row + 1) * blocks),
                logits=True,
            )
            for row in range(batch)
        ]
        draws = [
            Draw(request_id=str(row), sampling=Sampling(), prompt_ids=(), seed=row, number=number)
            for row in range(batch)
        ]
        runner.launch(parts, draws)

    launch(0, 1)

    def steps(first: int) -> None:
        for number in range(first, first + STEPS):
            launch(number, UNREAD)

    return [seconds(lambda: steps(1 + STEPS * turn), device=device) / STEPS for turn in range(ROUNDS)]  # noqa: B023


def _part(ids: Sequence[int], start: int, end: int, blocks: int) -> Part:
    return Part(token_ids=ids[start:end], start=start, blocks=range(blocks), logits=True)


def _logits(runner: Runner, steps: Sequence[Sequence[Part]]) -> torch.Tensor:
    return torch.cat([runner.forward(parts) for parts in steps])

"""The GPU's runner, on whatever device there is: steps of fixed sizes answer as plain PyTorch does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from services.inference.engine.commands import Load
from services.inference.engine.cuda.drawing import UNREAD, Draw, DrawingRunner
from services.inference.engine.cuda.engine import DeviceEngine
from services.inference.engine.cuda.runner import CudaRunner, padded_sizes
from services.inference.engine.engine import Engine
from services.inference.engine.loading import _cuda
from services.inference.engine.request import EngineLimits, Request, Sampling
from services.inference.engine.runner import Part, TorchRunner
from services.llama.checkpoint import load_model
from services.llama.config import PRESETS, Quantisation
from services.llama.model import Llama
from tests.inference.adapters import random_adapter
from tests.inference.engines import cuda_runner, torch_engine
from tests.inference.test_parallel import saved

CONFIG = PRESETS["tiny"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMITS = EngineLimits(cached_tokens=4096, running_requests=20)


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama.seeded(CONFIG, seed=1).to(DEVICE)


class PlainLoop:
    """Only what `Runner` asks for, so that the engine samples on the host."""

    def __init__(self, runner: CudaRunner) -> None:
        self.config, self.forward = runner.config, runner.forward
        self.close = runner.close
        self.load_adapter, self.unload_adapter = runner.load_adapter, runner.unload_adapter


def request(index: int, **options: Any) -> Request:
    prompt = tuple((7 * index + 3 * j) % CONFIG.vocab_size for j in range(1 + 5 * index % 37))
    return Request(request_id=f"r{index}", prompt_ids=prompt, max_tokens=4 + index % 7, **options)


def drain(engine: Engine, *requests: Request) -> dict[str, list[int]]:
    for item in requests:
        engine.add(item)
    tokens: dict[str, list[int]] = {}
    while not engine.idle:
        for emission in engine.step():
            tokens.setdefault(emission.request_id, []).append(emission.token_id)
    return tokens


def test_sizes_are_dense_where_batches_are_small_and_end_at_the_limit() -> None:
    assert padded_sizes(1) == [1]
    assert padded_sizes(3) == [1, 2, 3]
    assert padded_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert padded_sizes(4096)[-3:] == [480, 496, 512]
    assert all(size % 8 == 0 for size in padded_sizes(300)[3:-1])


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 9, 16, 17, 20])
def test_batches_of_every_size_get_the_tokens_of_the_plain_runner(model: Llama, batch: int) -> None:
    requests = [request(index) for index in range(batch)]
    engine = Engine(PlainLoop(cuda_runner(model, limits=LIMITS)), limits=LIMITS)
    assert drain(engine, *requests) == drain(torch_engine(model, limits=LIMITS), *requests)


def test_requests_that_join_and_leave_change_nothing_for_the_others(model: Llama) -> None:
    alone = {f"r{n}": drain(torch_engine(model, limits=LIMITS), request(n))[f"r{n}"] for n in range(12)}
    engine = Engine(PlainLoop(cuda_runner(model, limits=LIMITS)), limits=LIMITS)
    tokens: dict[str, list[int]] = {}
    for n in range(12):
        engine.add(request(n))
        for emission in engine.step():
            tokens.setdefault(emission.request_id, []).append(emission.token_id)
    for name, rest in drain(engine).items():
        tokens.setdefault(name, []).extend(rest)
    assert tokens == alone


def test_logits_are_those_of_the_plain_runner_for_any_mix_of_rows(model: Llama) -> None:
    steps = [
        [part(0, 30, 0), part(0, 1, 5)],
        [part(1, 2, 5), part(30, 31, 0), part(0, 20, 10, logits=False)],
        [part(20, 21, 10, logits=False), part(2, 3, 5)],
        [part(31, 33, 0), part(21, 22, 10), part(3, 4, 5, logits=False)],
    ]
    plain, runner = TorchRunner(model, blocks=256, block_size=16), cuda_runner(model, limits=LIMITS)
    for parts in steps:
        torch.testing.assert_close(runner.forward(parts), plain.forward(parts), atol=2e-5, rtol=1e-4)


def part(start: int, end: int, first_block: int, *, logits: bool = True, adapter: str = "") -> Part:
    ids = [(11 * j + first_block) % CONFIG.vocab_size for j in range(start, end)]
    return Part(token_ids=ids, start=start, blocks=range(first_block, first_block + 4), logits=logits, adapter=adapter)


def test_logits_of_a_step_outlast_the_next_one(model: Llama) -> None:
    runner = cuda_runner(model, limits=LIMITS)
    first = runner.forward([part(0, 1, 3)])
    kept = first.clone()
    runner.forward([part(0, 1, 5)])
    assert torch.equal(first, kept)


def test_padded_rows_write_to_no_block_that_requests_are_given(model: Llama) -> None:
    runner = cuda_runner(model, limits=LIMITS)
    before = [cache.clone() for cache in runner._caches]
    runner.forward([part(0, 1, 3), part(0, 1, 7), part(0, 1, 9)])  # padded to four rows
    for cache, old in zip(runner._caches, before, strict=True):
        changed = (cache != old).flatten(2).any(-1).any(0).nonzero().flatten().tolist()
        assert changed == [3, 7, 9, LIMITS.blocks]


@pytest.mark.parametrize("quantisation", ["none", "int8", "fp8"])
def test_a_model_that_is_loaded_for_a_gpu_steps_by_itself(tmp_path: Path, quantisation: Quantisation) -> None:
    saved(tmp_path / "m", CONFIG)
    command = Load(
        model="m",
        kind="llm",
        path=tmp_path / "m",
        cache_dir=tmp_path,
        dtype="float32",
        quantisation=quantisation,
        device="cpu",
        threads=1,
        limits=EngineLimits(cached_tokens=512, running_requests=4),
    )
    built = _cuda(tmp_path / "m", command, quantisation, report=lambda _: None)
    assert isinstance(built.runner, DrawingRunner)
    engine = DeviceEngine(built.runner, limits=built.limits)
    plain = load_model(tmp_path / "m", dtype=torch.float32, quantisation=quantisation)
    requests = [request(index) for index in range(5)]
    assert drain(engine, *requests) == drain(torch_engine(plain, limits=built.limits), *requests)
    assert not isinstance(TorchRunner(plain, blocks=1, block_size=16), DrawingRunner)


def test_steps_with_adapters_run_as_they_come(model: Llama) -> None:
    adapter = random_adapter(CONFIG, seed=1)
    plain, runner = (
        TorchRunner(model, blocks=256, block_size=16),
        cuda_runner(Llama.seeded(CONFIG, seed=1).to(DEVICE), limits=LIMITS),
    )
    expected = plain.forward([part(0, 9, 0), part(0, 1, 5)])
    for each in (plain, runner):
        each.load_adapter("a", adapter)
    steps = [[part(0, 9, 0, adapter="a"), part(0, 1, 5)], [part(9, 10, 0, adapter="a"), part(1, 2, 5)]]
    for parts in steps:
        torch.testing.assert_close(runner.forward(parts), plain.forward(parts), atol=2e-5, rtol=1e-4)
    runner.unload_adapter("a")
    plain.unload_adapter("a")
    torch.testing.assert_close(runner.forward([part(0, 9, 0), part(0, 1, 5)]), expected, atol=2e-5, rtol=1e-4)


def test_tokens_that_the_host_has_not_read_are_fed_from_where_they_were_drawn(model: Llama) -> None:
    def draws(number: int) -> list[Draw]:
        return [
            Draw(request_id=str(n), sampling=Sampling(temperature=1.0), prompt_ids=(), seed=n, number=number)
            for n in range(3)
        ]

    def answers(*, read: bool) -> list[list[int]]:
        runner = cuda_runner(model, limits=LIMITS)
        assert isinstance(runner, DrawingRunner)
        drawn = runner.launch([part(0, 9, 0), part(0, 5, 5), part(0, 1, 10)], draws(0))
        tokens = [[choice.token_id for choice in drawn.read()]]
        for number in range(1, 6):
            parts = [
                Part(
                    token_ids=[tokens[-1][n] if read else UNREAD],
                    start=start + number - 1,
                    blocks=range(first, first + 4),
                    logits=True,
                )
                for n, (start, first) in enumerate(((9, 0), (5, 5), (1, 10)))
            ]
            tokens.append([choice.token_id for choice in runner.launch(parts, draws(number)).read()])
        return tokens

    assert answers(read=False) == answers(read=True)


def test_the_kernels_serve_whole_requests(model: Llama) -> None:
    pytest.importorskip("triton")
    from services.inference.engine.cuda.triton_attention import TritonAttention  # noqa: PLC0415 - optional

    requests: Sequence[Request] = [request(index) for index in range(3)]
    engine = Engine(
        PlainLoop(cuda_runner(model, limits=LIMITS, attention=TritonAttention(processors=4))), limits=LIMITS
    )
    assert drain(engine, *requests) == drain(torch_engine(model, limits=LIMITS), *requests)

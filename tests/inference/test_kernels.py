"""The compiled kernels against plain PyTorch; and that a row's result depends on nothing but its own request."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.inference.engine.engine import Engine
from services.inference.engine.native import build, library, loading, pack
from services.inference.engine.native.pack import Format
from services.inference.engine.native.runner import NativeRunner
from services.inference.engine.request import EngineLimits, Request, Sampling
from services.inference.engine.runner import Part, Runner, TorchRunner
from services.inference.packaged import find_packaged
from services.llama import checkpoint
from services.llama.config import PRESETS
from services.llama.model import CausalAttention, Llama
from tests.inference.adapters import merged, random_adapter
from tests.inference.engines import native_runner

CONFIG = PRESETS["tiny"]
IDS = [(7 * j + j * j) % CONFIG.vocab_size for j in range(300)]
ABLE = [variant for variant, (needs, _) in build.VARIANTS.items() if needs <= library.cpu_flags()]

pytestmark = pytest.mark.skipif(not library.choose()[0], reason=f"no compiled kernels here: {library.choose()[1]}")


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama.seeded(CONFIG, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


def part(start: int, end: int, *, first_block: int = 0, ids: Sequence[int] = IDS, adapter: str = "") -> Part:
    blocks = range(first_block, first_block + 20)
    return Part(token_ids=ids[start:end], start=start, blocks=blocks, logits=True, adapter=adapter)


def divergence(reference_RV: Tensor, other_RV: Tensor) -> float:
    """Mean KL of the rows, in nats."""
    pairs = reference_RV.log_softmax(-1), other_RV.log_softmax(-1)
    return float((pairs[0].exp() * (pairs[0] - pairs[1])).sum(-1).mean())


def test_every_instruction_set_of_this_cpu_was_built() -> None:
    assert [variant for variant in ABLE if not build.library_path(variant).exists()] == []


@pytest.mark.parametrize("variant", ABLE)
@pytest.mark.parametrize(("form", "most"), [("int8", 0.002), ("int4", 0.15)])
def test_kernels_agree_with_plain_pytorch_to_what_quantising_costs(
    model: Llama, folder: Path, variant: str, form: Format, most: float
) -> None:
    steps = [[part(0, 130)], [part(130, 131)], [part(131, 300)]]
    reference: Runner = TorchRunner(model, blocks=64, block_size=16)
    runner = native_runner(model, folder=folder, variant=variant, form=form)
    expected = torch.cat([reference.forward(parts) for parts in steps])
    assert divergence(expected, torch.cat([runner.forward(parts) for parts in steps])) < most


@pytest.mark.parametrize("variant", ABLE)
def test_kernels_do_the_arithmetic_that_the_packing_means(model: Llama, folder: Path, variant: str) -> None:
    """Against PyTorch with every product replaced by what rotated 8-bit rows and weights come to."""

    def replaced(linear: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        weight_NK = linear.weight
        assert isinstance(weight_NK, Tensor)
        return lambda x_TK: _rounded(x_TK) @ _rounded(weight_NK).t()

    exact = Llama.seeded(CONFIG, seed=1)
    for module in exact.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = replaced(module)  # type: ignore[method-assign, assignment]
    ids = torch.tensor(IDS)
    expected = exact(ids, positions_T=torch.arange(len(IDS)), attend=CausalAttention(), rows_R=torch.tensor([299]))
    runner = native_runner(model, folder=folder, variant=variant)
    # What is left is rounding keys, values and the embedding to bf16.
    assert divergence(expected, runner.forward([part(0, 300)])) < 0.001


@pytest.mark.parametrize("variant", ABLE)
@pytest.mark.parametrize("form", ["int8", "int4"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_gets_the_same_bits_however_its_request_is_cut_and_whoever_is_beside_it(
    model: Llama, folder: Path, variant: str, form: Format, data: st.DataObject
) -> None:
    runner = native_runner(model, folder=folder, variant=variant, form=form, threads=data.draw(st.integers(1, 3)))
    alone = runner.forward([part(0, 200)])
    other = native_runner(model, folder=folder, variant=variant, form=form, blocks=128)
    cuts = sorted(data.draw(st.sets(st.integers(1, 199), max_size=6)))
    mate_ids = [(3 * j + 5) % CONFIG.vocab_size for j in range(300)]
    for start, end in zip([0, *cuts], [*cuts, 200], strict=True):
        parts = [part(start, end)]
        if data.draw(st.booleans()):
            mate = part(0, data.draw(st.integers(1, 120)), first_block=40, ids=mate_ids)
            parts.insert(data.draw(st.integers(0, 1)), mate)
        logits = other.forward(parts)[[item.token_ids[-1] == IDS[end - 1] and item.start == start for item in parts]]
    assert torch.equal(logits[0], alone[0])


@pytest.mark.parametrize("variant", ABLE)
def test_a_long_context_shared_out_to_threads_gives_the_bits_of_one_read_as_a_prompt(
    model: Llama, folder: Path, variant: str
) -> None:
    ids = [(11 * j + j * j // 7) % CONFIG.vocab_size for j in range(2100)]
    reference = TorchRunner(model, blocks=140, block_size=16)

    def run(runner: Runner, cut: int) -> Tensor:
        blocks = range(135)
        steps = [(0, cut), *((at, at + 1) for at in range(cut, len(ids)))]
        parts = [Part(token_ids=ids[a:b], start=a, blocks=blocks, logits=True) for a, b in steps]
        return torch.cat([runner.forward([item]) for item in parts])[-1:]

    whole = run(native_runner(model, folder=folder, variant=variant, blocks=140), len(ids))
    for threads in (1, 2, 3):  # few rows: the segments of each are shared out
        runner = native_runner(model, folder=folder, variant=variant, blocks=140, threads=threads)
        assert torch.equal(run(runner, 2040), whole)
    assert divergence(run(reference, len(ids)), whole) < 0.002


@pytest.mark.parametrize("variant", ABLE)
def test_adapters_of_several_requests_and_the_base_share_a_step(model: Llama, folder: Path, variant: str) -> None:
    one = random_adapter(CONFIG, seed=1)
    two = random_adapter(CONFIG, seed=2, rank=7, targets=("attention.q", "ffn.up"))
    runner = native_runner(model, folder=folder, variant=variant)
    runner.load_adapter("one", one)
    runner.load_adapter("two", two)
    names = ("", "one", "two")
    together = [part(0, 60 + n, first_block=20 * n, adapter=name) for n, name in enumerate(names)]
    logits = runner.forward(together)
    for n, reference in enumerate((model, merged(model, one), merged(model, two))):
        alone = TorchRunner(reference, blocks=64, block_size=16).forward([part(0, 60 + n)])
        assert divergence(alone, logits[n : n + 1]) < 0.01
        # Beside others a row has the bits that it has alone.
        assert torch.equal(runner.forward([part(0, 60 + n, adapter=names[n])])[0], logits[n])
    assert divergence(logits[:1], logits[1:2]) > 0.1
    runner.unload_adapter("one")
    assert torch.equal(runner.forward([part(0, 60)])[0], logits[0])


def test_engines_on_kernels_repeat_every_token_when_batched_cached_and_preempted(model: Llama, folder: Path) -> None:
    def engine(cached_tokens: int) -> Engine:
        limits = EngineLimits(cached_tokens=cached_tokens, step_tokens=48)
        return Engine(native_runner(model, folder=folder, blocks=limits.blocks), limits=limits)

    requests = [
        Request(
            request_id=str(n),
            prompt_ids=(*IDS[:40], *(n + j for j in range(n))),
            max_tokens=30,
            sampling=Sampling(temperature=0.0 if n % 2 else 1.0, seed=n),
        )
        for n in range(6)
    ]
    alone = {request.request_id: _run(engine(2048), [request])[request.request_id] for request in requests}
    roomy, tight = engine(2048), engine(192)
    assert _run(roomy, requests) == alone
    assert _run(roomy, requests) == alone  # now from the prefix cache
    assert _run(tight, requests) == alone
    assert tight.scheduler.preemptions > 0


def test_the_real_model_stays_within_a_hundredth_of_bf16(tmp_path: Path) -> None:
    prepared = checkpoint.prepare(find_packaged("smollm2-135m"), cache_dir=tmp_path)
    text = Path(checkpoint.__file__).read_text()
    ids = checkpoint.load_text(prepared).tokenizer.encode(text)[:400]
    bf16 = checkpoint.load_model(prepared, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = bf16(torch.tensor(ids), positions_T=torch.arange(len(ids)), attend=CausalAttention())
    for form in ("int8", "int4"):
        arrays = loading.open_packed(prepared, form=form, cache_dir=tmp_path, report=print)
        variant = library.choose()[0]
        runner = NativeRunner(bf16.config, arrays, variant=variant, threads=2, blocks=64, block_size=16)
        rows = [runner.forward([part(at, at + 1, ids=ids, first_block=0)]) for at in range(300)]
        assert divergence(expected[:300], torch.cat(rows)) < 0.01


def test_packed_weights_are_made_once(tmp_path: Path) -> None:
    prepared = checkpoint.prepare(find_packaged("smollm2-135m"), cache_dir=tmp_path)
    said: list[str] = []
    loading.open_packed(prepared, form="int8", cache_dir=tmp_path, report=said.append)
    [file] = (tmp_path / "packed").glob(f"*-int8-v{pack.VERSION}")
    before = file.stat()
    loading.open_packed(prepared, form="int8", cache_dir=tmp_path, report=said.append)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(said) == 1


def test_shapes_that_the_kernels_cannot_run_are_named() -> None:
    assert pack.unsupported(CONFIG, block_size=16) == ""
    assert pack.unsupported(CONFIG, block_size=8) == "block_size is 8, no multiple of 16"
    assert loading.choose(CONFIG, device="cuda", block_size=16)[0] == ""


def test_without_a_compiler_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in build.SOURCES.iterdir():
        if source.suffix in {".h", ".cpp"}:
            shutil.copy(source, tmp_path)
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)
    assert "there is no C++ compiler" in build.build()
    monkeypatch.setenv("CXX", "/bin/false")
    assert "/bin/false failed" in build.build()
    assert list(tmp_path.glob("kernels*")) == []


def _rounded(x_TK: Tensor) -> Tensor:
    """Rows after rotation and rounding to 8 bits."""
    rotated_TK = (x_TK.view(len(x_TK), -1, pack.BLOCK) @ pack.hadamard(pack.BLOCK)).flatten(1)
    scale_T1 = rotated_TK.abs().amax(-1, keepdim=True) / 127
    return (rotated_TK / scale_T1).round() * scale_T1


def _run(engine: Engine, requests: list[Request]) -> dict[str, list[int]]:
    for request in requests:
        engine.add(request)
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while not engine.idle:
        for emission in engine.step():
            answers[emission.request_id].append(emission.token_id)
        engine.scheduler.check_integrity()
    return answers

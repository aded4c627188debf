"""Which attention a device gets, from plain facts about it."""

from dataclasses import replace

import pytest
import torch

from services.inference.engine.cuda.probe import (
    MODULES,
    Capabilities,
    Choice,
    capabilities,
    choose_attention,
)
from services.inference.engine.memory import gpu_tokens
from services.llama.config import PRESETS

HOPPER = Capabilities(gpu=True, compute=(9, 0), processors=132, modules=frozenset(MODULES))
CONFIG = replace(PRESETS["tiny"], head_dim=64)


def choose(
    able: Capabilities = HOPPER, *, block_size: int = 16, dtype: torch.dtype = torch.bfloat16, head_dim: int = 64
) -> Choice:
    return choose_attention(able, replace(CONFIG, head_dim=head_dim), block_size=block_size, dtype=dtype)


def only(*modules: str, compute: tuple[int, int] = (9, 0)) -> Capabilities:
    return replace(HOPPER, modules=frozenset(modules), compute=compute)


def test_flashinfer_is_the_first_choice() -> None:
    assert choose() == Choice(kind="flashinfer", reason="first choice")


def test_flash_attention_is_taken_where_its_large_blocks_are_configured() -> None:
    assert choose(only("flash_attn", "triton"), block_size=256).kind == "flash_attn"
    choice = choose(only("flash_attn", "triton"), block_size=16)
    assert choice.kind == "triton"
    assert choice.reason == "flashinfer: not installed; flash_attn: 16 tokens per block are no multiple of 256"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": torch.float32}, "flashinfer: no torch.float32"),
        ({"head_dim": 48}, "flashinfer: no head size 48"),
    ],
)
def test_our_kernels_serve_what_the_libraries_do_not(options: dict[str, int], reason: str) -> None:
    choice = choose(**options)  # type: ignore[arg-type]
    assert choice.kind == "triton"
    assert reason in choice.reason


def test_an_old_gpu_gets_the_kernels_in_fp16_and_gathered_attention_in_bf16() -> None:
    turing = replace(HOPPER, compute=(7, 5))
    assert choose(turing, dtype=torch.float16).kind == "triton"
    choice = choose(turing)
    assert choice.kind == "gathered"
    assert "triton: compute capability 7.5 is below 8.0 for torch.bfloat16" in choice.reason


def test_without_libraries_a_gpu_gathers_its_blocks() -> None:
    choice = choose(only())
    assert choice.kind == "gathered"
    assert choice.reason == "flashinfer: not installed; flash_attn: not installed; triton: not installed"


def test_a_cpu_gathers_its_blocks() -> None:
    able = capabilities(torch.device("cpu"))
    assert not able.gpu
    assert choose(able) == Choice(kind="gathered", reason="no GPU")


def test_the_cache_gets_what_is_left_of_nine_tenths_of_a_gpu() -> None:
    giga = 2**30
    # Of 100: 20 are taken, 2 stay for work and 10 are not touched.
    assert gpu_tokens(80 * giga, 100 * giga, bytes_per_token=giga) == 68
    assert gpu_tokens(1 * giga, 100 * giga, bytes_per_token=giga) == 1

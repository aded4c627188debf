"""Prepacked bf16 weights change the time, not the numbers."""

import pytest
import torch

from services.inference.engine.prepacked import PrepackedLinear, can_prepack, prepack
from services.inference.engine.runner import Part, TorchRunner
from services.llama.config import PRESETS
from services.llama.model import Llama
from tests.inference.adapters import random_adapter


def bf16() -> Llama:
    return Llama.seeded(PRESETS["tiny"], seed=1).to(torch.bfloat16)


pytestmark = pytest.mark.skipif(not can_prepack(bf16()), reason="this CPU does not multiply bf16")


@pytest.mark.parametrize("rows", [1, 3, 16, 200])
def test_the_product_is_that_of_the_plain_linear(rows: int) -> None:
    linear = torch.nn.Linear(192, 320, bias=False, dtype=torch.bfloat16)
    x = torch.randn(rows, 192, dtype=torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(PrepackedLinear(linear.weight)(x), linear(x), rtol=0.01, atol=0.01)


def test_a_prepacked_model_answers_like_the_plain_one_with_and_without_adapters() -> None:
    plain, packed = bf16(), bf16()
    prepack(packed)
    assert not any(type(module) is torch.nn.Linear for module in packed.modules())
    runners = [TorchRunner(model, blocks=8, block_size=16) for model in (plain, packed)]
    for runner in runners:
        runner.load_adapter("one", random_adapter(plain.config, seed=1))
    for adapter in ("", "one"):
        part = Part(token_ids=list(range(50)), start=0, blocks=range(4), adapter=adapter, logits=True)
        one, other = (runner.forward([part]) for runner in runners)
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.1)


def test_models_in_fp32_are_left_alone() -> None:
    assert not can_prepack(Llama.seeded(PRESETS["tiny"], seed=1))

"""The quality benchmark measures what it says: the same runner is at distance zero, on both paths."""

import math

import pytest
import torch

from benchmarks.quality import BLOCK, CHUNK, DECODED, blocks_for, compare, teacher_forced
from services.inference.engine.runner import TorchRunner
from services.llama.config import PRESETS
from services.llama.model import CausalAttention, Llama

TEXTS = [[(7 * i + step) % 512 for i in range(200)] for step in (1, 5)]


def test_both_paths_give_the_logits_of_the_whole_text() -> None:
    model = Llama.seeded(PRESETS["tiny"], seed=1)
    wholes = [model(torch.tensor(ids), positions_T=torch.arange(200), attend=CausalAttention()) for ids in TEXTS]
    runner = TorchRunner(model, blocks=blocks_for(TEXTS), block_size=BLOCK)
    first_measured = {"prefill": CHUNK, "decode": 200 - DECODED + 1}
    for path, step in (("prefill", CHUNK), ("decode", 1)):
        measured = teacher_forced(runner, TEXTS, path="prefill" if path == "prefill" else "decode")
        for ids, whole_TV, (logits_TV, following_T) in zip(TEXTS, wholes, measured, strict=True):
            ends = range(first_measured[path], 200, step)
            assert following_T.tolist() == [ids[end] for end in ends]
            torch.testing.assert_close(logits_TV, whole_TV[[end - 1 for end in ends]], rtol=0, atol=1e-4)
            same = compare(whole_TV[[end - 1 for end in ends]], logits_TV, following_T)
            assert abs(same.mean_kl) < 1e-5
            assert same.top1 == 1
            assert abs(same.perplexity) < 1e-4


def test_distance_is_the_divergence_from_the_reference() -> None:
    reference_TV = torch.tensor([[0.5, 0.5]]).log()
    other_TV = torch.tensor([[0.25, 0.75]]).log()
    quality = compare(reference_TV, other_TV, torch.tensor([0]))
    assert quality.mean_kl == pytest.approx(0.5 * math.log(4 / 3))
    assert quality.perplexity == pytest.approx(1)

"""Letters: T tokens of the step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from services.llama.config import PRESETS
from services.llama.model import CausalAttention, Llama
from services.llama.rope import inverse_frequencies

TINY = PRESETS["tiny"]
VARIANTS = {
    "grouped": TINY,
    "tied": replace(TINY, tied_head=True),
    "one kv head": replace(TINY, n_kv_heads=1),
    "all kv heads": replace(TINY, n_kv_heads=4),
    "wide heads": replace(TINY, head_dim=32),
    "unscaled": replace(TINY, rope_scaling=None),
}


def _ids(count: int, *, seed: int = 0) -> Tensor:
    return torch.randint(TINY.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def _whole(model: Llama, ids_T: Tensor) -> Tensor:
    logits: Tensor = model(ids_T, positions_T=torch.arange(len(ids_T)), attend=CausalAttention())
    return logits


@pytest.mark.parametrize("name", VARIANTS)
def test_token_by_token_with_a_cache_equals_the_whole(name: str, cached_attention: Callable[[], Any]) -> None:
    model, ids_T = Llama.seeded(VARIANTS[name], 1), _ids(24)
    attend = cached_attention()
    steps = []
    for position, token in enumerate(ids_T):
        attend.rows = [(0, 1)]
        steps.append(model(token[None], positions_T=torch.tensor([position]), attend=attend))
    torch.testing.assert_close(torch.cat(steps), _whole(model, ids_T), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_batched_rows_of_several_requests_equal_single_ones(name: str, cached_attention: Callable[[], Any]) -> None:
    model = Llama.seeded(VARIANTS[name], 2)
    requests = [_ids(count, seed=count) for count in (7, 1, 12)]
    attend = cached_attention()
    attend.rows = [(number, len(ids)) for number, ids in enumerate(requests)]
    positions_T = torch.cat([torch.arange(len(ids)) for ids in requests])
    together = model(torch.cat(requests), positions_T=positions_T, attend=attend)
    alone = torch.cat([_whole(model, ids) for ids in requests])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_prompt_in_chunks_beside_a_decoding_request_equals_the_whole(cached_attention: Callable[[], Any]) -> None:
    model, prompt, other = Llama.seeded(TINY, 3), _ids(20), _ids(3, seed=9)
    attend = cached_attention()
    got = []
    for number, (start, end) in enumerate([(0, 8), (8, 9), (9, 20)]):
        attend.rows = [(0, end - start), (1, 1)]
        ids = torch.cat([prompt[start:end], other[number : number + 1]])
        positions = torch.tensor([*range(start, end), number])
        got.append(model(ids, positions_T=positions, attend=attend)[:-1])
    torch.testing.assert_close(torch.cat(got), _whole(model, prompt), atol=1e-5, rtol=0)


def test_only_the_rows_asked_for_get_logits() -> None:
    model, ids = Llama.seeded(TINY, 4), _ids(10)
    rows = torch.tensor([9, 2])
    some = model(ids, positions_T=torch.arange(10), attend=CausalAttention(), rows_R=rows)
    torch.testing.assert_close(some, _whole(model, ids)[rows], atol=1e-6, rtol=0)


def test_bf16_model_gives_fp32_logits_close_to_fp32_and_keeps_its_frequencies() -> None:
    exact, half = Llama.seeded(TINY, 5), Llama.seeded(TINY, 5).to(torch.bfloat16)
    ids = _ids(16)
    logits = _whole(half, ids)
    assert logits.dtype == torch.float32
    assert half.freq_F.dtype == torch.float32
    assert torch.equal(half.freq_F, exact.freq_F)
    assert (logits - _whole(exact, ids)).abs().mean() < 0.05


def test_seeded_models_are_equal_for_equal_seeds_only() -> None:
    ids = _ids(5)
    assert torch.equal(_whole(Llama.seeded(TINY, 6), ids), _whole(Llama.seeded(TINY, 6), ids))
    assert not torch.equal(_whole(Llama.seeded(TINY, 6), ids), _whole(Llama.seeded(TINY, 7), ids))


def test_tied_head_is_the_embedding_table() -> None:
    model = Llama.seeded(VARIANTS["tied"], 8)
    assert model.head_weight is model.embed.weight
    assert not any(name.startswith("head") for name in model.state_dict())


def test_the_largest_model_builds_on_meta_without_memory() -> None:
    with torch.device("meta"):
        model = Llama(PRESETS["llama-3.1-405b"])
    assert sum(parameter.numel() for parameter in model.parameters()) == PRESETS["llama-3.1-405b"].parameter_count
    assert model.freq_F.device.type == "cpu"


def test_scaling_slows_long_waves_by_its_factor_and_leaves_short_ones() -> None:
    assert TINY.rope_scaling
    plain = inverse_frequencies(replace(TINY, rope_scaling=None))
    for factor in (8.0, 32.0):
        scaled = inverse_frequencies(replace(TINY, rope_scaling=replace(TINY.rope_scaling, factor=factor)))
        torch.testing.assert_close(scaled[-1], plain[-1] / factor)
        assert torch.equal(scaled[:2], plain[:2])
        assert (scaled <= plain).all()

"""LoRA adapters of random numbers, and models with an adapter merged into their weights."""

import copy
from collections.abc import Sequence

import torch

from services.llama.checkpoint.layout import linear_specs
from services.llama.config import LlamaConfig
from services.llama.lora import LoraAdapter, LoraPair
from services.llama.model import Llama

ALL = ("attention.q", "attention.k", "attention.v", "attention.o", "ffn.gate", "ffn.up", "ffn.down")


def random_adapter(
    config: LlamaConfig, *, seed: int, rank: int = 4, targets: Sequence[str] = ALL, size: float = 0.3, base: str = ""
) -> LoraAdapter:
    """An adapter that changes every answer; the same for the same seed.

    Args:
        config: Shape of its base.
        seed: Where the numbers come from.
        rank: R of every pair.
        targets: Kinds of linears.
        size: About how large its change is beside the random weights of `Llama.seeded`.
        base: Hash of the base's weights.
    """
    source = torch.Generator().manual_seed(seed)
    pairs = {}
    for spec in linear_specs(config):
        outputs, inputs = spec.shape
        a_RI = torch.randn(rank, inputs, generator=source) * inputs**-0.5
        b_OR = torch.randn(outputs, rank, generator=source) * size * rank**-0.5
        if spec.ours.removesuffix(".weight").endswith(tuple(targets)):
            pairs[spec.ours.removesuffix(".weight")] = LoraPair(a_RI, b_OR)
    return LoraAdapter(pairs=pairs, base_model_hash=base)


def merged(model: Llama, adapter: LoraAdapter) -> Llama:
    """A copy of the model whose weights are W + B A."""
    whole = copy.deepcopy(model)
    for name, pair in adapter.pairs.items():
        weight = whole.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        weight.data += (pair.b_OR @ pair.a_RI).to(weight.dtype)
    return whole

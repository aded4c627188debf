"""Weights and batches of encoders: what BERT and DeBERTa have in common.

Shapes: B texts, S tokens of the longest text.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


class Weights:
    """Tensors by name, in fp32; a missing one is an error that names it and its folder."""

    def __init__(self, tensors: dict[str, Tensor], *, source: str) -> None:
        self._tensors = tensors
        self._source = source

    def __getitem__(self, name: str) -> Tensor:
        """A tensor.

        Raises:
            ValueError: If there is none of that name.
        """
        if name not in self._tensors:
            raise ValueError(f"{self._source}: tensor {name} is missing; the folder holds another kind of model")
        return self._tensors[name]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(iter(self._tensors.values())).device

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self._tensors.values() if tensor.is_floating_point())


def read_weights(folder: Path, *, device: str) -> Weights:
    """Every tensor of a folder's safetensors files.

    Raises:
        ValueError: If there is no such file.
    """
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt", device=device) as opened:
            for name in opened.keys():  # noqa: SIM118 (no dict)
                tensor = opened.get_tensor(name)
                tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    if not tensors:
        raise ValueError(f"{folder}: no weights in safetensors files; save the model in that format")
    return Weights(tensors, source=str(folder))


def padded(texts: list[list[int]], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, S), filled up with zeros, and where they are real."""
    lengths_B = torch.tensor([len(ids) for ids in texts], device=device)
    longest = max(map(len, texts))
    ids_BS = torch.tensor([ids + [0] * (longest - len(ids)) for ids in texts], device=device)
    return ids_BS, torch.arange(longest, device=device)[None] < lengths_B[:, None]


def types_of(firsts: Sequence[int], *, length: int, device: torch.device) -> Tensor:
    """Token types (B, S): 0 for the first tokens of each text, as many as `firsts` says, and 1 for the rest."""
    firsts_B = torch.tensor(firsts, device=device)
    return (torch.arange(length, device=device)[None] >= firsts_B[:, None]).long()

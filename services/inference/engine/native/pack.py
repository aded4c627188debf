"""Weights in the order that the kernels read them: packed once, kept beside the conversion cache, mapped afterwards.

A matrix of N outputs and K inputs becomes pairs of 16 outputs: for every 4 inputs 64 bytes of the first 16 outputs,
then 64 of the second (`gemm.h`).

Eight bits: int8 with an offset of 128 and a scale per output, after the inputs were rotated by an orthonormal Hadamard
matrix of 64, which the kernels apply to the activations too. It leaves the product as it is and spreads the outliers
that spoil a row's scale. Activations get one scale per row.

Four bits: codes 0 to 15 with a scale and a minimum per output and 32 inputs, not rotated: weights that were shipped in
such blocks (GGUF's Q4_1) lie on that grid already and lose nothing. Activations get a scale per 32 inputs. The output
head stays at eight bits.

Shapes: N outputs, K inputs, G groups of inputs.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.llama.config import LlamaConfig
from services.llama.model import Llama

VERSION = 1
"""Part of the file's name: raise it when the packing changes."""
BLOCK = 64
_ALIGNMENT = 64
_HEADER = 4096
_LEAST = 1e-30  # what a row of zeros is divided by

Array = NDArray[Any]


FOUR_BIT_GROUP = 32
Format = Literal["int8", "int4"]


def unsupported(config: LlamaConfig, *, block_size: int) -> str:
    """Why the kernels cannot run a model of this shape; empty when they can."""
    for name, size, multiple in (
        ("dim", config.dim, BLOCK),
        ("ffn_dim", config.ffn_dim, BLOCK),
        ("n_heads * head_dim", config.n_heads * config.head_dim, BLOCK),
        ("head_dim", config.head_dim, 16),
        ("block_size", block_size, 16),
    ):
        if size % multiple:
            return f"{name} is {size}, no multiple of {multiple}"
    if config.head_dim > 256 or config.n_heads // config.n_kv_heads > 16:
        return "heads larger than 256, or more than 16 query heads per key head"
    return ""


def pack(model: Llama, *, form: Format, file: Path) -> None:
    """Write the packed weights of an fp32 or bf16 model on the CPU."""
    header: dict[str, Any] = {}
    offset = 0
    with file.open("wb") as out:
        out.seek(_HEADER * (1 + model.config.n_layers))
        start = out.tell()
        for name, array in _arrays(model, form):
            out.seek(start + offset)
            out.write(array.tobytes())
            header[name] = {"dtype": array.dtype.str, "shape": array.shape, "start": start + offset}
            offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        text = json.dumps(header).encode()
        assert len(text) + 8 <= start
        out.seek(0)
        out.write(len(text).to_bytes(8, "little") + text)


def unpack(file: Path) -> dict[str, Array]:
    """The packed arrays by name, mapped read-only from the file."""
    pages = np.memmap(file, dtype=np.uint8, mode="r")
    size = int.from_bytes(pages[:8].tobytes(), "little")
    header = json.loads(pages[8 : 8 + size].tobytes())
    arrays = {}
    for name, entry in header.items():
        dtype = np.dtype(entry["dtype"])
        count = math.prod(entry["shape"])
        end = entry["start"] + count * dtype.itemsize
        arrays[name] = pages[entry["start"] : end].view(dtype).reshape(entry["shape"])
    return arrays


def _arrays(model: Llama, form: Format) -> Iterator[tuple[str, Array]]:
    state = model.state_dict()
    matrix = _four_bits if form == "int4" else _eight_bits
    yield "frequencies", model.freq_F.float().numpy()
    yield "embedding", state["embed.weight"].to(torch.bfloat16).view(torch.int16).numpy()
    yield "norm", state["norm.weight"].float().numpy()
    yield from _eight_bits("head", model.head_weight)
    for layer in range(model.config.n_layers):
        prefix = f"layers.{layer}"
        for norm in ("attention_norm", "ffn_norm"):
            yield f"{prefix}.{norm}", state[f"{prefix}.{norm}.weight"].float().numpy()
        q, k, v, out = (state[f"{prefix}.attention.{name}.weight"] for name in "qkvo")
        yield from matrix(f"{prefix}.qkv", torch.cat([q, k, v]))
        yield from matrix(f"{prefix}.out", out)
        gate, up, down = (state[f"{prefix}.ffn.{name}.weight"] for name in ("gate", "up", "down"))
        # Sixteen of gate, then the same sixteen of up: their product is taken where they are computed.
        paired = torch.stack([gate.unflatten(0, (-1, 16)), up.unflatten(0, (-1, 16))], dim=1)
        yield from matrix(f"{prefix}.gate_up", paired.flatten(0, 2))
        yield from matrix(f"{prefix}.down", down)


def _eight_bits(name: str, weight_NK: Tensor) -> Iterator[tuple[str, Array]]:
    weight_NK = _padded(weight_NK)
    rotated_NK = (weight_NK.view(len(weight_NK), -1, BLOCK) @ hadamard(BLOCK)).flatten(1)
    scale_N1 = rotated_NK.abs().amax(dim=-1, keepdim=True) / 127
    codes_NK = (rotated_NK / scale_N1.clamp(min=_LEAST)).round().clamp(-127, 127) + 128
    yield f"{name}.weights", _ordered(codes_NK).numpy()
    yield f"{name}.scales", scale_N1.t().contiguous().numpy()


def _four_bits(name: str, weight_NK: Tensor) -> Iterator[tuple[str, Array]]:
    weight_NK = _padded(weight_NK)
    groups_NGk = weight_NK.view(len(weight_NK), -1, FOUR_BIT_GROUP)
    least_NG1 = groups_NGk.amin(dim=-1, keepdim=True)
    scale_NG1 = (groups_NGk.amax(dim=-1, keepdim=True) - least_NG1) / 15
    codes_NK = ((groups_NGk - least_NG1) / scale_NG1.clamp(min=_LEAST)).round().clamp(0, 15).flatten(1)
    # Bytes of 4 inputs after bytes of 4 inputs become the low and the high half of one byte.
    halves = _ordered(codes_NK).view(len(codes_NK) // 32, -1, 2, 128)
    yield f"{name}.weights", (halves[:, :, 0] | (halves[:, :, 1] << 4)).flatten(1).contiguous().numpy()
    yield f"{name}.scales", scale_NG1[..., 0].t().contiguous().numpy()
    yield f"{name}.minima", least_NG1[..., 0].t().contiguous().numpy()


def _padded(weight_NK: Tensor) -> Tensor:
    """In fp32, with rows of zeros up to a multiple of 32."""
    missing = -len(weight_NK) % 32
    return torch.nn.functional.pad(weight_NK.float(), (0, 0, 0, missing))


def _ordered(codes_NK: Tensor) -> Tensor:
    """A row of bytes per 32 outputs: for every 4 inputs 2 x 16 outputs x 4 bytes."""
    outputs, inputs = codes_NK.shape
    return codes_NK.to(torch.uint8).view(outputs // 32, 2, 16, inputs // 4, 4).permute(0, 3, 1, 2, 4).flatten(1)


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix of a power of two, divided by the root of its size: symmetric and its own inverse."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    scaled: Tensor = matrix / size**0.5
    return scaled

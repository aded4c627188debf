"""Linears whose weights are held in 8 or 4 bits, and quantised while a checkpoint is loaded.

Embedding, head and norms stay as they are: the head's errors go straight into the logits, and where it is tied it is
the embedding table.

- `int8`: symmetric, one scale per 64 inputs of an output.
- `int4`: scale and minimum per 32 inputs of an output, two codes to a byte.
- `fp8`: e4m3 with one scale per output for the weights and one per token for the activations, after the Llama 3 paper
  (arXiv 2407.21783, section 6.2): only in the feed-forward, not in the first and the last layer, row maxima capped.

The integers are turned back into the model's dtype for every product: they save memory, not time.

Letters: T tokens of the step, I inputs of a linear, O outputs, G groups of inputs, g inputs of a group.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from services.llama.checkpoint.layout import linear_specs
from services.llama.config import Quantisation
from services.llama.errors import ConfigError
from services.llama.model import Llama

FP8_LARGEST = 448.0  # of e4m3
FP8_ROW_MAX = 1200.0  # the paper's bound: rare tokens, for example dates, have activations far beyond all others
_TINY = 1e-12  # rows and groups of zeros get a scale, too


class PackedLinear(nn.Module):
    """A linear without bias whose weight is packed; `pack` gives the buffers that it computes with."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs

    @staticmethod
    def pack(weight_OI: Tensor, *, dtype: torch.dtype) -> dict[str, Tensor]:
        """The buffers of a weight; scales are in `dtype`, and codes are chosen for the scales as they were rounded."""
        raise NotImplementedError

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight that the buffers stand for, (O, I)."""
        raise NotImplementedError

    def forward(self, x_TI: Tensor) -> Tensor:
        """Multiply by the transposed weight, in the dtype of x."""
        return linear(x_TI, self.weight(x_TI.dtype))


class Int8Linear(PackedLinear):
    """Symmetric codes from -127 to 127."""

    group: ClassVar[int] = 64
    codes_OI: Tensor
    scales_OG: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        _check_groups(inputs, self.group)
        self.register_buffer("codes_OI", torch.empty(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scales_OG", torch.empty(outputs, inputs // self.group))

    @staticmethod
    def pack(weight_OI: Tensor, *, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `PackedLinear`."""
        weight_OGg = weight_OI.float().reshape(len(weight_OI), -1, Int8Linear.group)
        scales_OG = (weight_OGg.abs().amax(-1) / 127).clamp(min=_TINY).to(dtype)
        codes_OGg = (weight_OGg / scales_OG.float()[..., None]).round().clamp(-127, 127)
        return {"codes_OI": codes_OGg.flatten(1).to(torch.int8), "scales_OG": scales_OG}

    def weight(self, dtype: torch.dtype) -> Tensor:
        """See `PackedLinear`."""
        codes_OGg = self.codes_OI.view(self.out_features, -1, self.group).to(dtype)
        weight_OGg: Tensor = codes_OGg.mul_(self.scales_OG[..., None].to(dtype))
        return weight_OGg.flatten(1)


class Int4Linear(PackedLinear):
    """Codes from 0 to 15 above a minimum; the first half of a group is in the low bits."""

    group: ClassVar[int] = 32
    codes_OI: Tensor
    scales_OG: Tensor
    minima_OG: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        _check_groups(inputs, self.group)
        self.register_buffer("codes_OI", torch.empty(outputs, inputs // 2, dtype=torch.uint8))
        self.register_buffer("scales_OG", torch.empty(outputs, inputs // self.group))
        self.register_buffer("minima_OG", torch.empty(outputs, inputs // self.group))

    @staticmethod
    def pack(weight_OI: Tensor, *, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `PackedLinear`."""
        weight_OGg = weight_OI.float().reshape(len(weight_OI), -1, Int4Linear.group)
        low_OG, high_OG = weight_OGg.amin(-1), weight_OGg.amax(-1)
        minima_OG = low_OG.to(dtype)
        scales_OG = ((high_OG - minima_OG.float()) / 15).clamp(min=_TINY).to(dtype)
        codes_OGg = ((weight_OGg - minima_OG.float()[..., None]) / scales_OG.float()[..., None]).round().clamp(0, 15)
        first, second = codes_OGg.to(torch.uint8).chunk(2, dim=-1)
        return {
            "codes_OI": (first | second << 4).flatten(1),
            "scales_OG": scales_OG,
            "minima_OG": minima_OG,
        }

    def weight(self, dtype: torch.dtype) -> Tensor:
        """See `PackedLinear`."""
        pairs = self.codes_OI.view(self.out_features, -1, self.group // 2)
        codes_OGg = torch.cat([pairs & 15, pairs >> 4], dim=-1).to(dtype)
        return torch.addcmul(
            self.minima_OG[..., None].to(dtype), codes_OGg, self.scales_OG[..., None].to(dtype)
        ).flatten(1)


class Fp8Linear(PackedLinear):
    """Products of e4m3 numbers, summed in fp32; off GPUs the same numbers multiplied in fp32."""

    codes_OI: Tensor
    scales_O1: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("codes_OI", torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn))
        self.register_buffer("scales_O1", torch.empty(outputs, 1))

    @staticmethod
    def pack(weight_OI: Tensor, *, dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: ARG004 (the kernel wants fp32)
        """See `PackedLinear`; the scales are fp32."""
        codes_OI, scales_O1 = to_fp8(weight_OI)
        return {"codes_OI": codes_OI, "scales_O1": scales_O1}

    def weight(self, dtype: torch.dtype) -> Tensor:
        """See `PackedLinear`."""
        return (self.codes_OI.float() * self.scales_O1).to(dtype)

    def forward(self, x_TI: Tensor) -> Tensor:
        """Quantise the rows of x and multiply."""
        codes_TI, scales_T1 = to_fp8(x_TI)
        if x_TI.is_cuda:
            y_TO = torch._scaled_mm(  # noqa: SLF001 (torch's only fp8 product)
                codes_TI, self.codes_OI.t(), scale_a=scales_T1, scale_b=self.scales_O1.t(), out_dtype=torch.bfloat16
            )
            return y_TO.to(x_TI.dtype)
        y_TO = linear(codes_TI.float(), self.codes_OI.float())
        return (y_TO * scales_T1 * self.scales_O1.t()).to(x_TI.dtype)


def to_fp8(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in e4m3 and a scale per row, fp32, T x 1; what lies beyond the cap on the row maximum saturates."""
    wide_TI = x_TI.float()
    scales_T1 = (wide_TI.abs().amax(-1, keepdim=True).clamp(max=FP8_ROW_MAX) / FP8_LARGEST).clamp(min=_TINY)
    return (wide_TI / scales_T1).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn), scales_T1


_KINDS: dict[Quantisation, type[PackedLinear]] = {"int8": Int8Linear, "int4": Int4Linear, "fp8": Fp8Linear}


def packed_linears(model: Llama, quantisation: Quantisation) -> dict[str, PackedLinear]:
    """Put packed linears, without their weights, in the place of those that a format quantises; returns them by name.

    Raises:
        ConfigError: If the inputs of a linear are no whole number of groups.
    """
    if quantisation == "none":
        return {}
    inner = [spec.ours.removesuffix(".weight") for spec in linear_specs(model.config)]
    if quantisation == "fp8":
        ends = ("layers.0.", f"layers.{model.config.n_layers - 1}.")
        inner = [name for name in inner if ".ffn." in name and not name.startswith(ends)]
    packed = {}
    for name in inner:
        linear_ = model.get_submodule(name)
        assert isinstance(linear_, nn.Linear)
        with torch.device(linear_.weight.device):
            packed[name] = _KINDS[quantisation](linear_.in_features, linear_.out_features)
        model.set_submodule(name, packed[name])
    return packed


def _check_groups(inputs: int, group: int) -> None:
    if inputs % group:
        raise ConfigError(f"a linear of {inputs} inputs is no whole number of groups of {group}; use another format")

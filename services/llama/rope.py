"""Rotary position embedding with the Llama 3.1 stretch, in the half-split layout.

A head is rotated in pairs (i, i + H/2). Meta and GGUF checkpoints pair neighbours (2i, 2i + 1) instead; their query
and key rows are re-ordered when they are loaded (`checkpoint/layout.py`), so that one convention rules here.

Letters: T tokens of the step, N heads, H head size, F = H/2 frequencies.
"""

import math

import torch
from torch import Tensor

from services.llama.config import LlamaConfig


def inverse_frequencies(config: LlamaConfig) -> Tensor:
    """Radians per position of each pair, fp32, stretched when the config says so.

    theta ** (-2i / H) is RoFormer's (arXiv 2104.09864, section 3.2.2). The stretch is Llama 3.1's: with w the
    wavelength in positions and L the original context, frequencies with w > L / low are divided by the factor,
    those with w < L / high are kept, and those between are blended linearly in L / w.
    """
    exponent_F = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    freq_F = 1.0 / (config.rope_theta**exponent_F)
    scaling = config.rope_scaling
    if scaling is None:
        return freq_F
    turns_F = scaling.original_context * freq_F / (2 * math.pi)  # full turns within the original context, L / w
    kept_F = (turns_F - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept_F = kept_F.clamp(0, 1)
    return kept_F * freq_F + (1 - kept_F) * freq_F / scaling.factor


def cos_sin(positions_T: Tensor, *, freq_F: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every pair's angle at each position, fp32, both of shape T x F.

    fp32 throughout: in bf16 neighbouring positions past a few hundred would get the same angle.
    """
    angle_TF = positions_T.to(torch.float32)[:, None] * freq_F
    return angle_TF.cos(), angle_TF.sin()


def rotate(x_TNH: Tensor, *, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
    """Turn each pair (i, i + H/2) of every head by its angle; computed in fp32, returned in x's dtype."""
    left_TNF, right_TNF = x_TNH.float().chunk(2, dim=-1)
    cos_T1F, sin_T1F = cos_TF[:, None, :], sin_TF[:, None, :]
    turned = (left_TNF * cos_T1F - right_TNF * sin_T1F, right_TNF * cos_T1F + left_TNF * sin_T1F)
    return torch.cat(turned, dim=-1).to(x_TNH.dtype)

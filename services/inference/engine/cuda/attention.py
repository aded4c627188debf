"""Attention over a block table: what every implementation takes, and the plain one that the others are tested against.

Shapes: T rows of the step, B requests of the step, D requests that decode one row, M blocks in the widest block table,
N query heads, K key/value heads, G = N/K query heads per key/value head, H head size, S tokens of one request,
C blocks of the cache, P tokens per block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from services.inference.engine.kv_cache import attend_prompt


@dataclass(frozen=True, kw_only=True)
class Step:
    """Who attends to what in one step: on the host for what plans there, on the device for what computes."""

    counts: Sequence[int]
    """Rows of each request; requests with one row (decoding) come first."""
    lengths: Sequence[int]
    """Tokens of each request in the cache, with those of this step."""
    tables: Sequence[Sequence[int]]
    """Blocks of each request, at least those that its length needs."""
    slots_T: Tensor
    """Where the keys and values of each row go; int64."""
    starts_B: Tensor
    """First row of each request and, as one more entry, the number of rows; int32."""
    lengths_B: Tensor
    """`lengths`; int32."""
    tables_BM: Tensor
    """`tables`, any block of the cache where one is shorter; int32."""

    @property
    def decoding(self) -> int:
        """Leading requests with one row."""
        return next((place for place, count in enumerate(self.counts) if count > 1), len(self.counts))


class PagedAttention(Protocol):
    """Causal attention of each request's last rows over its blocks, with the scale 1 / sqrt(H)."""

    captures: bool
    """Whether a step of decoding requests may be captured in a CUDA graph and run again with other numbers in the
    step's tensors. `plan` is then called before every run, outside the graph."""

    def plan(self, step: Step) -> None:
        """Prepare for the layers of a step."""
        ...

    def attend(self, q_TNH: Tensor, k_CPKH: Tensor, v_CPKH: Tensor, step: Step) -> Tensor:
        """Answer the rows of a planned step from one layer's cache, which has their keys and values already."""
        ...


class LayerAttention:
    """`services.llama.model.Attend` for one step.

    Args:
        caches: Keys and values of all layers, each (L, C, P, K, H).
        attention: How.
        step: Of whom.
    """

    def __init__(self, caches: tuple[Tensor, Tensor], attention: PagedAttention, step: Step) -> None:
        self._k_LCPKH, self._v_LCPKH = caches
        self._attention = attention
        self._step = step

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        """Write the step's keys and values, then answer every row, (T, N, H)."""
        k_CPKH, v_CPKH = self._k_LCPKH[layer], self._v_LCPKH[layer]
        k_CPKH.flatten(0, 1).index_copy_(0, self._step.slots_T, k_TKH)
        v_CPKH.flatten(0, 1).index_copy_(0, self._step.slots_T, v_TKH)
        return self._attention.attend(q_TNH.contiguous(), k_CPKH, v_CPKH, self._step)


class GatheredAttention:
    """PyTorch's own attention on copies of the blocks: runs everywhere, in memory that grows with the lengths."""

    captures = False  # it reads as many blocks as the longest request has now

    def plan(self, step: Step) -> None:
        """Nothing to prepare."""

    def attend(self, q_TNH: Tensor, k_CPKH: Tensor, v_CPKH: Tensor, step: Step) -> Tensor:
        """See `PagedAttention`."""
        o_TNH = torch.empty_like(q_TNH)
        row = step.decoding
        if row:
            o_TNH[:row] = _attend_decoding(q_TNH[:row], k_CPKH, v_CPKH, step)
        for place in range(row, len(step.counts)):
            span = slice(row, row + step.counts[place])
            blocks = -(-step.lengths[place] // k_CPKH.shape[1])
            table = step.tables_BM[place, :blocks].long()
            k_SKH, v_SKH = (x_CPKH[table].flatten(0, 1)[: step.lengths[place]] for x_CPKH in (k_CPKH, v_CPKH))
            o_TNH[span] = attend_prompt(q_TNH[span], k_SKH, v_SKH)
            row = span.stop
        return o_TNH


def _attend_decoding(q_DNH: Tensor, k_CPKH: Tensor, v_CPKH: Tensor, step: Step) -> Tensor:
    """The query heads of one key head stand as that head's query rows: no copy of keys per query head."""
    rows, longest = len(q_DNH), max(step.lengths[: len(q_DNH)])
    tables_DM = step.tables_BM[:rows, : -(-longest // k_CPKH.shape[1])].long()
    k_DKSH, v_DKSH = (x_CPKH[tables_DM].flatten(1, 2)[:, :longest].transpose(1, 2) for x_CPKH in (k_CPKH, v_CPKH))
    q_DKGH = q_DNH.view(rows, k_CPKH.shape[2], -1, q_DNH.shape[-1])
    mask_DS = torch.arange(longest, device=q_DNH.device) < step.lengths_B[:rows, None]
    return scaled_dot_product_attention(q_DKGH, k_DKSH, v_DKSH, attn_mask=mask_DS[:, None, None]).flatten(1, 2)

"""Keys and values of all requests, in blocks, and attention over them.

A slot holds one token: block index times block size plus the place in the block. Requests read and write by slots, so
that it does not matter where their blocks lie and whom they share them with.

Shapes: T tokens of the step, t tokens of one request in the step, B requests that decode one token, S cached tokens of
one request, C slots, L layers, N query heads, K key/value heads, G = N/K query heads per key/value head, H head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class PagedCache:
    """The storage of every block, allocated once."""

    def __init__(
        self, *, n_layers: int, n_kv_heads: int, head_dim: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (n_layers, slots, n_kv_heads, head_dim)
        # Memory that is never written is never resident on a CPU, so a large cache costs nothing until it is used.
        self.k_LCKH = torch.empty(shape, dtype=dtype, device=device)
        self.v_LCKH = torch.empty(shape, dtype=dtype, device=device)

    @property
    def device(self) -> torch.device:
        """Where the blocks are."""
        return self.k_LCKH.device


@dataclass(frozen=True)
class Rows:
    """One request's part of a step."""

    slots_S: Tensor
    """Slots of its tokens, in their order, up to and including the step's."""
    count: int
    """Its tokens in the step: the last ones of `slots_S`."""


def slots_of(blocks: Sequence[int], *, tokens: int, block_size: int, device: torch.device) -> Tensor:
    """Slots of a request's first `tokens` tokens."""
    indices = torch.tensor(blocks, device=device)
    return (indices[:, None] * block_size + torch.arange(block_size, device=device)).flatten()[:tokens]


class StepAttention:
    """`services.llama.model.Attend` for one step: every request's rows attend to that request's tokens only.

    Args:
        cache: The storage.
        rows: The step's requests in the order of their rows; those with one row (decoding) must come first.
    """

    def __init__(self, cache: PagedCache, rows: list[Rows]) -> None:
        self._cache = cache
        self._write_T = torch.cat([part.slots_S[-part.count :] for part in rows])
        decoding = [part for part in rows if part.count == 1]
        assert rows[: len(decoding)] == decoding
        self._decoding = len(decoding)
        self._prompts = rows[len(decoding) :]
        self._groups = [_Group.of(decoding[start:end], start) for start, end in _spans(decoding)]

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        """Write the step's keys and values, then answer every row, (T, N, H)."""
        k_CKH, v_CKH = self._cache.k_LCKH[layer], self._cache.v_LCKH[layer]
        k_CKH.index_copy_(0, self._write_T, k_TKH)
        v_CKH.index_copy_(0, self._write_T, v_TKH)
        o_TNH = torch.empty_like(q_TNH)
        for group in self._groups:
            o_TNH[group.span] = group.attend(q_TNH[group.span], k_CKH, v_CKH)
        start = self._decoding
        for part in self._prompts:
            span = slice(start, start + part.count)
            o_TNH[span] = attend_prompt(q_TNH[span], k_CKH[part.slots_S], v_CKH[part.slots_S])
            start += part.count
        return o_TNH


@dataclass(frozen=True)
class _Group:
    """Decoding requests of similar length, answered in one call."""

    span: slice
    slots_BS: Tensor
    mask_B11S: Tensor | None
    """Which of the slots are the request's own; None when all are."""

    @classmethod
    def of(cls, rows: list[Rows], start: int) -> "_Group":
        lengths = [len(part.slots_S) for part in rows]
        span = slice(start, start + len(rows))
        if min(lengths) == max(lengths):
            return cls(span, torch.stack([part.slots_S for part in rows]), None)
        slots_BS = torch.nn.utils.rnn.pad_sequence([part.slots_S for part in rows], batch_first=True)
        positions_S = torch.arange(max(lengths), device=slots_BS.device)
        mask_BS = positions_S < torch.tensor(lengths, device=slots_BS.device)[:, None]
        return cls(span, slots_BS, mask_BS[:, None, None])

    def attend(self, q_BNH: Tensor, k_CKH: Tensor, v_CKH: Tensor) -> Tensor:
        """The query heads of one key head stand as that head's query rows: no copy of keys per query head."""
        k_BKSH, v_BKSH = k_CKH[self.slots_BS].transpose(1, 2), v_CKH[self.slots_BS].transpose(1, 2)
        q_BKGH = q_BNH.view(len(q_BNH), k_BKSH.shape[1], -1, q_BNH.shape[-1])
        return scaled_dot_product_attention(q_BKGH, k_BKSH, v_BKSH, attn_mask=self.mask_B11S).flatten(1, 2)


def _spans(rows: list[Rows]) -> list[tuple[int, int]]:
    """Cut decoding requests where padding to a common length would more than double the keys that are read."""
    spans, start = [], 0
    for place in range(1, len(rows) + 1):
        lengths = [len(part.slots_S) for part in rows[start : place + 1]]
        if place == len(rows) or max(lengths) > 2 * min(lengths) + 64:
            spans.append((start, place))
            start = place
    return spans


def attend_prompt(q_tNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
    """Causal attention of the last t of S positions; each query sees the keys up to its own position."""
    rows, keys = q_tNH.shape[0], k_SKH.shape[0]
    mask_tS = None
    if keys > rows:
        mask_tS = torch.ones((rows, keys), dtype=torch.bool, device=q_tNH.device).tril(diagonal=keys - rows)
    o_1NtH = scaled_dot_product_attention(
        q_tNH.transpose(0, 1)[None],
        k_SKH.transpose(0, 1)[None],
        v_SKH.transpose(0, 1)[None],
        attn_mask=mask_tS,
        is_causal=mask_tS is None,
        enable_gqa=q_tNH.shape[1] != k_SKH.shape[1],
    )
    return o_1NtH[0].transpose(0, 1)

"""Keys and values of running requests, one growing store per request, and attention over them.

Shapes: T tokens of the step, t tokens of one request in the step, S cached tokens of one request, L layers,
N query heads, K key/value heads, G = N/K query heads per key/value head, H head size.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

GRANULE = 256  # tokens by which a store grows at least


class SequenceCache:
    """Keys and values of one request; `length` tokens are valid."""

    def __init__(self, *, n_layers: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype, device: str) -> None:
        self.length = 0
        self._store = torch.empty((2, n_layers, n_kv_heads, 0, head_dim), dtype=dtype, device=device)

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens in all; doubling keeps the copies linear in the final length."""
        capacity = self._store.shape[3]
        if tokens <= capacity:
            return
        grown = max(tokens, 2 * capacity)
        grown += -grown % GRANULE
        shape = (*self._store.shape[:3], grown, self._store.shape[4])
        store = torch.empty(shape, dtype=self._store.dtype, device=self._store.device)
        store[:, :, :, : self.length] = self._store[:, :, :, : self.length]
        self._store = store

    def append(self, layer: int, k_tKH: Tensor, v_tKH: Tensor) -> tuple[Tensor, Tensor]:
        """Write the step's tokens of one layer after the valid ones; returns all keys and values, (K, S, H) each."""
        end = self.length + k_tKH.shape[0]
        self._store[0, layer, :, self.length : end] = k_tKH.transpose(0, 1)
        self._store[1, layer, :, self.length : end] = v_tKH.transpose(0, 1)
        return self._store[0, layer, :, :end], self._store[1, layer, :, :end]


class StepAttention:
    """`services.llama.model.Attend` for one step: every request's rows attend to that request's cache only.

    Args:
        segments: For each request of the step its cache and its number of rows, in the order of the rows.
    """

    def __init__(self, segments: list[tuple[SequenceCache, int]]) -> None:
        self._segments = segments

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        """Attention output of every row, (T, N, H)."""
        o_TNH = torch.empty_like(q_TNH)
        start = 0
        for cache, rows in self._segments:
            span = slice(start, start + rows)
            k_KSH, v_KSH = cache.append(layer, k_TKH[span], v_TKH[span])
            o_TNH[span] = attend(q_TNH[span], k_KSH, v_KSH)
            start += rows
        return o_TNH


def attend(q_tNH: Tensor, k_KSH: Tensor, v_KSH: Tensor) -> Tensor:
    """Causal attention of the last t of S positions; each query sees the keys up to its own position."""
    rows, heads, size = q_tNH.shape
    kv_heads, keys = k_KSH.shape[:2]
    if rows == 1:
        # The query heads of one key head stand as that head's query rows: no copy of keys, no mask.
        o_KGH = scaled_dot_product_attention(q_tNH.view(kv_heads, heads // kv_heads, size), k_KSH, v_KSH)
        return o_KGH.reshape(1, heads, size)
    mask_tS = None
    if keys > rows:
        mask_tS = torch.ones((rows, keys), dtype=torch.bool, device=q_tNH.device).tril(diagonal=keys - rows)
    o_1NtH = scaled_dot_product_attention(
        q_tNH.transpose(0, 1)[None],
        k_KSH[None],
        v_KSH[None],
        attn_mask=mask_tS,
        is_causal=mask_tS is None,
        enable_gqa=heads != kv_heads,
    )
    return o_1NtH[0].transpose(0, 1)

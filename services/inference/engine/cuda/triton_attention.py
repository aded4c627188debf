"""Paged attention in Triton: decoding with the keys split over programs, prompts in tiles of queries.

Decoding is bound by reading keys and values: one program reads a share of one request's tokens for one key head and
answers all its query heads; a second kernel joins the shares. The number of shares is fixed, so that a captured step
serves any lengths.

Shapes: as in `attention`; X shares of the keys.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.inference.engine.cuda.attention import Step
from services.inference.engine.cuda.kernels import decode_share, join_shares, prefill_tile

KEY_TILE = 64
QUERY_TILE = 64
WIDE_QUERY_TILE = 32
"""Of fp32, which takes twice the shared memory."""
MOST_SHARES = 32
LEAST_DOT = 16
"""Rows that a matrix product needs at least."""


class TritonAttention:
    """Our own kernels.

    Args:
        processors: Multiprocessors of the GPU: keys are split until they are all busy.
    """

    captures = True

    def __init__(self, *, processors: int) -> None:
        self._processors = processors

    def plan(self, step: Step) -> None:
        """Nothing to prepare."""

    def attend(self, q_TNH: Tensor, k_CPKH: Tensor, v_CPKH: Tensor, step: Step) -> Tensor:
        """See `PagedAttention`."""
        o_TNH = torch.empty_like(q_TNH)
        decoding = step.decoding
        if decoding:
            self._decode(q_TNH[:decoding], k_CPKH, v_CPKH, step, o_TNH)
        if decoding < len(step.counts):
            _prefill(q_TNH, k_CPKH, v_CPKH, step, o_TNH)
        return o_TNH

    def _decode(self, q_DNH: Tensor, k_CPKH: Tensor, v_CPKH: Tensor, step: Step, o_TNH: Tensor) -> None:
        requests, heads, head_dim = q_DNH.shape
        block_size, kv_heads = k_CPKH.shape[1:3]
        shares = max(1, min(MOST_SHARES, 2 * self._processors // (requests * kv_heads)))
        o_DNXH = q_DNH.new_empty((requests, heads, shares, head_dim), dtype=torch.float32)
        peaks_DNX = q_DNH.new_empty((requests, heads, shares), dtype=torch.float32)
        sums_DNX = torch.empty_like(peaks_DNX)
        head_pad = max(LEAST_DOT, triton.next_power_of_2(head_dim))
        decode_share[(requests, kv_heads, shares)](
            q_DNH,
            k_CPKH,
            v_CPKH,
            o_DNXH,
            peaks_DNX,
            sums_DNX,
            step.tables_BM,
            step.lengths_B,
            1 / math.sqrt(head_dim),
            step.tables_BM.stride(0),
            kv_heads,
            GROUP=heads // kv_heads,
            GROUP_PAD=max(LEAST_DOT, triton.next_power_of_2(heads // kv_heads)),
            HEAD=head_dim,
            HEAD_PAD=head_pad,
            BLOCK=block_size,
            TILE=KEY_TILE,
            PRODUCT=_product_type(q_DNH.dtype),
            SHARES=shares,
        )
        join_shares[(requests, heads)](
            o_DNXH,
            peaks_DNX,
            sums_DNX,
            o_TNH,
            heads,
            HEAD=head_dim,
            HEAD_PAD=head_pad,
            SHARES=shares,
            SHARES_PAD=triton.next_power_of_2(shares),
        )


def _prefill(q_TNH: Tensor, k_CPKH: Tensor, v_CPKH: Tensor, step: Step, o_TNH: Tensor) -> None:
    """Answer the rows of the requests with more than one."""
    heads, head_dim = q_TNH.shape[1:]
    block_size, kv_heads = k_CPKH.shape[1:3]
    decoding = step.decoding
    tile = WIDE_QUERY_TILE if q_TNH.dtype == torch.float32 else QUERY_TILE
    grid = (triton.cdiv(max(step.counts), tile), heads, len(step.counts) - decoding)
    prefill_tile[grid](
        q_TNH,
        k_CPKH,
        v_CPKH,
        o_TNH,
        step.tables_BM,
        step.starts_B,
        step.lengths_B,
        1 / math.sqrt(head_dim),
        step.tables_BM.stride(0),
        decoding,
        heads,
        kv_heads,
        GROUP=heads // kv_heads,
        HEAD=head_dim,
        HEAD_PAD=max(LEAST_DOT, triton.next_power_of_2(head_dim)),
        BLOCK=block_size,
        QUERIES=tile,
        TILE=KEY_TILE,
        PRODUCT=_product_type(q_TNH.dtype),
    )


def _product_type(dtype: torch.dtype) -> tl.dtype:
    """What matrix products take: the cache's own type, but the interpreter multiplies no bf16."""
    if dtype == torch.float32 or triton.knobs.runtime.interpret:
        return tl.float32
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16

"""The kernels of `triton_attention`: each keeps a running maximum and sum of the softmax (arXiv:1805.02867) in fp32.

Tensors are contiguous, but for the block tables, whose rows are `table_stride` apart. A `_PAD` is the next size that
Triton computes with; PRODUCT is the type that matrix products take.

Shapes: G query heads of one key head, T queries of a tile, S keys of a tile, H head size, X shares.
"""

import triton
import triton.language as tl


@triton.jit
def decode_share(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    peaks_ptr,
    sums_ptr,
    tables_ptr,
    lengths_ptr,
    scale,
    table_stride,
    kv_heads,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCT: tl.constexpr,
    SHARES: tl.constexpr,
):
    """A share of one request's tokens, for the query heads of one key head; not divided by the sum yet."""
    request, kv_head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + request)
    per_share = tl.cdiv(tl.cdiv(length, TILE), SHARES) * TILE
    start = share * per_share
    end = tl.minimum(start + per_share, length)
    group_G = tl.arange(0, GROUP_PAD)
    dim_H = tl.arange(0, HEAD_PAD)
    heads_G = request * kv_heads * GROUP + kv_head * GROUP + group_G  # counted over all requests
    mask_GH = (group_G < GROUP)[:, None] & (dim_H < HEAD)[None, :]
    q_GH = tl.load(q_ptr + heads_G[:, None] * HEAD + dim_H[None, :], mask=mask_GH, other=0.0).to(PRODUCT)
    peak_G = tl.full((GROUP_PAD,), float("-inf"), tl.float32)
    sum_G = tl.zeros((GROUP_PAD,), tl.float32)
    o_GH = tl.zeros((GROUP_PAD, HEAD_PAD), tl.float32)
    for first in range(start, end, TILE):
        place_S = first + tl.arange(0, TILE)
        seen_S = place_S < end
        block_S = tl.load(tables_ptr + request * table_stride + place_S // BLOCK, mask=seen_S, other=0).to(tl.int64)
        row_S = ((block_S * BLOCK + place_S % BLOCK) * kv_heads + kv_head) * HEAD
        mask_SH = seen_S[:, None] & (dim_H < HEAD)[None, :]
        k_SH = tl.load(k_ptr + row_S[:, None] + dim_H[None, :], mask=mask_SH, other=0.0)
        score_GS = tl.dot(q_GH, tl.trans(k_SH.to(PRODUCT)), input_precision="ieee") * scale
        score_GS = tl.where(seen_S[None, :], score_GS, float("-inf"))
        new_peak_G = tl.maximum(peak_G, tl.max(score_GS, 1))
        fade_G = tl.exp(peak_G - new_peak_G)
        weight_GS = tl.exp(score_GS - new_peak_G[:, None])
        sum_G = sum_G * fade_G + tl.sum(weight_GS, 1)
        v_SH = tl.load(v_ptr + row_S[:, None] + dim_H[None, :], mask=mask_SH, other=0.0)
        o_GH = o_GH * fade_G[:, None] + tl.dot(weight_GS.to(PRODUCT), v_SH.to(PRODUCT), input_precision="ieee")
        peak_G = new_peak_G
    place_G = heads_G * SHARES + share
    tl.store(peaks_ptr + place_G, peak_G, mask=group_G < GROUP)
    tl.store(sums_ptr + place_G, sum_G, mask=group_G < GROUP)
    tl.store(o_ptr + place_G[:, None] * HEAD + dim_H[None, :], o_GH, mask=mask_GH)


@triton.jit
def join_shares(
    shares_ptr,
    peaks_ptr,
    sums_ptr,
    o_ptr,
    heads,
    HEAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    SHARES: tl.constexpr,
    SHARES_PAD: tl.constexpr,
):
    """Put the shares of one query head together."""
    head = tl.program_id(0) * heads + tl.program_id(1)
    share_X = tl.arange(0, SHARES_PAD)
    dim_H = tl.arange(0, HEAD_PAD)
    # A share without tokens has the peak minus infinity and so the weight 0; the first share always has some.
    peak_X = tl.load(peaks_ptr + head * SHARES + share_X, mask=share_X < SHARES, other=float("-inf"))
    weight_X = tl.exp(peak_X - tl.max(peak_X, 0))
    sum_X = tl.load(sums_ptr + head * SHARES + share_X, mask=share_X < SHARES, other=0.0)
    mask_XH = (share_X < SHARES)[:, None] & (dim_H < HEAD)[None, :]
    o_XH = tl.load(shares_ptr + (head * SHARES + share_X)[:, None] * HEAD + dim_H[None, :], mask=mask_XH, other=0.0)
    o_H = tl.sum(o_XH * weight_X[:, None], 0) / tl.sum(sum_X * weight_X, 0)
    tl.store(o_ptr + head * HEAD + dim_H, o_H.to(o_ptr.dtype.element_ty), mask=dim_H < HEAD)


@triton.jit
def prefill_tile(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    tables_ptr,
    starts_ptr,
    lengths_ptr,
    scale,
    table_stride,
    decoding,
    heads,
    kv_heads,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """A tile of one request's queries, for one query head; `decoding` requests come before."""
    tile, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2) + decoding
    first_row = tl.load(starts_ptr + request)
    rows = tl.load(starts_ptr + request + 1) - first_row
    if tile * QUERIES >= rows:
        return
    length = tl.load(lengths_ptr + request)
    row_T = tile * QUERIES + tl.arange(0, QUERIES)
    position_T = length - rows + row_T
    dim_H = tl.arange(0, HEAD_PAD)
    at_TH = ((first_row + row_T).to(tl.int64) * heads + head)[:, None] * HEAD + dim_H[None, :]
    mask_TH = (row_T < rows)[:, None] & (dim_H < HEAD)[None, :]
    q_TH = tl.load(q_ptr + at_TH, mask=mask_TH, other=0.0).to(PRODUCT)
    peak_T = tl.full((QUERIES,), float("-inf"), tl.float32)
    sum_T = tl.zeros((QUERIES,), tl.float32)
    o_TH = tl.zeros((QUERIES, HEAD_PAD), tl.float32)
    end = tl.minimum(length, length - rows + (tile + 1) * QUERIES)
    for first in range(0, end, TILE):
        place_S = first + tl.arange(0, TILE)
        kept_S = place_S < end
        block_S = tl.load(tables_ptr + request * table_stride + place_S // BLOCK, mask=kept_S, other=0).to(tl.int64)
        row_S = ((block_S * BLOCK + place_S % BLOCK) * kv_heads + head // GROUP) * HEAD
        mask_SH = kept_S[:, None] & (dim_H < HEAD)[None, :]
        k_SH = tl.load(k_ptr + row_S[:, None] + dim_H[None, :], mask=mask_SH, other=0.0)
        score_TS = tl.dot(q_TH, tl.trans(k_SH.to(PRODUCT)), input_precision="ieee") * scale
        seen_TS = (place_S[None, :] <= position_T[:, None]) & kept_S[None, :]
        score_TS = tl.where(seen_TS, score_TS, float("-inf"))
        new_peak_T = tl.maximum(peak_T, tl.max(score_TS, 1))  # finite: every row sees the first token
        fade_T = tl.exp(peak_T - new_peak_T)
        weight_TS = tl.exp(score_TS - new_peak_T[:, None])
        sum_T = sum_T * fade_T + tl.sum(weight_TS, 1)
        v_SH = tl.load(v_ptr + row_S[:, None] + dim_H[None, :], mask=mask_SH, other=0.0)
        o_TH = o_TH * fade_T[:, None] + tl.dot(weight_TS.to(PRODUCT), v_SH.to(PRODUCT), input_precision="ieee")
        peak_T = new_peak_T
    tl.store(o_ptr + at_TH, (o_TH / sum_T[:, None]).to(o_ptr.dtype.element_ty), mask=mask_TH)

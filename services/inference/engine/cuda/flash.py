"""Paged attention of libraries: FlashInfer (arXiv:2501.01005) and FlashAttention (arXiv:2307.08691).

Shapes: as in `attention`.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from services.inference.engine.cuda.attention import Step
from services.inference.engine.cuda.transfer import on_device
from services.llama.config import LlamaConfig

WORKSPACE_BYTES = 128 * 2**20


class FlashAttention:
    """FlashAttention 2; its blocks hold a multiple of 256 tokens."""

    captures = True

    def __init__(self) -> None:
        from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache  # noqa: PLC0415 - optional

        self._prefill, self._decode = flash_attn_varlen_func, flash_attn_with_kvcache

    def plan(self, step: Step) -> None:
        """Nothing to prepare."""

    def attend(self, q_TNH: Tensor, k_CPKH: Tensor, v_CPKH: Tensor, step: Step) -> Tensor:
        """See `PagedAttention`."""
        o_TNH: Tensor
        if step.decoding == len(step.counts):
            o_TNH = self._decode(
                q_TNH[:, None],
                k_CPKH,
                v_CPKH,
                cache_seqlens=step.lengths_B,
                block_table=step.tables_BM,
                causal=True,
            )[:, 0]
            return o_TNH
        ends_B = torch.nn.functional.pad(step.lengths_B.cumsum(0, dtype=torch.int32), (1, 0))
        o_TNH = self._prefill(
            q_TNH,
            k_CPKH,
            v_CPKH,
            cu_seqlens_q=step.starts_B,
            cu_seqlens_k=ends_B,
            max_seqlen_q=max(step.counts),
            max_seqlen_k=max(step.lengths),
            block_table=step.tables_BM,
            causal=True,
        )
        return o_TNH


class FlashInferAttention:
    """FlashInfer: plans every step on the host, and keeps one wrapper with fixed buffers per size of a captured step.

    Args:
        config: Of the model.
        block_size: Tokens per block.
        pages: Blocks that all block tables of a step have at most; shared ones count for each.
        dtype: Of queries and cache.
        device: The GPU.
    """

    captures = True

    def __init__(
        self, config: LlamaConfig, *, block_size: int, pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        import flashinfer  # noqa: PLC0415 - optional

        self._library: Any = flashinfer
        self._block_size = block_size
        self._heads = (config.n_heads, config.n_kv_heads, config.head_dim)
        self._dtype, self._device = dtype, device
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        # One for all wrappers: a wrapper is planned before every run.
        self._pages = torch.zeros(pages, dtype=torch.int32, device=device)
        self._prefill: Any = None
        self._decode: dict[int, Any] = {}

    def plan(self, step: Step) -> None:
        """Let the library cut the step into work for the multiprocessors."""
        ends, blocks, last = csr(step.tables, step.lengths, block_size=self._block_size)
        pages = (_int32(ends), on_device(blocks, self._device, dtype=torch.int32), _int32(last))
        dtypes = {"q_data_type": self._dtype, "kv_data_type": self._dtype}
        if step.decoding == len(step.counts):
            self._decoder(len(step.counts)).plan(*pages, *self._heads, self._block_size, **dtypes)
            return
        if self._prefill is None:
            self._prefill = self._library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")
        starts = _int32([0, *accumulate(step.counts)])
        self._prefill.plan(starts, *pages, *self._heads, self._block_size, causal=True, **dtypes)

    def attend(self, q_TNH: Tensor, k_CPKH: Tensor, v_CPKH: Tensor, step: Step) -> Tensor:
        """See `PagedAttention`."""
        decoding = step.decoding == len(step.counts)
        wrapper = self._decoder(len(step.counts)) if decoding else self._prefill
        o_TNH: Tensor = wrapper.run(q_TNH, (k_CPKH, v_CPKH))
        return o_TNH

    def _decoder(self, requests: int) -> Any:  # noqa: ANN401 - the library publishes no types
        """The wrapper for decode steps of this size."""
        if requests not in self._decode:
            self._decode[requests] = self._library.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace,
                "NHD",
                use_cuda_graph=True,
                use_tensor_cores=True,  # any number of query heads per key head
                paged_kv_indptr_buffer=torch.zeros(requests + 1, dtype=torch.int32, device=self._device),
                paged_kv_indices_buffer=self._pages,
                paged_kv_last_page_len_buffer=torch.ones(requests, dtype=torch.int32, device=self._device),
            )
        return self._decode[requests]


def csr(
    tables: Sequence[Sequence[int]], lengths: Sequence[int], *, block_size: int
) -> tuple[list[int], list[int], list[int]]:
    """Block tables one after the other.

    Returns:
        Where each begins, and where the last one ends; the blocks; the tokens in each request's last block, from 1.
    """
    needed = [-(-length // block_size) for length in lengths]
    blocks = [block for table, count in zip(tables, needed, strict=True) for block in table[:count]]
    return [0, *accumulate(needed)], blocks, [(length - 1) % block_size + 1 for length in lengths]


def _int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)

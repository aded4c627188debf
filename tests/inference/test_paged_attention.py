"""Attention over block tables: every implementation that runs here answers as plain attention on the same tokens."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.inference.engine.cuda.attention import GatheredAttention, PagedAttention, Step
from services.inference.engine.cuda.flash import csr
from services.inference.engine.kv_cache import attend_prompt

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 16
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def triton_attention() -> PagedAttention:
    pytest.importorskip("triton")
    from services.inference.engine.cuda.triton_attention import TritonAttention  # noqa: PLC0415 - optional

    return TritonAttention(processors=16)


@pytest.fixture(params=["gathered", "triton"])
def attention(request: pytest.FixtureRequest) -> PagedAttention:
    return triton_attention() if request.param == "triton" else GatheredAttention()


def step_of(counts: Sequence[int], lengths: Sequence[int], *, blocks: int) -> Step:
    """Block tables in a scattered order, wider than any request needs."""
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(3)).tolist()
    tables = [[order.pop() for _ in range(-(-length // BLOCK))] for length in lengths]
    width = max(map(len, tables)) + 2
    starts = torch.tensor([0, *counts]).cumsum(0)
    return Step(
        counts=counts,
        lengths=lengths,
        tables=tables,
        slots_T=torch.zeros(sum(counts), dtype=torch.long, device=DEVICE),
        starts_B=starts.to(DEVICE, torch.int32),
        lengths_B=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        tables_BM=torch.tensor(
            [table + [0] * (width - len(table)) for table in tables], dtype=torch.int32, device=DEVICE
        ),
    )


def check(
    attention: PagedAttention,
    counts: Sequence[int],
    lengths: Sequence[int],
    *,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Compare with causal attention on each request's own keys and values, in fp32."""
    blocks = sum(-(-length // BLOCK) for length in lengths) + 3
    source = torch.Generator().manual_seed(7)
    query_heads, key_heads = heads
    q_TNH = torch.randn((sum(counts), query_heads, head_dim), generator=source).to(DEVICE, dtype)
    k_CPKH, v_CPKH = (
        torch.randn((blocks, BLOCK, key_heads, head_dim), generator=source).to(DEVICE, dtype) for _ in range(2)
    )
    step = step_of(counts, lengths, blocks=blocks)
    expected: list[Tensor] = []
    for q_tNH, table, length in zip(torch.split(q_TNH, list(counts)), step.tables, lengths, strict=True):
        k_SKH, v_SKH = (x_CPKH[table].flatten(0, 1)[:length].float() for x_CPKH in (k_CPKH, v_CPKH))
        expected.append(attend_prompt(q_tNH.float(), k_SKH, v_SKH))
        unused = list(range(table[-1] * BLOCK + (length - 1) % BLOCK + 1, (table[-1] + 1) * BLOCK))
        k_CPKH.flatten(0, 1)[unused] = 1e4  # what lies beyond a request's tokens must not matter
    attention.plan(step)
    answer_TNH = attention.attend(q_TNH, k_CPKH, v_CPKH, step)
    assert answer_TNH.dtype == dtype
    torch.testing.assert_close(answer_TNH.float(), torch.cat(expected), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128])
def test_every_head_size_is_answered(attention: PagedAttention, head_dim: int, dtype: torch.dtype) -> None:
    check(attention, [1, 1, 20], [70, 5, 33], head_dim=head_dim, dtype=dtype)


@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_query_heads_share_key_heads_in_groups_of_any_size(attention: PagedAttention, group: int) -> None:
    check(attention, [1, 1, 5], [40, 17, 21], heads=(2 * group, 2))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 130])
def test_lengths_around_the_borders_of_blocks_and_tiles_are_answered(attention: PagedAttention, length: int) -> None:
    check(attention, [1, 1], [length, 2])
    check(attention, [length + 1], [length + 1])


def test_a_chunk_of_a_prompt_sees_what_came_before_it(attention: PagedAttention) -> None:
    check(attention, [70, 3], [190, 20])


def test_one_decoding_request_with_many_tokens_is_split_over_programs(attention: PagedAttention) -> None:
    check(attention, [1], [700])


def test_padded_rows_that_all_name_one_block_change_nothing(attention: PagedAttention) -> None:
    check(attention, [1] * 8, [33, 1, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_and_fit_into_their_shared_memory(capability: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.inference.compile_kernels", str(capability)],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    shared = dict(line.split() for line in result.stdout.splitlines())
    assert set(shared) == {"decode_share", "join_shares", "prefill_tile"}
    assert max(map(int, shared.values())) < 99 * 1024  # of one program, on the smallest of these GPUs


def test_block_tables_are_flattened_with_the_tokens_of_each_last_block() -> None:
    ends, blocks, last = csr([[4, 2, 9], [7], [1, 3]], [33, 16, 17], block_size=16)
    assert (ends, blocks, last) == ([0, 3, 4, 6], [4, 2, 9, 7, 1, 3], [1, 16, 1])

"""What a device can do, and which attention it gets: one choice, with its reason, logged once."""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from services.inference.engine.cuda.attention import GatheredAttention, PagedAttention
from services.inference.engine.cuda.flash import FlashAttention, FlashInferAttention
from services.llama.config import LlamaConfig

logger = logging.getLogger(__name__)

Kind = Literal["flashinfer", "flash_attn", "triton", "gathered"]
MODULES = ("flashinfer", "flash_attn", "triton")

AMPERE = (8, 0)
VOLTA = (7, 0)
HALF = (torch.bfloat16, torch.float16)
FLASHINFER_HEADS = (64, 128, 256)
FLASH_ATTN_BLOCK = 256
WIDEST_HEAD = 256


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Facts about a device and what is installed beside it."""

    gpu: bool
    """Whether it is a CUDA device."""
    compute: tuple[int, int] = (0, 0)
    """Compute capability; (9, 0) is Hopper."""
    processors: int = 1
    """Multiprocessors."""
    modules: frozenset[str] = frozenset()
    """Which of `MODULES` can be imported."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An implementation of attention."""

    kind: Kind
    reason: str


def capabilities(device: torch.device) -> Capabilities:
    """Look at a device."""
    modules = frozenset(name for name in MODULES if find_spec(name) is not None)
    if device.type != "cuda":
        return Capabilities(gpu=False, modules=modules)
    found = torch.cuda.get_device_properties(device)
    return Capabilities(
        gpu=True, compute=(found.major, found.minor), processors=found.multi_processor_count, modules=modules
    )


def choose_attention(able: Capabilities, config: LlamaConfig, *, block_size: int, dtype: torch.dtype) -> Choice:
    """The first implementation that fits, and why those before it do not."""
    if not able.gpu:
        return Choice(kind="gathered", reason="no GPU")
    refused: list[str] = []
    for kind, objection in _objections(able, config, block_size=block_size, dtype=dtype).items():
        if not objection:
            return Choice(kind=kind, reason="; ".join(refused) or "first choice")
        refused.append(f"{kind}: {objection}")
    return Choice(kind="gathered", reason="; ".join(refused))


def open_attention(
    config: LlamaConfig, *, block_size: int, requests: int, dtype: torch.dtype, device: torch.device
) -> PagedAttention:
    """Attention for a model on a device.

    Args:
        config: Of the model.
        block_size: Tokens per block of the cache.
        requests: In one step, at most.
        dtype: Of the cache.
        device: Where it is.
    """
    able = capabilities(device)
    choice = choose_attention(able, config, block_size=block_size, dtype=dtype)
    logger.info("attention=%s device=%s compute=%s (%s)", choice.kind, device, able.compute, choice.reason)
    match choice.kind:
        case "flashinfer":
            pages = requests * -(-config.max_context // block_size)
            return FlashInferAttention(config, block_size=block_size, pages=pages, dtype=dtype, device=device)
        case "flash_attn":
            return FlashAttention()
        case "triton":
            # Imported here only: Triton is not everywhere.
            from services.inference.engine.cuda.triton_attention import TritonAttention  # noqa: PLC0415

            return TritonAttention(processors=able.processors)
        case "gathered":
            return GatheredAttention()


def _objections(able: Capabilities, config: LlamaConfig, *, block_size: int, dtype: torch.dtype) -> dict[Kind, str]:
    """What speaks against each implementation, the best first; empty when it fits."""
    against: dict[Kind, str] = {
        "flashinfer": _against_flashinfer(able, config, dtype=dtype),
        "flash_attn": _against_flash_attn(able, config, block_size=block_size, dtype=dtype),
        "triton": _against_triton(able, config, dtype=dtype),
    }
    return {kind: objection if kind in able.modules else "not installed" for kind, objection in against.items()}


def _against_flashinfer(able: Capabilities, config: LlamaConfig, *, dtype: torch.dtype) -> str:
    if able.compute < AMPERE:
        return f"compute capability {_dotted(able.compute)} is below 8.0"
    if dtype not in HALF:
        return f"no {dtype}"
    return "" if config.head_dim in FLASHINFER_HEADS else f"no head size {config.head_dim}"


def _against_flash_attn(able: Capabilities, config: LlamaConfig, *, block_size: int, dtype: torch.dtype) -> str:
    if able.compute < AMPERE:
        return f"compute capability {_dotted(able.compute)} is below 8.0"
    if dtype not in HALF:
        return f"no {dtype}"
    if block_size % FLASH_ATTN_BLOCK:
        return f"{block_size} tokens per block are no multiple of {FLASH_ATTN_BLOCK}"
    return "" if config.head_dim <= WIDEST_HEAD and config.head_dim % 8 == 0 else f"no head size {config.head_dim}"


def _against_triton(able: Capabilities, config: LlamaConfig, *, dtype: torch.dtype) -> str:
    least = AMPERE if dtype == torch.bfloat16 else VOLTA
    if able.compute < least:
        return f"compute capability {_dotted(able.compute)} is below {_dotted(least)} for {dtype}"
    return "" if config.head_dim <= WIDEST_HEAD else f"no head size {config.head_dim}"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"

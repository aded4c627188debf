"""How many tokens the key/value cache may hold."""

import psutil
import torch

from services.llama.config import LlamaConfig

MOST_TOKENS = 131_072
CPU_SHARE = 0.25
GPU_SHARE = 0.9
GPU_WORKSPACE = 2 * 2**30
"""Bytes left to activations, libraries and captured steps."""


def fitting_tokens(config: LlamaConfig, *, item_size: int, device: torch.device) -> int:
    """Tokens whose keys and values fit into the memory that is free now, after the weights were loaded.

    On a CPU a share of it, and at most `MOST_TOKENS`; on a GPU what is left of 0.9 of the whole.
    """
    bytes_per_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim * item_size
    if device.type == "cuda":
        return gpu_tokens(*torch.cuda.mem_get_info(device), bytes_per_token=bytes_per_token)
    free = int(psutil.virtual_memory().available * CPU_SHARE)
    return max(min(MOST_TOKENS, free // bytes_per_token), 1)


def gpu_tokens(free: int, total: int, *, bytes_per_token: int) -> int:
    """Tokens that fit into 0.9 of a GPU's memory beside what is taken already and the workspace, in bytes."""
    taken = total - free
    return max(int(total * GPU_SHARE - taken - GPU_WORKSPACE) // bytes_per_token, 1)

"""How many tokens the key/value cache may hold."""

import psutil
import torch

from services.llama.config import LlamaConfig

MOST_TOKENS = 131_072
CPU_SHARE = 0.25
GPU_SHARE = 0.5


def fitting_tokens(config: LlamaConfig, *, item_size: int, device: torch.device) -> int:
    """Tokens whose keys and values fit into a share of the memory that is free now, at most `MOST_TOKENS`."""
    bytes_per_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim * item_size
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    else:
        free = int(psutil.virtual_memory().available * CPU_SHARE)
    return max(min(MOST_TOKENS, free // bytes_per_token), 1)

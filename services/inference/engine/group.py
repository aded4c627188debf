"""Processes that compute one model together: sums and gathers over torch.distributed, hooked onto a shard's linears.

A shard is a smaller Llama (`services.llama.checkpoint.shard`). What makes the shards one model again are
hooks: the outputs of the output projection and of down are summed, the embedding is summed from whoever holds a token's
row, and the logits are put together on rank 0.

Letters: T tokens of the step, R rows that get logits, D width, V vocabulary.
"""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.nn.functional import pad

from services.llama.checkpoint.shard import Shard
from services.llama.config import LlamaConfig
from services.llama.model import Llama

LOOPBACK = "127.0.0.1"
STEP_SECONDS = 120.0
"""A rank that has not done its part of a step by then has hung, and the engine's process ends."""


class Group:
    """The other processes of a model, as this one sees them."""

    def __init__(self, shard: Shard, store: TCPStore, *, device: torch.device) -> None:
        self._shard = shard
        timeout = timedelta(seconds=STEP_SECONDS)
        # Groups of their own, not the process's one default group: an engine has many models. Untyped in torch's stubs.
        self._group: Any
        if device.type == "cuda":
            nccl = dist.ProcessGroupNCCL.Options()
            nccl._timeout = timeout  # noqa: SLF001 (the only way to set it)
            self._group = dist.ProcessGroupNCCL(store, shard.rank, shard.count, nccl)
        else:
            gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined] # noqa: SLF001 (the same)
            gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]  # noqa: SLF001
            gloo._timeout = timeout  # noqa: SLF001
            self._group = dist.ProcessGroupGloo(store, shard.rank, shard.count, gloo)

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the group, the same bits everywhere."""
        self._group.allreduce([tensor]).wait()
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The group's tensors of one shape, by rank, on rank 0; nothing elsewhere."""
        options = dist.GatherOptions()
        options.rootRank = 0
        parts = [torch.empty_like(tensor) for _ in range(self._shard.count)] if self._shard.rank == 0 else []
        self._group.gather([parts] if parts else [], [tensor], options).wait()
        return parts


def open_store(shard: Shard, *, port: int) -> TCPStore:
    """Where a group's processes find each other; rank 0 opens it, with port 0 on a free port."""
    timeout = timedelta(seconds=STEP_SECONDS)
    return TCPStore(LOOPBACK, port, None, shard.rank == 0, timeout, wait_for_workers=False)


def join(model: Llama, group: Group, *, shard: Shard, whole: LlamaConfig) -> None:
    """Make a shard compute its part of the whole model: embedding, sums and logits go over the group."""
    for layer in model.layers:
        for name in ("attention.o", "ffn.down"):
            layer.get_submodule(name).register_forward_hook(lambda _module, _inputs, y_TD: group.sum(y_TD))
    rows = -(-whole.vocab_size // shard.count)
    table = _VocabularyShard(model.embed.weight, group, first=shard.rank * rows)
    model.embed = table

    def whole_logits(_module: nn.Module, _inputs: object, logits_RV: Tensor) -> Tensor:
        if not len(logits_RV):
            return logits_RV.new_empty(0, whole.vocab_size)
        parts = group.gather(pad(logits_RV, (0, rows - logits_RV.shape[1])).contiguous())
        return torch.cat(parts, dim=1)[:, : whole.vocab_size] if parts else logits_RV

    model.register_forward_hook(whole_logits)


class _VocabularyShard(nn.Embedding):
    """Rows `first` and on of an embedding table; ids beyond them come from other processes."""

    def __init__(self, weight_VD: Tensor, group: Group, *, first: int) -> None:
        rows, dim = weight_VD.shape
        super().__init__(rows, dim, _weight=weight_VD.detach(), _freeze=True)
        self._group = group
        self._first = first

    def forward(self, ids_T: Tensor) -> Tensor:
        local_T = ids_T - self._first
        mine_T = (local_T >= 0) & (local_T < self.num_embeddings)
        x_TD = super().forward(local_T.clamp(0, self.num_embeddings - 1)) * mine_T[:, None]
        return self._group.sum(x_TD)

"""One step of one model: the seam between the engine's bookkeeping and the arithmetic.

A runner holds weights, adapters and the storage of the key/value blocks. It is handed the rows of a step, of any mix of
prompts and decoding requests, and answers with logits. What it computes for a row depends on that row's own request
only, whoever else is in the step.

Shapes: T rows of the step, R rows that need logits, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from services.inference.engine.adapters import Adapters
from services.inference.engine.kv_cache import PagedCache, Rows, StepAttention, slots_of
from services.llama.config import LlamaConfig
from services.llama.lora import LoraAdapter
from services.llama.model import Llama


@dataclass(frozen=True, kw_only=True)
class Part:
    """One request's rows in a step."""

    token_ids: Sequence[int]
    """The rows, at least one."""
    start: int
    """Position of the first one; everything before it is in the blocks already."""
    blocks: Sequence[int]
    """The request's block table: room for `start` + the rows."""
    adapter: str = ""
    """LoRA adapter of the request; empty means the base model."""
    logits: bool
    """Whether the last row's logits are wanted."""


class Runner(Protocol):
    """A model that computes steps. One thread calls it."""

    config: LlamaConfig

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Write the rows' keys and values into their blocks and return the logits asked for, fp32, R x V, on the CPU.

        Their order is that of `parts`.
        """
        ...

    def load_adapter(self, name: str, adapter: LoraAdapter) -> None:
        """Take an adapter that parts will name; no other one of that name is loaded."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Free an adapter; no later part names it."""
        ...

    def close(self) -> None:
        """End what does not end when the runner is forgotten, for example processes."""
        ...


class TorchRunner:
    """Plain PyTorch, on a CPU or a GPU: always there, and what every other runner is tested against."""

    def __init__(self, model: Llama, *, blocks: int, block_size: int) -> None:
        config, weights = model.config, model.embed.weight
        self.config = config
        self._model = model
        self._device = weights.device
        self._block_size = block_size
        self._adapters = Adapters(model)
        self._cache = PagedCache(
            n_layers=config.n_layers,
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            slots=blocks * block_size,
            dtype=weights.dtype,
            device=weights.device,
        )

    @torch.inference_mode()
    def forward(self, parts: Sequence[Part]) -> Tensor:
        """See `Runner`."""
        # Attention takes requests with one row for decoding ones; they go first, and the logits are put back in order.
        order = sorted(range(len(parts)), key=lambda index: (len(parts[index].token_ids) > 1, parts[index].adapter))
        ids: list[int] = []
        positions: list[int] = []
        rows: list[Rows] = []
        last_rows: dict[int, int] = {}
        for index in order:
            part = parts[index]
            end = part.start + len(part.token_ids)
            ids += part.token_ids
            positions += range(part.start, end)
            slots_S = slots_of(part.blocks, tokens=end, block_size=self._block_size, device=self._device)
            rows.append(Rows(slots_S, len(part.token_ids)))
            if part.logits:
                last_rows[index] = len(ids) - 1
        with self._adapters.applied([(parts[index].adapter, len(parts[index].token_ids)) for index in order]):
            logits_RV: Tensor = self._model(
                torch.tensor(ids, device=self._device),
                positions_T=torch.tensor(positions, device=self._device),
                attend=StepAttention(self._cache, rows),
                rows_R=torch.tensor(
                    [last_rows[index] for index in sorted(last_rows)], device=self._device, dtype=torch.long
                ),
            )
        return logits_RV.cpu()

    def load_adapter(self, name: str, adapter: LoraAdapter) -> None:
        """See `Runner`."""
        self._adapters.load(name, adapter)

    def unload_adapter(self, name: str) -> None:
        """See `Runner`."""
        self._adapters.unload(name)

    def close(self) -> None:
        """See `Runner`; there is nothing."""

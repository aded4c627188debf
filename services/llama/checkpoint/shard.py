"""Which part of every tensor one of several processes holds when they compute a model together. Torch-free.

The split is Megatron's (arXiv 1909.08053, section 3): queries, keys, values, gate and up by their outputs, so that each
process has whole heads; the output projection and down by their inputs, whose products are summed over the processes;
embedding and head by vocabulary. Norms are in every process.
"""

import dataclasses
from dataclasses import dataclass

from services.llama.checkpoint.layout import TensorSpec
from services.llama.config import LlamaConfig
from services.llama.errors import ConfigError


@dataclass(frozen=True)
class Span:
    """A part of one axis of a tensor."""

    axis: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of a model that one process holds."""

    rank: int = 0
    """Which one, from 0."""
    count: int = 1
    """Processes that share the model."""

    def span(self, spec: TensorSpec) -> Span:
        """The part of a tensor; the last processes have fewer rows of a vocabulary that does not divide evenly."""
        if spec.split == "copied":
            return Span(0, 0, spec.shape[0])
        axis = 1 if spec.split == "columns" else 0
        size = -(-spec.shape[axis] // self.count)
        start = min(self.rank * size, spec.shape[axis])
        return Span(axis, start, min(start + size, spec.shape[axis]))

    def config(self, whole: LlamaConfig) -> LlamaConfig:
        """Shape of the part, which is a Llama of its own but for the sums.

        Raises:
            ConfigError: If the heads or the feed-forward cannot be divided among so many.
        """
        for name in ("n_kv_heads", "ffn_dim"):
            size = getattr(whole, name)
            if size % self.count:
                raise ConfigError(
                    f"tensor_parallel {self.count} does not divide the model's {name} {size}; "
                    f"possible are {', '.join(str(n) for n in range(1, whole.n_kv_heads + 1) if _divides(n, whole))}"
                )
        size = -(-whole.vocab_size // self.count)
        rows = min(size, whole.vocab_size - self.rank * size)
        if rows < 1:
            raise ConfigError(f"tensor_parallel {self.count} leaves a process without any of the vocabulary")
        return dataclasses.replace(
            whole,
            vocab_size=rows,
            n_heads=whole.n_heads // self.count,
            n_kv_heads=whole.n_kv_heads // self.count,
            ffn_dim=whole.ffn_dim // self.count,
        )


WHOLE = Shard()
"""All of a model in one process."""


def _divides(count: int, config: LlamaConfig) -> bool:
    return config.n_kv_heads % count == 0 and config.ffn_dim % count == 0

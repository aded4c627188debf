"""The shape of a Llama-family model, and the published shapes by name. Readers: `config_readers.py`."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from services.llama.errors import ConfigError

Quantisation = Literal["none", "int8", "int4", "fp8"]
"""Format of the linears' weights; `quant.py` says what each one is."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary frequencies (the Llama 3 paper, arXiv 2407.21783, and its released code)."""

    factor: float
    """Times by which the slowest frequencies are slowed; 8 in Llama 3.1, 32 in Llama 3.2 1B and 3B."""
    low_freq_factor: float
    """Wavelengths longer than original_context / this, in positions, are slowed by the whole factor."""
    high_freq_factor: float
    """Wavelengths shorter than original_context / this, in positions, are left alone; in between is blended."""
    original_context: int
    """Positions the model was trained on before the stretch."""

    def __post_init__(self) -> None:
        if self.factor < 1 or self.original_context < 1 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(f"rope scaling needs factor >= 1 and 0 < low_freq_factor < high_freq_factor, got {self}")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Everything that decides the shapes and the arithmetic of one model.

    Raises:
        ConfigError: a size is not positive, or sizes do not fit together.
    """

    vocab_size: int
    """Rows of the embedding table, special tokens included."""
    dim: int
    """Width of the residual stream."""
    n_layers: int
    """Transformer blocks."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Key/value heads; each serves n_heads / n_kv_heads query heads (GQA)."""
    head_dim: int
    """Size of one head; even, since the rotation turns pairs."""
    ffn_dim: int
    """Inner width of the SwiGLU feed-forward."""
    norm_eps: float
    """Added to the mean square inside RMSNorm."""
    rope_theta: float
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = None
    """How the rotary frequencies are stretched; None leaves them as trained."""
    max_context: int
    """Most positions one sequence may have, prompt and answer together."""
    tied_head: bool
    """Whether the output head is the embedding table itself."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 < value < math.inf:
                raise ConfigError(f"{field.name} is {value}; it must be positive")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs")

    def to_json(self) -> str:
        """The configuration as a JSON object of our own field names, for the wire and for job records."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LlamaConfig":
        """Undo `to_json`.

        Raises:
            ConfigError: not a JSON object, or a key is unknown or missing.
        """
        try:
            fields = json.loads(text)
            scaling = fields.pop("rope_scaling", None)
            return cls(**fields, rope_scaling=RopeScaling(**scaling) if scaling else None)
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is no LlamaConfig written by to_json: {error}") from error

    @property
    def parameter_count(self) -> int:
        """Numbers in the checkpoint; a tied head counts once."""
        attention = self.dim * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)
        layer = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        tables = self.vocab_size * self.dim * (1 if self.tied_head else 2)
        return self.n_layers * layer + tables + self.dim


def _llama3(*, factor: float = 8.0, **sizes: Any) -> LlamaConfig:  # noqa: ANN401 - sizes of mixed type, checked by the dataclass
    """A published Llama 3.1 to 3.3 shape: vocabulary, rotary base and head size are common to all of them."""
    scaling = RopeScaling(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
    common = {"vocab_size": 128_256, "head_dim": 128, "n_kv_heads": 8, "tied_head": False} | sizes
    return LlamaConfig(**common, norm_eps=1e-5, rope_theta=500_000.0, rope_scaling=scaling, max_context=131_072)


_LLAMA_70B = _llama3(dim=8192, n_layers=80, n_heads=64, ffn_dim=28_672)

# Sources: the config.json and params.json files that Meta publishes with each model.
PRESETS: dict[str, LlamaConfig] = {
    "llama-3.1-8b": _llama3(dim=4096, n_layers=32, n_heads=32, ffn_dim=14_336),
    "llama-3.1-70b": _LLAMA_70B,
    "llama-3.1-405b": _llama3(dim=16_384, n_layers=126, n_heads=128, ffn_dim=53_248),
    "llama-3.2-1b": _llama3(
        dim=2048, n_layers=16, n_heads=32, ffn_dim=8192, head_dim=64, tied_head=True, factor=32.0
    ),
    "llama-3.2-3b": _llama3(dim=3072, n_layers=28, n_heads=24, ffn_dim=8192, tied_head=True, factor=32.0),
    "llama-3.3-70b": _LLAMA_70B,
    "smollm2-135m": LlamaConfig(
        vocab_size=49_152, dim=576, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, ffn_dim=1536,
        norm_eps=1e-5, rope_theta=100_000.0, max_context=8192, tied_head=True,
    ),
    # Seeded random weights for tests: every feature of the family at a size that runs in milliseconds.
    "tiny": LlamaConfig(
        vocab_size=512, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=128,
        norm_eps=1e-5, rope_theta=500_000.0, max_context=131_072, tied_head=False,
        rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192),
    ),
}  # fmt: skip

"""A BERT encoder in plain PyTorch (arXiv:1810.04805), and sentence vectors of it (pooling after arXiv:1908.10084).

Shapes: B texts, S tokens of the longest text, D width, N heads, H head size.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize, scaled_dot_product_attention

from services.inference.engine.encoder_weights import Weights, padded, read_weights


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of a BERT encoder."""

    dim: int
    """Width of the vectors."""
    n_layers: int
    """Encoder layers."""
    n_heads: int
    """Attention heads."""
    norm_eps: float
    """Added to the variance in layer norms."""

    @classmethod
    def read(cls, folder: Path) -> "BertConfig":
        """Read a Hugging Face folder's config.json.

        Raises:
            ValueError: If the folder holds another architecture or settings that are not implemented.
        """
        raw = json.loads((folder / "config.json").read_text())
        for key, wanted in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if raw.get(key, wanted) != wanted:
                raise ValueError(f"{folder / 'config.json'}: {key} is {raw[key]!r}; only {wanted!r} is supported")
        return cls(
            dim=raw["hidden_size"],
            n_layers=raw["num_hidden_layers"],
            n_heads=raw["num_attention_heads"],
            norm_eps=raw["layer_norm_eps"],
        )


class BertEncoder:
    """Hidden states of token ids, in fp32.

    Args:
        config: Sizes.
        weights: By their names in Hugging Face folders.
        prefix: What their names begin with, for example `bert.` where a head stands beside the encoder.
    """

    def __init__(self, config: BertConfig, weights: Weights, *, prefix: str = "") -> None:
        self.config = config
        self._weights = weights
        self._prefix = prefix

    def encode(self, ids_BS: Tensor, real_BS: Tensor, types_BS: Tensor | None = None) -> Tensor:
        """Hidden states (B, S, D); those of padding, where `real_BS` is False, mean nothing. No types are all 0."""
        types = self._tensor("embeddings.token_type_embeddings.weight")
        x_BSD = (
            embedding(ids_BS, self._tensor("embeddings.word_embeddings.weight"))
            + self._tensor("embeddings.position_embeddings.weight")[: ids_BS.shape[1]]
            + (types[0] if types_BS is None else embedding(types_BS, types))
        )
        x_BSD = self._norm(x_BSD, "embeddings.LayerNorm")
        for layer in range(self.config.n_layers):
            prefix = f"encoder.layer.{layer}"
            a_BSD = self._attention(x_BSD, real_BS, f"{prefix}.attention.self")
            x_BSD = self._norm(
                x_BSD + self._linear(a_BSD, f"{prefix}.attention.output.dense"), f"{prefix}.attention.output.LayerNorm"
            )
            f_BSF = gelu(self._linear(x_BSD, f"{prefix}.intermediate.dense"))
            x_BSD = self._norm(x_BSD + self._linear(f_BSF, f"{prefix}.output.dense"), f"{prefix}.output.LayerNorm")
        return x_BSD

    def _attention(self, x_BSD: Tensor, real_BS: Tensor, prefix: str) -> Tensor:
        shape = (*x_BSD.shape[:2], self.config.n_heads, -1)
        q_BNSH, k_BNSH, v_BNSH = (
            self._linear(x_BSD, f"{prefix}.{part}").view(shape).transpose(1, 2) for part in ("query", "key", "value")
        )
        o_BNSH = scaled_dot_product_attention(q_BNSH, k_BNSH, v_BNSH, attn_mask=real_BS[:, None, None])
        return o_BNSH.transpose(1, 2).flatten(2)

    def _tensor(self, name: str) -> Tensor:
        return self._weights[self._prefix + name]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias")
        return layer_norm(x, (self.config.dim,), weight, bias, self.config.norm_eps)


class BertEmbedder:
    """Mean-pooled, normalised sentence vectors in fp32."""

    def __init__(self, config: BertConfig, weights: Weights) -> None:
        self.config = config
        self._weights = weights
        self._encoder = BertEncoder(config, weights)

    @classmethod
    def load(cls, folder: Path, *, device: str) -> "BertEmbedder":
        """Read config.json and the weights of a sentence-transformers folder.

        Raises:
            ValueError: If a tensor is missing.
        """
        config = BertConfig.read(folder)
        weights = read_weights(folder, device=device)
        for name in ("embeddings.word_embeddings.weight", f"encoder.layer.{config.n_layers - 1}.output.dense.weight"):
            weights[name]
        return cls(config, weights)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self._weights.parameters

    @torch.inference_mode()
    def embed(self, texts: list[list[int]]) -> Tensor:
        """Vectors of length 1, (B, D), of texts given as token ids with their special tokens."""
        ids_BS, real_BS = padded(texts, device=self._weights.device)
        x_BSD = self._encoder.encode(ids_BS, real_BS)
        return normalize(mean_pooled(x_BSD, real_BS), dim=-1)


def mean_pooled(x_BSD: Tensor, real_BS: Tensor) -> Tensor:
    """Mean of the hidden states of each text's own tokens, (B, D)."""
    return (x_BSD * real_BS[..., None]).sum(1) / real_BS.sum(1, keepdim=True)

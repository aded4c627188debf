"""A BERT encoder for sentence embeddings, in plain PyTorch (arXiv:1810.04805; pooling after arXiv:1908.10084).

Shapes: B texts, S tokens of the longest text, D width, N heads, H head size.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize, scaled_dot_product_attention


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


class BertEmbedder:
    """Mean-pooled, normalised sentence vectors in fp32."""

    def __init__(self, config: BertConfig, weights: dict[str, Tensor]) -> None:
        self.config = config
        self._weights = weights

    @classmethod
    def load(cls, folder: Path, *, device: str) -> "BertEmbedder":
        """Read config.json and model.safetensors of a sentence-transformers folder.

        Raises:
            ValueError: If a tensor is missing.
        """
        config = BertConfig.read(folder)
        file = folder / "model.safetensors"
        with safe_open(file, framework="pt", device=device) as tensors:
            weights = {name: tensors.get_tensor(name).float() for name in tensors.keys()}  # noqa: SIM118 (no dict)
        for name in ("embeddings.word_embeddings.weight", f"encoder.layer.{config.n_layers - 1}.output.dense.weight"):
            if name not in weights:
                raise ValueError(f"{file}: tensor {name} is missing")
        return cls(config, weights)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self._weights.values() if tensor.is_floating_point())

    @torch.inference_mode()
    def embed(self, texts: list[list[int]]) -> Tensor:
        """Vectors of length 1, (B, D), of texts given as token ids with their special tokens."""
        device = self._weights["embeddings.word_embeddings.weight"].device
        lengths_B = torch.tensor([len(ids) for ids in texts], device=device)
        longest = int(lengths_B.max())
        ids_BS = torch.tensor([ids + [0] * (longest - len(ids)) for ids in texts], device=device)
        real_BS = torch.arange(longest, device=device)[None] < lengths_B[:, None]
        x_BSD = self._encode(ids_BS, real_BS)
        mean_BD = (x_BSD * real_BS[..., None]).sum(1) / lengths_B[:, None]
        return normalize(mean_BD, dim=-1)

    def _encode(self, ids_BS: Tensor, real_BS: Tensor) -> Tensor:
        weights = self._weights
        x_BSD = (
            embedding(ids_BS, weights["embeddings.word_embeddings.weight"])
            + weights["embeddings.position_embeddings.weight"][: ids_BS.shape[1]]
            + weights["embeddings.token_type_embeddings.weight"][0]
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

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(
            x, (self.config.dim,), self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], self.config.norm_eps
        )

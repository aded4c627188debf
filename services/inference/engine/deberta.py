"""A DeBERTa-v2 encoder in plain PyTorch: DeBERTa-v2, DeBERTa-v3 and mDeBERTa (arXiv:2006.03654, arXiv:2111.09543).

Attention is disentangled: beside content to content it scores a token's content against the relative position of the
other token (c2p) and the other's content against its own (p2c). Relative positions share one table of vectors for all
layers; near ones have an entry each, far ones share entries in logarithmic steps.

Shapes: B texts, S tokens of the longest text, D width, N heads, H head size, R relative positions.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv1d, embedding, gelu, layer_norm, linear, relu

from services.inference.engine.encoder_weights import Weights

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "relu": relu, "tanh": torch.tanh}
_DIRECTIONS = ("c2p", "p2c")


@dataclass(frozen=True, kw_only=True)
class DebertaConfig:
    """Shape of a DeBERTa-v2 encoder."""

    dim: int
    """Width of the hidden states."""
    n_layers: int
    """Encoder layers."""
    n_heads: int
    """Attention heads."""
    norm_eps: float
    """Added to the variance in layer norms."""
    activation: str
    """Of the feed-forward layers, one of `ACTIVATIONS`."""
    relative: bool
    """Whether attention sees relative positions."""
    directions: tuple[str, ...]
    """Which scores it adds for them, of `c2p` and `p2c`."""
    buckets: int
    """Entries per direction when far positions share them; 0 means that each position has its own."""
    max_distance: int
    """Relative positions beyond it are taken as it."""
    shared_keys: bool
    """Whether positions go through the projections of the content; else they have their own."""
    norms_positions: bool
    """Whether a layer norm goes over the vectors of relative positions."""
    has_positions: bool
    """Whether absolute positions are added to the embeddings."""
    has_types: bool
    """Whether token types are."""
    convolution: int
    """Width of the convolution beside the first layer; 0 means none."""
    convolution_groups: int
    """Its groups."""
    convolution_activation: str
    """Its activation, one of `ACTIVATIONS`."""

    @property
    def span(self) -> int:
        """Entries of the table of relative positions, per direction."""
        return self.buckets or self.max_distance

    @classmethod
    def read(cls, folder: Path) -> "DebertaConfig":
        """Read a Hugging Face folder's config.json.

        Raises:
            ValueError: If it asks for what is not implemented.
        """
        file = folder / "config.json"
        raw = json.loads(file.read_text())
        directions = _directions(raw)
        activation = raw.get("hidden_act", "gelu")
        convolution_activation = raw.get("conv_act", "tanh")
        for name in (activation, convolution_activation):
            if name not in ACTIVATIONS:
                raise ValueError(f"{file}: activation {name!r} is not supported; known: {', '.join(ACTIVATIONS)}")
        if unknown := set(directions) - set(_DIRECTIONS):
            raise ValueError(f"{file}: pos_att_type {min(unknown)!r} is not supported; known: {', '.join(_DIRECTIONS)}")
        if raw["hidden_size"] != raw["num_attention_heads"] * raw.get(
            "attention_head_size", raw["hidden_size"] // raw["num_attention_heads"]
        ):
            raise ValueError(f"{file}: heads of another size than width / heads are not supported")
        distance = raw.get("max_relative_positions", -1)
        return cls(
            dim=raw["hidden_size"],
            n_layers=raw["num_hidden_layers"],
            n_heads=raw["num_attention_heads"],
            norm_eps=raw.get("layer_norm_eps", 1e-7),
            activation=activation,
            relative=bool(raw.get("relative_attention", False)),
            directions=directions,
            buckets=max(raw.get("position_buckets", -1), 0),
            max_distance=distance if distance >= 1 else raw["max_position_embeddings"],
            shared_keys=bool(raw.get("share_att_key", False)),
            norms_positions="layer_norm" in str(raw.get("norm_rel_ebd", "none")).lower(),
            has_positions=bool(raw.get("position_biased_input", True)),
            has_types=raw.get("type_vocab_size", 0) > 0,
            convolution=raw.get("conv_kernel_size", 0),
            convolution_groups=raw.get("conv_groups", 1),
            convolution_activation=convolution_activation,
        )


def _directions(raw: Mapping[str, Any]) -> tuple[str, ...]:
    stated = raw.get("pos_att_type") or []
    names = stated.lower().split("|") if isinstance(stated, str) else stated
    return tuple(name.strip() for name in names)


def position_buckets(length: int, *, buckets: int, max_distance: int) -> Tensor:
    """Entry (S, S) of each query's and key's relative position, query minus key; negative to the left.

    Up to half of `buckets` a distance is its own entry; from there to `max_distance` they grow logarithmically
    (arXiv:2006.03654, equation 3, with the logarithmic steps of the authors' second version). In fp32, as the models
    were trained: a last bit decides which entry a distance at a border has.
    """
    places = torch.arange(length)
    distance_SS = places[:, None] - places[None]
    if not buckets:
        return distance_SS
    half = buckets // 2
    far_SS = distance_SS.abs().clamp(min=half) / half
    steps_SS = torch.ceil(far_SS.log() / torch.tensor((max_distance - 1) / half).log() * (half - 1)) + half
    return torch.where(distance_SS.abs() <= half, distance_SS, (steps_SS * distance_SS.sign()).long())


class _Positions(NamedTuple):
    """The relative positions of a length."""

    places_SS: Tensor
    """Of each query and key, among `rows`."""
    rows: slice
    """Those of the tables that this length has; only they are multiplied."""


class DebertaEncoder:
    """Hidden states of token ids, in fp32.

    Args:
        config: Shape.
        weights: By their names in Hugging Face folders.
        prefix: What their names begin with.
    """

    def __init__(self, config: DebertaConfig, weights: Weights, *, prefix: str = "deberta.") -> None:
        self.config = config
        self._weights = weights
        self._prefix = prefix
        # Projections of the table of positions do not depend on the text; made here once, they cost nothing per text.
        self._tables = [self._position_tables(layer) for layer in range(config.n_layers)] if config.relative else []

    def encode(self, ids_BS: Tensor, real_BS: Tensor, types_BS: Tensor | None = None) -> Tensor:
        """Hidden states (B, S, D); those of padding, where `real_BS` is False, mean nothing. No types are all 0."""
        x_BSD = embedded_BSD = self._embed(ids_BS, types_BS) * real_BS[..., None]
        positions = self._positions(ids_BS.shape[1])
        for layer in range(self.config.n_layers):
            prefix = f"encoder.layer.{layer}"
            a_BSD = self._attention(x_BSD, real_BS, positions, layer)
            x_BSD = self._norm(
                x_BSD + self._linear(a_BSD, f"{prefix}.attention.output.dense"), f"{prefix}.attention.output.LayerNorm"
            )
            f_BSF = ACTIVATIONS[self.config.activation](self._linear(x_BSD, f"{prefix}.intermediate.dense"))
            x_BSD = self._norm(x_BSD + self._linear(f_BSF, f"{prefix}.output.dense"), f"{prefix}.output.LayerNorm")
            if layer == 0 and self.config.convolution:
                x_BSD = self._convolve(embedded_BSD, x_BSD, real_BS)
        return x_BSD

    def _embed(self, ids_BS: Tensor, types_BS: Tensor | None) -> Tensor:
        config = self.config
        x_BSE = embedding(ids_BS, self._tensor("embeddings.word_embeddings.weight"))
        if config.has_positions:
            x_BSE = x_BSE + self._tensor("embeddings.position_embeddings.weight")[: ids_BS.shape[1]]
        if config.has_types:
            types = self._tensor("embeddings.token_type_embeddings.weight")
            x_BSE = x_BSE + (types[0] if types_BS is None else embedding(types_BS, types))
        if x_BSE.shape[-1] != config.dim:
            x_BSE = linear(x_BSE, self._tensor("embeddings.embed_proj.weight"))
        return self._norm(x_BSE, "embeddings.LayerNorm")

    def _positions(self, length: int) -> _Positions:
        config = self.config
        if not config.relative:
            return _Positions(torch.empty(0), slice(0))
        entries_SS = position_buckets(length, buckets=config.buckets, max_distance=config.max_distance) + config.span
        entries_SS = entries_SS.clamp(0, 2 * config.span - 1)
        low, high = int(entries_SS.min()), int(entries_SS.max()) + 1
        return _Positions((entries_SS - low).to(self._weights.device), slice(low, high))

    def _position_tables(self, layer: int) -> dict[str, Tensor]:
        """Keys (`c2p`) and queries (`p2c`) of the relative positions, (N, H, R)."""
        config = self.config
        table_RD = self._tensor("encoder.rel_embeddings.weight")[: 2 * config.span]
        if config.norms_positions:
            table_RD = self._norm(table_RD, "encoder.LayerNorm")
        prefix = f"encoder.layer.{layer}.attention.self"
        names = ("key_proj", "query_proj") if config.shared_keys else ("pos_key_proj", "pos_query_proj")
        return {
            direction: self._linear(table_RD, f"{prefix}.{name}")
            .view(len(table_RD), config.n_heads, -1)
            .permute(1, 2, 0)
            for direction, name in zip(_DIRECTIONS, names, strict=True)
            if direction in config.directions
        }

    def _attention(self, x_BSD: Tensor, real_BS: Tensor, positions: _Positions, layer: int) -> Tensor:
        prefix = f"encoder.layer.{layer}.attention.self"
        shape = (*x_BSD.shape[:2], self.config.n_heads, -1)
        q_BNSH, k_BNSH, v_BNSH = (
            self._linear(x_BSD, f"{prefix}.{part}_proj").view(shape).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores_BNSS = q_BNSH @ k_BNSH.transpose(-1, -2)
        if self.config.relative:
            scores_BNSS = scores_BNSS + self._position_scores(q_BNSH, k_BNSH, positions, self._tables[layer])
        # Every kind of score adds variance, so their sum is scaled by the square root of their number too.
        scores_BNSS = scores_BNSS / math.sqrt(q_BNSH.shape[-1] * (1 + len(self.config.directions)))
        scores_BNSS = scores_BNSS.masked_fill(~real_BS[:, None, None], float("-inf"))
        return (scores_BNSS.softmax(-1) @ v_BNSH).transpose(1, 2).flatten(2)

    def _position_scores(
        self, q_BNSH: Tensor, k_BNSH: Tensor, positions: _Positions, tables: Mapping[str, Tensor]
    ) -> Tensor:
        """Scores (B, N, S, S) of contents against relative positions."""
        places_BNSS = positions.places_SS.expand(*q_BNSH.shape[:2], -1, -1)
        scores = q_BNSH.new_zeros(())
        if "c2p" in tables:
            scores = scores + (q_BNSH @ tables["c2p"][..., positions.rows]).gather(-1, places_BNSS)
        if "p2c" in tables:
            by_key_BNSS = (k_BNSH @ tables["p2c"][..., positions.rows]).gather(-1, places_BNSS.transpose(-1, -2))
            scores = scores + by_key_BNSS.transpose(-1, -2)
        return scores

    def _convolve(self, embedded_BSD: Tensor, x_BSD: Tensor, real_BS: Tensor) -> Tensor:
        """The first layer's output with a convolution of its input added, as DeBERTa-v2's larger models have it."""
        config, real_BS1 = self.config, real_BS[..., None]
        out_BDS = conv1d(
            embedded_BSD.transpose(1, 2),
            self._tensor("encoder.conv.conv.weight"),
            self._tensor("encoder.conv.conv.bias"),
            padding=(config.convolution - 1) // 2,
            groups=config.convolution_groups,
        )
        out_BSD = ACTIVATIONS[config.convolution_activation](out_BDS.transpose(1, 2) * real_BS1)
        return self._norm(x_BSD + out_BSD, "encoder.conv.LayerNorm") * real_BS1

    def _tensor(self, name: str) -> Tensor:
        return self._weights[self._prefix + name]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias")
        return layer_norm(x, (self.config.dim,), weight, bias, self.config.norm_eps)

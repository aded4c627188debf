"""The Llama 3 family: grouped-query attention, rotary positions, RMSNorm, SwiGLU, tied or separate head.

The model sees a flat run of T tokens, of one request or of many. Who may look at whom, and where keys and values
are kept, is the caller's business: it passes an `Attend`. Batching, chunked prefill and paging need nothing from here.

Letters: T tokens of the step, R rows that get logits, D width, N query heads, K key/value heads, H head size,
F half a head, I inner width of the feed-forward, V vocabulary, L layers.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from services.llama.config import LlamaConfig
from services.llama.rope import cos_sin, inverse_frequencies, rotate


class Attend(Protocol):
    """Attention as the caller wants it: it owns the key/value cache and the mask."""

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        """Store this step's keys and values of the layer, and answer its queries.

        Queries and keys come rotated; the scale 1 / sqrt(H) is the callee's. Returns o_TNH in the dtype of q_TNH.
        """
        ...


class CausalAttention:
    """An `Attend` for one whole sequence, without a cache: token t sees tokens 0 to t of the same call."""

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:  # noqa: ARG002 - no cache
        """Plain causal attention; see `Attend`."""
        q_NTH, k_KTH, v_KTH = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
        o_NTH = F.scaled_dot_product_attention(q_NTH, k_KTH, v_KTH, is_causal=True, enable_gqa=True)
        return o_NTH[0].transpose(0, 1)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) times a learned gain (arXiv 1910.07467); in fp32, whatever the model's dtype."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Normalise each row; returns x's dtype. Rounds once before the gain, as the published models do."""
        wide_TD = x_TD.float()
        scale_T1 = torch.rsqrt(wide_TD.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide_TD * scale_T1).to(x_TD.dtype) * self.weight


class Attention(nn.Module):
    """Project to heads, rotate by position, let the caller attend, project back."""

    def __init__(self, config: LlamaConfig, *, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.q = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.k = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.o = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def forward(self, x_TD: Tensor, *, cos_TF: Tensor, sin_TF: Tensor, attend: Attend) -> Tensor:
        """One layer's attention over the rows of x_TD."""
        q_TNH = self.q(x_TD).unflatten(-1, (-1, self.head_dim))
        k_TKH = self.k(x_TD).unflatten(-1, (-1, self.head_dim))
        v_TKH = self.v(x_TD).unflatten(-1, (-1, self.head_dim))
        q_TNH = rotate(q_TNH, cos_TF=cos_TF, sin_TF=sin_TF)
        k_TKH = rotate(k_TKH, cos_TF=cos_TF, sin_TF=sin_TF)
        o_TNH = attend(self.layer, q_TNH, k_TKH, v_TKH)
        out_TD: Tensor = self.o(o_TNH.flatten(-2))
        return out_TD


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Each row on its own."""
        inner_TI = F.silu(self.gate(x_TD)) * self.up(x_TD)
        out_TD: Tensor = self.down(inner_TI)
        return out_TD


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, config: LlamaConfig, *, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config, layer=layer)
        self.ffn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x_TD: Tensor, *, cos_TF: Tensor, sin_TF: Tensor, attend: Attend) -> Tensor:
        """The residual stream after this layer."""
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), cos_TF=cos_TF, sin_TF=sin_TF, attend=attend)
        out_TD: Tensor = x_TD + self.ffn(self.ffn_norm(x_TD))
        return out_TD


class Llama(nn.Module):
    """The whole model. Parameters are uninitialised until a loader or `seeded` fills them.

    Build it under `torch.device("meta")` to spend no memory on weights that are about to be replaced.
    """

    freq_F: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim, _weight=torch.empty(config.vocab_size, config.dim))
        self.layers = nn.ModuleList(Block(config, layer=layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.head: nn.Module | None = None
        if not config.tied_head:
            self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.reset_rope()

    def reset_rope(self, *, device: str | torch.device = "cpu") -> None:
        """(Re)compute the rotary frequencies: kept in fp32 on `device`, never part of a checkpoint."""
        with torch.device(device):
            self.freq_F = inverse_frequencies(self.config)

    def forward(self, ids_T: Tensor, *, positions_T: Tensor, attend: Attend, rows_R: Tensor | None = None) -> Tensor:
        """Logits, fp32, R x V, of the rows asked for.

        Args:
            ids_T: token ids, any number of requests one after the other.
            positions_T: each token's position in its own request, from 0.
            attend: attention and key/value cache.
            rows_R: which rows of T get logits; None means all. A prompt needs only its last one.
        """
        cos_TF, sin_TF = cos_sin(positions_T, freq_F=self.freq_F)
        x_TD = self.embed(ids_T)
        for block in self.layers:
            x_TD = block(x_TD, cos_TF=cos_TF, sin_TF=sin_TF, attend=attend)
        x_RD = x_TD if rows_R is None else x_TD[rows_R]
        x_RD = self.norm(x_RD)
        logits_RV: Tensor = F.linear(x_RD, self.embed.weight) if self.head is None else self.head(x_RD)
        return logits_RV.float()

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, packed or not."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    @property
    def head_weight(self) -> Tensor:
        """V x D output matrix; the embedding table itself where the head is tied."""
        weight = self.embed.weight if self.head is None else self.head.weight
        assert isinstance(weight, Tensor)
        return weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Llama":  # noqa: FBT001, FBT002 - torch's own
        """Follow the parameters to another device, but keep the frequencies in fp32 whatever their dtype becomes."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.embed.weight.device != self.freq_F.device:
            self.reset_rope(device=self.embed.weight.device)
        return self

    @classmethod
    def seeded(cls, config: LlamaConfig, seed: int) -> "Llama":
        """A model of random fp32 weights on the CPU, the same for the same seed; for tests and demonstrations."""
        model = cls(config)
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5, generator=source)
                else:
                    parameter.normal_(0.0, 0.08 if name == "embed.weight" else config.dim**-0.5, generator=source)
        return model.eval().requires_grad_(requires_grad=False)

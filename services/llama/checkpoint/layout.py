"""One table of the tensors of a Llama: our name, Hugging Face's, Meta's, GGUF's, the shape and how Meta splits it.

Letters: D width, N query heads, K key/value heads, H head size, I inner width, V vocabulary.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from services.llama.config import LlamaConfig
from services.llama.errors import CheckpointError

Split = Literal["rows", "columns", "either", "copied"]
Array = TypeVar("Array")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of the model and what each kind of checkpoint calls it."""

    ours: str
    """Name in the state of `services.llama.model.Llama`."""
    hf: str
    """Name in Hugging Face safetensors, and in what we convert to."""
    meta: str
    """Name in Meta's consolidated files."""
    gguf: str
    """Name in GGUF files."""
    shape: tuple[int, ...]
    """Numbers per axis, outermost first."""
    split: Split
    """The axis along which Meta's model-parallel files divide it."""
    rotary_heads: int = 0
    """Heads of a query or key projection, whose rows Meta and GGUF order in neighbouring pairs; 0 for the others."""


def tensor_specs(config: LlamaConfig) -> list[TensorSpec]:
    """Every tensor of a model of this shape; a tied head has none of its own."""
    dim, vocab = config.dim, config.vocab_size
    specs = [
        TensorSpec(
            ours="embed.weight", hf="model.embed_tokens.weight", meta="tok_embeddings.weight",
            gguf="token_embd.weight", shape=(vocab, dim), split="either",
        )
    ]  # fmt: skip
    for layer in range(config.n_layers):
        specs.extend(_layer_specs(config, layer))
    specs.append(
        TensorSpec(
            ours="norm.weight", hf="model.norm.weight", meta="norm.weight",
            gguf="output_norm.weight", shape=(dim,), split="copied",
        )
    )  # fmt: skip
    return specs if config.tied_head else [*specs, head_spec(config)]


def linear_specs(config: LlamaConfig) -> list[TensorSpec]:
    """The linears of every layer, which LoRA and quantisation change; not the embedding and not the head."""
    return [spec for spec in tensor_specs(config) if spec.ours.startswith("layers.") and len(spec.shape) == 2]


def head_spec(config: LlamaConfig) -> TensorSpec:
    """The output matrix, which some checkpoints with a tied head store all the same."""
    return TensorSpec(
        ours="head.weight", hf="lm_head.weight", meta="output.weight",
        gguf="output.weight", shape=(config.vocab_size, config.dim), split="rows",
    )  # fmt: skip


def _layer_specs(config: LlamaConfig, layer: int) -> Iterable[TensorSpec]:
    dim, inner = config.dim, config.ffn_dim
    q_rows, kv_rows = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    rows: list[tuple[str, str, str, str, tuple[int, ...], Split, int]] = [
        ("attention_norm", "input_layernorm", "attention_norm", "attn_norm", (dim,), "copied", 0),
        ("attention.q", "self_attn.q_proj", "attention.wq", "attn_q", (q_rows, dim), "rows", config.n_heads),
        ("attention.k", "self_attn.k_proj", "attention.wk", "attn_k", (kv_rows, dim), "rows", config.n_kv_heads),
        ("attention.v", "self_attn.v_proj", "attention.wv", "attn_v", (kv_rows, dim), "rows", 0),
        ("attention.o", "self_attn.o_proj", "attention.wo", "attn_output", (dim, q_rows), "columns", 0),
        ("ffn_norm", "post_attention_layernorm", "ffn_norm", "ffn_norm", (dim,), "copied", 0),
        ("ffn.gate", "mlp.gate_proj", "feed_forward.w1", "ffn_gate", (inner, dim), "rows", 0),
        ("ffn.up", "mlp.up_proj", "feed_forward.w3", "ffn_up", (inner, dim), "rows", 0),
        ("ffn.down", "mlp.down_proj", "feed_forward.w2", "ffn_down", (dim, inner), "columns", 0),
    ]
    for ours, hf, meta, gguf, shape, split, heads in rows:
        yield TensorSpec(
            ours=f"layers.{layer}.{ours}.weight", hf=f"model.layers.{layer}.{hf}.weight",
            meta=f"layers.{layer}.{meta}.weight", gguf=f"blk.{layer}.{gguf}.weight",
            shape=shape, split=split, rotary_heads=heads,
        )  # fmt: skip


def check_tensors(
    found: Mapping[str, tuple[int, ...]],
    *,
    expected: Mapping[str, tuple[int, ...]],
    files: Mapping[str, Path],
    at: Path,
) -> None:
    """Compare names and shapes of a checkpoint with the model's.

    Args:
        found: name to shape, as stored.
        expected: name to shape, as the configuration implies.
        files: which file holds each found tensor.
        at: the checkpoint, named when a tensor is in no file.

    Raises:
        CheckpointError: a tensor is missing, surplus or of another shape; names tensor and file.
    """
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(
            f"{at}: tensor {missing[0]!r} is missing ({len(missing)} in all); the download is incomplete, "
            "or the configuration belongs to another model"
        )
    for name, shape in found.items():
        if name not in expected:
            raise CheckpointError(f"{files[name]}: surplus tensor {name!r}; the configuration has no place for it")
        if shape != expected[name]:
            raise CheckpointError(
                f"{files[name]}: tensor {name!r} has shape {list(shape)}, the configuration asks for "
                f"{list(expected[name])}"
            )


def half_split(rows: Array, *, heads: int) -> Array:
    """Re-order the rows of a query or key projection from neighbouring rotary pairs to the two-halves layout.

    Row 2i + j of a head goes to row i + j * H/2. Works on numpy arrays and torch tensors alike.
    """
    n_rows, width = rows.shape  # type: ignore[attr-defined]
    pairs = rows.reshape(heads, n_rows // heads // 2, 2, width)  # type: ignore[attr-defined]
    halves: Array = pairs.swapaxes(1, 2).reshape(n_rows, width)
    return halves

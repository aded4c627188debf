"""Small GGUF files for the tests: a tiny model with random weights, in any packing, sound or spoilt."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from services.llama.checkpoint.layout import tensor_specs
from services.llama.config import PRESETS, LlamaConfig
from services.llama.tokenizer import BYTE_OF_LETTER

# Wide enough for the 256-number blocks of the K packings.
WIDE = replace(PRESETS["tiny"], dim=256, ffn_dim=256, head_dim=64, rope_scaling=None, max_context=512, vocab_size=259)
SPECIALS = ["<|im_start|>", "<|im_end|>"]
Packed = Callable[[str, NDArray[np.float32]], tuple[NDArray[Any], GGMLQuantizationType]]


def plain(name: str, values: NDArray[np.float32]) -> tuple[NDArray[Any], GGMLQuantizationType]:
    """As fp32."""
    del name
    return values, GGMLQuantizationType.F32


def as_integers(name: str, values: NDArray[np.float32]) -> tuple[NDArray[Any], GGMLQuantizationType]:
    """As 32-bit integers, which no weights are."""
    del name
    return values.view(np.int32), GGMLQuantizationType.I32


def packed_as(kind: GGMLQuantizationType) -> Packed:
    """Matrices in `kind`, norms in fp32. K packings, which the package only reads, get random blocks."""

    def pack(name: str, values: NDArray[np.float32]) -> tuple[NDArray[Any], GGMLQuantizationType]:
        if values.ndim == 1:
            return plain(name, values)
        if kind in {GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K}:
            return _random_blocks(values, kind), kind
        return gguf.quants.quantize(values, kind), kind

    return pack


def _random_blocks(values: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Random bits, but small fp16 scales, so that the numbers are of a usual size."""
    block, size = GGML_QUANT_SIZES[kind]
    source = np.random.default_rng(values.shape[0])
    blocks = source.integers(0, 256, (values.size // block, size), dtype=np.uint8)
    scales = source.uniform(1e-4, 1e-3, (len(blocks), 2)).astype(np.float16).view(np.uint8)
    if kind == GGMLQuantizationType.Q4_K:
        blocks[:, :4] = scales
    else:
        blocks[:, -2:] = scales[:, :2]
    return blocks.reshape(values.shape[0], -1)


def random_weights(config: LlamaConfig) -> dict[str, NDArray[np.float32]]:
    """Values by GGUF name."""
    source = np.random.default_rng(5)
    return {
        spec.gguf: (source.standard_normal(spec.shape) * 0.1 + (len(spec.shape) == 1)).astype(np.float32)
        for spec in tensor_specs(config)
    }


def write_gguf(
    path: Path,
    config: LlamaConfig = WIDE,
    *,
    pack: Packed = plain,
    weights: Mapping[str, NDArray[np.float32]] | None = None,
    tokenizer: str = "smollm",
) -> Path:
    """Write a complete file with the `gguf` package's own writer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_context_length(config.max_context)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer)
    letters = sorted(BYTE_OF_LETTER, key=lambda letter: BYTE_OF_LETTER[letter])
    writer.add_token_list([*SPECIALS, *letters, "th"])
    writer.add_token_types([3] * len(SPECIALS) + [1] * 257)
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(1)
    writer.add_array("stack.ratings", [0.5, 1.5])  # kinds of metadata that nothing here reads
    writer.add_bool("stack.flag", True)
    for name, values in (random_weights(config) if weights is None else weights).items():
        data, kind = pack(name, values)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

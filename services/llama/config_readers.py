"""Read a `LlamaConfig` from the three ways checkpoints write it down, and write Hugging Face's.

What this package does not compute is refused by name here, before a single weight is read.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from services.llama.config import PRESETS, LlamaConfig, RopeScaling
from services.llama.errors import ConfigError

Values = Mapping[str, Any]


def _need(values: Values, key: str, *, source: str) -> Any:  # noqa: ANN401 - JSON
    if values.get(key) is None:
        raise ConfigError(f"{source} has no {key!r}; take the file as the model's publisher wrote it")
    return values[key]


def _refuse(source: str, setting: str, value: object, *, supported: str) -> None:
    raise ConfigError(f"{source}: {setting} = {value!r} is not supported; this package runs {supported}")


def config_from_hf(values: Values, *, source: str) -> LlamaConfig:
    """Read the contents of a Hugging Face `config.json`; `source` names it in errors.

    Raises:
        ConfigError: another architecture, a setting this package does not compute, or a missing field.
    """
    if values.get("model_type") != "llama":
        _refuse(source, "model_type", values.get("model_type"), supported="'llama'")
    for setting, supported in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if values.get(setting, supported) != supported:
            _refuse(source, setting, values[setting], supported=repr(supported))
    if values.get("quantization_config"):
        _refuse(source, "quantization_config", values["quantization_config"], supported="unquantised weights and GGUF")
    dim, n_heads = _need(values, "hidden_size", source=source), _need(values, "num_attention_heads", source=source)
    rope_theta, rope_scaling = _hf_rope(values, source=source)
    return LlamaConfig(
        vocab_size=_need(values, "vocab_size", source=source),
        dim=dim,
        n_layers=_need(values, "num_hidden_layers", source=source),
        n_heads=n_heads,
        n_kv_heads=values.get("num_key_value_heads") or n_heads,
        head_dim=values.get("head_dim") or dim // n_heads,
        ffn_dim=_need(values, "intermediate_size", source=source),
        norm_eps=_need(values, "rms_norm_eps", source=source),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        max_context=_need(values, "max_position_embeddings", source=source),
        tied_head=bool(values.get("tie_word_embeddings", False)),
    )


def _hf_rope(values: Values, *, source: str) -> tuple[float, RopeScaling | None]:
    """Rotary base and stretch: `rope_theta` and `rope_scaling`, or both in `rope_parameters` (transformers 5)."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        _refuse(source, "rope type", kind, supported="'default' and 'llama3'")
    scaling = RopeScaling(
        factor=_need(rope, "factor", source=source),
        low_freq_factor=_need(rope, "low_freq_factor", source=source),
        high_freq_factor=_need(rope, "high_freq_factor", source=source),
        original_context=_need(rope, "original_max_position_embeddings", source=source),
    )
    return theta, scaling


def hf_config(config: LlamaConfig, *, bos_id: int | None = None, eos_id: int | None = None) -> dict[str, Any]:
    """The contents of a `config.json` that `config_from_hf`, transformers and others read back."""
    scaling = config.rope_scaling
    rope = scaling and {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope,
        "max_position_embeddings": config.max_context,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
    }


def config_from_meta(values: Values, *, source: str) -> LlamaConfig:
    """Read the contents of Meta's `params.json`; `source` names it in errors.

    The file says only whether the rotary frequencies are stretched. How far, and how long the context is, comes from
    the published shape of the same sizes, or from the keys `rope_scaling_factor` and `max_seq_len` where present.

    Raises:
        ConfigError: a vision or mixture-of-experts model, a missing field, or a stretch nobody states.
    """
    for setting in ("vision_chunk_size", "moe_args", "quantization_args", "lora_args"):
        if values.get(setting) not in (None, -1):
            _refuse(source, setting, values[setting], supported="plain text models")
    dim, n_layers, n_heads = (_need(values, key, source=source) for key in ("dim", "n_layers", "n_heads"))
    known = next((p for p in PRESETS.values() if (p.dim, p.n_layers, p.n_heads) == (dim, n_layers, n_heads)), None)
    scaling = _meta_scaling(values, known, source=source) if values.get("use_scaled_rope") else None
    unscaled_context = 8192  # Llama 3's, before the stretch
    return LlamaConfig(
        vocab_size=_need(values, "vocab_size", source=source),
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=values.get("n_kv_heads") or n_heads,
        head_dim=dim // n_heads,
        ffn_dim=_meta_ffn_dim(dim, values),
        norm_eps=_need(values, "norm_eps", source=source),
        rope_theta=float(_need(values, "rope_theta", source=source)),
        rope_scaling=scaling,
        max_context=values.get("max_seq_len") or (known.max_context if known and scaling else unscaled_context),
        tied_head=known.tied_head if known else False,
    )


def _meta_ffn_dim(dim: int, values: Values) -> int:
    """Two thirds of 4 x dim, times the multiplier, rounded up to a multiple (llama-models, `FeedForward`)."""
    ffn_dim = int(2 * (4 * dim) / 3)
    if values.get("ffn_dim_multiplier") is not None:
        ffn_dim = int(values["ffn_dim_multiplier"] * ffn_dim)
    multiple = int(values.get("multiple_of", 256))
    return multiple * math.ceil(ffn_dim / multiple)


def _meta_scaling(values: Values, known: LlamaConfig | None, *, source: str) -> RopeScaling:
    factor = values.get("rope_scaling_factor")
    if factor is not None:
        high = float(values.get("rope_high_freq_factor", 4.0))
        return RopeScaling(factor=float(factor), low_freq_factor=1.0, high_freq_factor=high, original_context=8192)
    if known is None or known.rope_scaling is None:
        raise ConfigError(
            f"{source} asks for use_scaled_rope but states no factor, and its sizes match no published model; "
            'add "rope_scaling_factor" (8 in Llama 3.1, 32 in Llama 3.2 1B and 3B)'
        )
    return known.rope_scaling


def config_from_gguf(
    metadata: Values, *, source: str, vocab_size: int, tied_head: bool, rope_factors: Sequence[float] | None
) -> LlamaConfig:
    """Read the metadata of a GGUF file.

    Args:
        metadata: key to value, as stored.
        source: names the file in errors.
        vocab_size: rows of `token_embd.weight`.
        tied_head: whether the file lacks `output.weight`.
        rope_factors: contents of `rope_freqs.weight`, by which GGUF states the Llama 3.1 stretch; None where absent.

    Raises:
        ConfigError: another architecture, experts, another kind of rotary scaling, or a missing field.
    """
    if metadata.get("general.architecture") != "llama":
        _refuse(source, "general.architecture", metadata.get("general.architecture"), supported="'llama'")
    if metadata.get("llama.expert_count"):
        _refuse(source, "llama.expert_count", metadata["llama.expert_count"], supported="dense models")
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        kind = metadata["llama.rope.scaling.type"]
        _refuse(source, "llama.rope.scaling.type", kind, supported="'none' and the tensor rope_freqs.weight")
    dim, n_heads, n_layers, context, ffn_dim = (
        _need(metadata, f"llama.{key}", source=source)
        for key in (
            "embedding_length", "attention.head_count", "block_count", "context_length", "feed_forward_length",
        )
    )  # fmt: skip
    head_dim = metadata.get("llama.attention.key_length") or dim // n_heads
    if metadata.get("llama.rope.dimension_count", head_dim) != head_dim:
        _refuse(source, "llama.rope.dimension_count", metadata["llama.rope.dimension_count"], supported=str(head_dim))
    rope_theta = float(metadata.get("llama.rope.freq_base", 10_000.0))
    # The file stores fp32; seven digits give back the number its author wrote (1e-5, not 9.999999747378752e-06).
    norm_eps = float(f"{_need(metadata, 'llama.attention.layer_norm_rms_epsilon', source=source):.7g}")
    return LlamaConfig(
        vocab_size=vocab_size,
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=metadata.get("llama.attention.head_count_kv") or n_heads,
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        norm_eps=norm_eps,
        rope_theta=rope_theta,
        rope_scaling=_gguf_scaling(rope_factors, rope_theta=rope_theta, head_dim=head_dim, source=source),
        max_context=context,
        tied_head=tied_head,
    )


def _gguf_scaling(
    factors: Sequence[float] | None, *, rope_theta: float, head_dim: int, source: str
) -> RopeScaling | None:
    """Recover the stretch from its result: per pair, the number its frequency is divided by.

    The largest is the factor; the rest of the Llama 3.1 constants are tried and must reproduce every entry.
    """
    if factors is None or max(factors) == 1.0:
        return None
    scaling = RopeScaling(
        factor=float(f"{max(factors):.7g}"), low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
    )
    for i, stored in enumerate(factors):
        turns = scaling.original_context * rope_theta ** (-2 * i / head_dim) / (2 * math.pi)
        kept = min(max((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0), 1)
        expected = 1 / (kept + (1 - kept) / scaling.factor)
        if not math.isclose(stored, expected, rel_tol=1e-3):
            _refuse(source, f"rope_freqs.weight[{i}]", stored, supported=f"Llama 3.1 scaling ({expected:.6g} there)")
    return scaling

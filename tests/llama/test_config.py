import json
import math
from dataclasses import replace
from typing import Any

import pytest

from services.llama.config import PRESETS, LlamaConfig
from services.llama.config_readers import config_from_gguf, config_from_hf, config_from_meta, hf_config
from services.llama.errors import ConfigError

TINY = PRESETS["tiny"]
META_8B = {
    "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128_256, "ffn_dim_multiplier": 1.3,
    "multiple_of": 1024, "norm_eps": 1e-5, "rope_theta": 500_000.0, "use_scaled_rope": True,
}  # fmt: skip
META_1B = META_8B | {"dim": 2048, "n_layers": 16, "ffn_dim_multiplier": 1.5, "multiple_of": 256}
GGUF: dict[str, Any] = {
    "general.architecture": "llama", "llama.embedding_length": 64, "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2, "llama.block_count": 2, "llama.context_length": 131_072,
    "llama.feed_forward_length": 128, "llama.rope.freq_base": 500_000.0,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.3-70b", 70_553_706_496),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert PRESETS[name].parameter_count == parameters


@pytest.mark.parametrize("name", PRESETS)
def test_config_survives_our_json_and_hugging_face_s(name: str) -> None:
    config = PRESETS[name]
    assert LlamaConfig.from_json(config.to_json()) == config
    assert config_from_hf(json.loads(json.dumps(hf_config(config))), source="x") == config


def test_unknown_key_in_our_json_is_an_error() -> None:
    with pytest.raises(ConfigError, match="n_experts"):
        LlamaConfig.from_json(json.dumps(json.loads(TINY.to_json()) | {"n_experts": 8}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "qwen2"}, "model_type"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "low_freq_factor"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_hugging_face_setting_that_is_not_supported_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        config_from_hf(hf_config(TINY) | change, source="folder/config.json")
    assert "folder/config.json" in str(caught.value)


def test_transformers_5_rope_parameters_are_read() -> None:
    values = hf_config(TINY)
    rope = {"rope_theta": values.pop("rope_theta"), **values.pop("rope_scaling")}
    assert config_from_hf(values | {"rope_parameters": rope}, source="x") == TINY


def test_meta_params_give_the_published_shapes() -> None:
    assert config_from_meta(META_8B, source="x") == PRESETS["llama-3.1-8b"]
    assert config_from_meta(META_1B, source="x") == PRESETS["llama-3.2-1b"]  # whose factor is 32, not 8


def test_meta_scaling_that_nobody_states_is_refused() -> None:
    with pytest.raises(ConfigError, match="rope_scaling_factor"):
        config_from_meta(META_8B | {"n_layers": 7}, source="params.json")
    stated = config_from_meta(META_8B | {"n_layers": 7, "rope_scaling_factor": 16}, source="params.json")
    assert stated.rope_scaling
    assert stated.rope_scaling.factor == 16


def test_meta_vision_model_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="vision_chunk_size"):
        config_from_meta(META_8B | {"vision_chunk_size": 448}, source="params.json")


def _factors(config: LlamaConfig, factor: float) -> list[float]:
    """The stretch as llama.cpp's converter writes it: written out from its description, not from our code."""
    factors = []
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * math.pi * config.rope_theta ** (i / config.head_dim)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_gguf_rope_factors_give_back_the_scaling(factor: float) -> None:
    read = config_from_gguf(GGUF, source="x.gguf", vocab_size=512, tied_head=False, rope_factors=_factors(TINY, factor))
    assert TINY.rope_scaling
    assert read == replace(TINY, rope_scaling=replace(TINY.rope_scaling, factor=factor))


def test_gguf_rope_factors_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="rope_freqs"):
        config_from_gguf(GGUF, source="x", vocab_size=1, tied_head=False, rope_factors=[1, 2, 3, 4, 5, 6, 7, 8.0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"general.architecture": "qwen2"}, "qwen2"),
        ({"llama.expert_count": 8}, "expert_count"),
        ({"llama.rope.scaling.type": "linear"}, "linear"),
        ({"llama.block_count": None}, "block_count"),
    ],
)
def test_gguf_setting_that_is_not_supported_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config_from_gguf(GGUF | change, source="x", vocab_size=1, tied_head=False, rope_factors=None)


@pytest.mark.parametrize("change", [{"n_kv_heads": 3}, {"head_dim": 15}, {"dim": 0}, {"norm_eps": -1.0}])
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(TINY, **change)

"""PEFT's file format: what is read is what was meant, and what is not served is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.llama.config import PRESETS
from services.llama.errors import AdapterError
from services.llama.lora import read_adapter, save_adapter
from tests.inference.adapters import random_adapter

CONFIG = PRESETS["tiny"]
PREFIX = "base_model.model.model.layers"


def write_peft(folder: Path, *, rank: int = 4, tensors: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A folder as PEFT writes it, of an adapter on the query projections."""
    folder.mkdir(exist_ok=True)
    stated = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"],
        "bias": "none", "lora_dropout": 0.05, "init_lora_weights": True, "loftq_config": {}, "use_dora": False,
        "megatron_core": "megatron.core", "peft_version": "0.21.2", "modules_to_save": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(stated | settings))
    if tensors is None:
        tensors = {}
        for layer in range(CONFIG.n_layers):
            name = f"{PREFIX}.{layer}.self_attn.q_proj"
            tensors[f"{name}.lora_A.weight"] = torch.ones(rank, 64)
            tensors[f"{name}.lora_B.weight"] = torch.ones(64, rank)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 8 / 4),
        ({"use_rslora": True}, 8 / 2),
        ({"alpha_pattern": {"q_proj": 2}}, 2 / 4),
        ({"alpha_pattern": {"layers.7.self_attn.q_proj": 2}}, 8 / 4),
        ({"target_modules": r"model\.layers\.\d+\.self_attn\.q_proj"}, 8 / 4),
    ],
)
def test_the_scale_is_in_b_as_peft_defines_it(tmp_path: Path, settings: dict[str, Any], scale: float) -> None:
    adapter = read_adapter(write_peft(tmp_path / "a", **settings), config=CONFIG)
    assert adapter.targets == ["attention.q"]
    assert adapter.rank == 4
    for pair in adapter.pairs.values():
        assert torch.equal(pair.b_OR, torch.full((64, 4), scale))
        assert torch.equal(pair.a_RI, torch.ones(4, 64))


def test_a_pattern_gives_a_layer_a_rank_of_its_own(tmp_path: Path) -> None:
    tensors = {}
    for layer, rank in enumerate((4, 2)):
        tensors[f"{PREFIX}.{layer}.self_attn.q_proj.lora_A.weight"] = torch.ones(rank, 64)
        tensors[f"{PREFIX}.{layer}.self_attn.q_proj.lora_B.weight"] = torch.ones(64, rank)
    folder = write_peft(tmp_path / "a", tensors=tensors, rank_pattern={"layers.1.self_attn.q_proj": 2})
    adapter = read_adapter(folder, config=CONFIG)
    assert [len(adapter.pairs[f"layers.{layer}.attention.q"].a_RI) for layer in (0, 1)] == [4, 2]
    assert adapter.pairs["layers.1.attention.q"].b_OR[0, 0] == 8 / 2


@pytest.mark.parametrize("alpha", [4, 7.5])
def test_a_written_adapter_is_read_as_it_was(tmp_path: Path, alpha: float) -> None:
    adapter = random_adapter(CONFIG, seed=1, base="sha256:abc")
    save_adapter(tmp_path / "a", adapter, config=CONFIG, base_model="tiny", alpha=alpha)
    again = read_adapter(tmp_path / "a", config=CONFIG, weights_hash="sha256:abc")
    assert again.base_model_hash == "sha256:abc"
    assert again.pairs.keys() == adapter.pairs.keys()
    for name, pair in adapter.pairs.items():
        torch.testing.assert_close(again.pairs[name].a_RI, pair.a_RI, rtol=0, atol=0)
        torch.testing.assert_close(again.pairs[name].b_OR, pair.b_OR, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS'"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"layers_to_transform": [0]}, "layers_to_transform is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"something_of_next_year": 1}, "something_of_next_year is not supported"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "target_modules names 'embed_tokens'"),
        ({"target_modules": ["lm_head"]}, "target_modules names 'lm_head'"),
        ({"target_modules": "nothing.*"}, "target_modules names 'nothing"),
        ({"target_modules": "("}, "wrong kind"),
        ({"r": 0}, "a rank below 1"),
        ({"r": None}, "wrong kind"),
        ({"target_modules": ["q_proj", "v_proj"]}, r"v_proj.lora_A.weight' is missing"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 3}}, r"has shape \[4, 64\], .* \[3, 64\]"),
    ],
)
def test_what_is_not_served_is_refused_by_name(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        read_adapter(write_peft(tmp_path / "a", **settings), config=CONFIG)


def test_a_tensor_beyond_the_targets_is_refused(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 64)}, path)
    with pytest.raises(AdapterError, match="lm_head"):
        read_adapter(folder, config=CONFIG)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        read_adapter(tmp_path, config=CONFIG)
    folder = write_peft(tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="cut off or damaged"):
        read_adapter(folder, config=CONFIG)
    path.rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin is a pickle"):
        read_adapter(folder, config=CONFIG)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not JSON"):
        read_adapter(folder, config=CONFIG)


def test_an_adapter_of_another_base_is_refused_with_both_hashes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_peft(tmp_path / "a", base_model_hash="sha256:one")
    read_adapter(folder, config=CONFIG, weights_hash="sha256:one")
    assert not caplog.records
    with pytest.raises(AdapterError, match=r"sha256:one.*sha256:two"):
        read_adapter(folder, config=CONFIG, weights_hash="sha256:two")
    read_adapter(write_peft(tmp_path / "b"), config=CONFIG, weights_hash="sha256:two")
    assert "does not name its base" in caplog.text

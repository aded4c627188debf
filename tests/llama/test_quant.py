"""Quantised linears: how far they are from the weights, and which linears they take the place of.

Letters: T rows, I inputs, O outputs.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.llama.checkpoint import load_model
from services.llama.checkpoint.layout import tensor_specs
from services.llama.config import PRESETS, LlamaConfig, Quantisation
from services.llama.config_readers import hf_config
from services.llama.errors import ConfigError
from services.llama.model import CausalAttention, Llama
from services.llama.quant import FP8_LARGEST, FP8_ROW_MAX, Fp8Linear, Int4Linear, Int8Linear, PackedLinear, to_fp8

KINDS: list[type[PackedLinear]] = [Int8Linear, Int4Linear, Fp8Linear]
SOURCE = torch.Generator().manual_seed(0)
WEIGHT_OI = torch.randn(48, 128, generator=SOURCE)


def packed(kind: type[PackedLinear], weight_OI: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> PackedLinear:
    linear = kind(weight_OI.shape[1], weight_OI.shape[0])
    linear.load_state_dict(kind.pack(weight_OI, dtype=dtype), assign=True)
    return linear


def folder_of(path: Path, config: LlamaConfig) -> Path:
    path.mkdir()
    state = Llama.seeded(config, 1).state_dict()
    (path / "config.json").write_text(json.dumps(hf_config(config)))
    save_file({spec.hf: state[spec.ours].clone() for spec in tensor_specs(config)}, path / "model.safetensors")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_int8_weight_is_within_half_a_step_of_its_group(dtype: torch.dtype) -> None:
    weight_OI = packed(Int8Linear, WEIGHT_OI, dtype=dtype).weight(torch.float32)
    step_OGg = WEIGHT_OI.reshape(48, -1, 64).abs().amax(-1, keepdim=True) / 127
    # A rounded scale may miss the largest number of its group by its own error: 127 steps times 2^-9.
    worst = 0.5 if dtype == torch.float32 else 0.75
    assert ((weight_OI - WEIGHT_OI).reshape(48, -1, 64).abs() <= step_OGg * worst + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_int4_weight_is_within_half_a_step_of_its_group(dtype: torch.dtype) -> None:
    weight_OI = packed(Int4Linear, WEIGHT_OI, dtype=dtype).weight(torch.float32)
    grouped = WEIGHT_OI.reshape(48, -1, 32)
    step_OGg = (grouped.amax(-1, keepdim=True) - grouped.amin(-1, keepdim=True)) / 15
    worst = 0.5 if dtype == torch.float32 else 0.6
    assert ((weight_OI - WEIGHT_OI).reshape(48, -1, 32).abs() <= step_OGg * worst + 1e-6).all()


def test_weights_on_a_grid_of_sixteen_steps_are_kept_exactly() -> None:
    codes_OI = torch.randint(0, 16, (8, 64), generator=SOURCE)
    codes_OI[:, ::32], codes_OI[:, 1::32] = 0, 15
    weight_OI = codes_OI * 0.25 - 1.5
    assert torch.equal(packed(Int4Linear, weight_OI).weight(torch.float32), weight_OI)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros_and_a_product_is_that_of_the_weight(kind: type[PackedLinear]) -> None:
    assert not packed(kind, torch.zeros(4, 128)).weight(torch.float32).any()
    linear = packed(kind, WEIGHT_OI)
    x_TI = torch.randn(5, 128, generator=SOURCE)
    expected = x_TI @ linear.weight(torch.float32).T
    if kind is Fp8Linear:  # rounds the rows of x, too
        codes_TI, scales_T1 = to_fp8(x_TI)
        expected = (codes_TI.float() * scales_T1) @ linear.weight(torch.float32).T
    torch.testing.assert_close(linear(x_TI), expected, rtol=0, atol=1e-4)


def test_fp8_rows_are_close_and_beyond_the_cap_they_saturate() -> None:
    x_TI = torch.randn(6, 256, generator=SOURCE) * torch.tensor([1e-3, 1e-2, 1.0, 10.0, 100.0, 0.0])[:, None]
    codes_TI, scales_T1 = to_fp8(x_TI)
    near_TI = codes_TI.float() * scales_T1
    # e4m3 has three bits of mantissa: half a step is 2^-4 of the number, or of the smallest normal one.
    assert ((near_TI - x_TI).abs() <= x_TI.abs() * 2**-4 + scales_T1 * 2**-9).all()
    x_TI[3, 7] = 5000.0
    codes_TI, scales_T1 = to_fp8(x_TI)
    assert scales_T1[3] == pytest.approx(FP8_ROW_MAX / FP8_LARGEST)
    assert (codes_TI.float() * scales_T1)[3, 7] == pytest.approx(FP8_ROW_MAX)
    assert scales_T1[2] == pytest.approx(x_TI[2].abs().max().item() / FP8_LARGEST)


@pytest.mark.parametrize(
    ("quantisation", "names"),
    [
        ("none", set()),
        ("int8", {"q", "k", "v", "o", "gate", "up", "down"}),
        ("int4", {"q", "k", "v", "o", "gate", "up", "down"}),
    ],
)
def test_the_integers_take_every_linear_of_every_layer(
    tmp_path: Path, quantisation: Quantisation, names: set[str]
) -> None:
    model = load_model(folder_of(tmp_path / "m", PRESETS["tiny"]), dtype=torch.bfloat16, quantisation=quantisation)
    found = [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    assert {name.rpartition(".")[2] for name in found} == names
    assert len(found) == len(names) * 2


def test_fp8_takes_the_feed_forward_of_the_inner_layers_only(tmp_path: Path) -> None:
    config = LlamaConfig.from_json(json.dumps(json.loads(PRESETS["tiny"].to_json()) | {"n_layers": 4}))
    model = load_model(folder_of(tmp_path / "m", config), dtype=torch.bfloat16, quantisation="fp8")
    found = {name for name, module in model.named_modules() if isinstance(module, Fp8Linear)}
    assert found == {f"layers.{layer}.ffn.{name}" for layer in (1, 2) for name in ("gate", "up", "down")}


@pytest.mark.parametrize(("quantisation", "share", "likeness"), [("int8", 0.55, 0.99), ("int4", 0.35, 0.85)])
def test_a_quantised_model_is_smaller_and_close(
    tmp_path: Path, quantisation: Quantisation, share: float, likeness: float
) -> None:
    folder = folder_of(tmp_path / "m", PRESETS["tiny"])
    whole = load_model(folder, dtype=torch.bfloat16)
    model = load_model(folder, dtype=torch.bfloat16, quantisation=quantisation)
    tables = 2 * whole.embed.weight.nbytes
    assert model.weight_bytes - tables < (whole.weight_bytes - tables) * share
    ids = torch.arange(40)
    logits, expected = (m(ids, positions_T=ids, attend=CausalAttention()) for m in (model, whole))
    assert torch.nn.functional.cosine_similarity(logits, expected).min() > likeness


def test_inputs_that_are_no_whole_number_of_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="a linear of 100 inputs is no whole number of groups of 64"):
        Int8Linear(100, 4)

"""LoRA adapters in PEFT's file format: read, checked against their base, and written.

An adapter changes a linear's y = W x to y = W x + B (A x) (arXiv 2106.09685). PEFT trains against Hugging Face's layout
of the query and key rows; every checkpoint is brought into that layout when it is loaded, so nothing is re-ordered.

Letters: R LoRA rank, I inputs of a linear, O outputs.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from services.llama.checkpoint.layout import TensorSpec, linear_specs
from services.llama.config import LlamaConfig
from services.llama.errors import AdapterError
from services.llama.lora_config import (
    BASE_HASH_KEY,
    CONFIG_FILE,
    LoraSettings,
    module_of,
    read_settings,
)

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraPair:
    """What an adapter adds to one linear: B (A x), fp32, its scale already in B."""

    a_RI: Tensor
    b_OR: Tensor


@dataclass(frozen=True, kw_only=True)
class LoraAdapter:
    """An adapter that fits its base."""

    pairs: Mapping[str, LoraPair]
    """By the name of the linear in `services.llama.model.Llama`, for example `layers.0.attention.q`."""
    base_model_hash: str = ""
    """Hash of the base's weights that the adapter's file names; empty when it names none."""

    @property
    def rank(self) -> int:
        """The largest rank among its linears."""
        return max(len(pair.a_RI) for pair in self.pairs.values())

    @property
    def targets(self) -> list[str]:
        """Kinds of linears that it changes, for example `attention.q`."""
        return sorted({name.split(".", 2)[2] for name in self.pairs})


def read_adapter(folder: Path, *, config: LlamaConfig, weights_hash: str = "") -> LoraAdapter:
    """Read a folder that PEFT, or `save_adapter`, has written.

    Args:
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`.
        config: Shape of the base.
        weights_hash: Hash of the base's weights; empty does not compare it.

    Raises:
        AdapterError: If it cannot be read, is for another base or shape, or asks for what is not supported.
    """
    settings = read_settings(folder)
    _check_base(settings, weights_hash=weights_hash, at=folder)
    try:
        specs = settings.targets_of(config)
    except AdapterError as error:
        raise AdapterError(f"{folder / CONFIG_FILE}: {error}") from error
    path = folder / WEIGHTS_FILE
    if not path.exists():
        other = "; adapter_model.bin is a pickle: save it again with safe_serialization" * any(folder.glob("*.bin"))
        raise AdapterError(f"{folder}: no {WEIGHTS_FILE} in it{other}")
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise AdapterError(f"{path}: cut off or damaged ({error}); fetch it again") from error
    pairs = {spec.ours.removesuffix(".weight"): _take_pair(stored, spec, settings, path) for spec in specs}
    if stored:
        raise AdapterError(f"{path}: tensor {min(stored)!r} is not served: only LoRA on the targeted linears is")
    return LoraAdapter(pairs=pairs, base_model_hash=settings.base_model_hash)


def save_adapter(folder: Path, adapter: LoraAdapter, *, config: LlamaConfig, base_model: str, alpha: float) -> None:
    """Write an adapter as PEFT would, so that PEFT reads it too.

    Args:
        folder: Made if need be.
        adapter: Its pairs have their scale in B already; the file gets B without it.
        config: Shape of the base.
        base_model: Name of the base, for people.
        alpha: PEFT's `lora_alpha`; the file means the same whatever it is.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    targets: list[str] = []
    for spec in linear_specs(config):
        pair = adapter.pairs.get(spec.ours.removesuffix(".weight"))
        if pair is None:
            continue
        module, rank = module_of(spec), len(pair.a_RI)
        targets.append(module)
        if rank != adapter.rank:
            ranks[module] = rank
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = pair.a_RI.contiguous()
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = (pair.b_OR * (rank / alpha)).contiguous()
    stated = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        BASE_HASH_KEY: adapter.base_model_hash,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "rank_pattern": ranks,
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(stated, indent=2), encoding="utf-8")


def _check_base(settings: LoraSettings, *, weights_hash: str, at: Path) -> None:
    """Refuse another base than the adapter was trained on."""
    if not weights_hash:
        return
    if not settings.base_model_hash:
        logger.warning("adapter %s does not name its base: only shapes and names of layers are checked", at)
    elif settings.base_model_hash != weights_hash:
        raise AdapterError(
            f"{at / CONFIG_FILE}: the adapter was trained on weights {settings.base_model_hash}, this base has "
            f"{weights_hash}; register it with the base it belongs to"
        )


def _take_pair(stored: dict[str, Tensor], spec: TensorSpec, settings: LoraSettings, path: Path) -> LoraPair:
    """Take one linear's two matrices out of `stored`."""
    module = module_of(spec)
    rank = settings.rank_of(module)
    outputs, inputs = spec.shape
    a_RI = _take(stored, f"{_PREFIX}{module}.lora_A.weight", shape=(rank, inputs), path=path)
    b_OR = _take(stored, f"{_PREFIX}{module}.lora_B.weight", shape=(outputs, rank), path=path)
    return LoraPair(a_RI, b_OR * settings.scale_of(module))


def _take(stored: dict[str, Tensor], name: str, *, shape: tuple[int, int], path: Path) -> Tensor:
    tensor = stored.pop(name, None)
    if tensor is None:
        raise AdapterError(f"{path}: tensor {name!r} is missing, though {CONFIG_FILE} targets its layer")
    if tuple(tensor.shape) != shape:
        raise AdapterError(
            f"{path}: tensor {name!r} has shape {list(tensor.shape)}, base and rank ask for {list(shape)}"
        )
    if not tensor.is_floating_point():
        raise AdapterError(f"{path}: tensor {name!r} is {tensor.dtype}, which is no kind of real number")
    return tensor.to(torch.float32)

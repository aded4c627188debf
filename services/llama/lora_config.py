"""PEFT's `adapter_config.json`: which linears a LoRA adapter changes, with which rank and scale. Torch-free.

LoRA is arXiv 2106.09685; the keys are those of huggingface/peft, `LoraConfig`. What would change the result and is not
done here is refused by name.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.llama.checkpoint.layout import TensorSpec, linear_specs
from services.llama.config import LlamaConfig
from services.llama.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
BASE_HASH_KEY = "base_model_hash"
"""Our own key: `checkpoint.weights_hash` of the base that the adapter was trained on."""

# Keys that say nothing about the result of inference, or that are read below.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision", BASE_HASH_KEY,
}  # fmt: skip
_READ = {
    "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules",
    "task_type", "use_rslora",
}  # fmt: skip
# Other initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base's weights beside the adapter's.
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What the configuration file says."""

    rank: int
    """R where `rank_pattern` says nothing."""
    alpha: float
    """Numerator of the scale where `alpha_pattern` says nothing."""
    rslora: bool = False
    """Scale by alpha / sqrt(R) instead of alpha / R (arXiv 2312.03732)."""
    targets: tuple[str, ...] | str = "all-linear"
    """Ends of module names, a regular expression of whole names, or `all-linear`."""
    ranks: Mapping[str, int]
    """Rank by regular expression of the end of a module's name."""
    alphas: Mapping[str, float]
    """Alpha, likewise."""
    base_model_hash: str = ""
    """Hash of the base's weights; empty when the file names none."""

    def rank_of(self, module: str) -> int:
        """Rank of a linear, given by its name in Hugging Face's layout."""
        return next((rank for key, rank in self.ranks.items() if _ends_with(module, key)), self.rank)

    def scale_of(self, module: str) -> float:
        """What its B times A is multiplied by."""
        alpha = next((alpha for key, alpha in self.alphas.items() if _ends_with(module, key)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def targets_of(self, config: LlamaConfig) -> list[TensorSpec]:
        """The linears of a model of shape `config` that the adapter changes.

        Raises:
            AdapterError: If a name matches none of them, for example the head's or the embedding's.
        """
        specs = linear_specs(config)
        if self.targets == "all-linear":
            return specs
        if isinstance(self.targets, str):
            chosen = [spec for spec in specs if re.fullmatch(self.targets, module_of(spec))]
            unknown = [] if chosen else [self.targets]
        else:
            chosen = [spec for spec in specs if any(_is_end(module_of(spec), end) for end in self.targets)]
            unknown = [end for end in self.targets if not any(_is_end(module_of(spec), end) for spec in specs)]
        if unknown:
            known = sorted({module_of(spec).rpartition(".")[2] for spec in specs})
            raise AdapterError(
                f"target_modules names {unknown[0]!r}, which is none of the linear layers that LoRA is served on: "
                f"{', '.join(known)}"
            )
        return chosen


def module_of(spec: TensorSpec) -> str:
    """The module's name in Hugging Face's layout, for example `model.layers.0.self_attn.q_proj`."""
    return spec.hf.removesuffix(".weight")


def read_settings(folder: Path) -> LoraSettings:
    """Read and check `adapter_config.json`.

    Raises:
        AdapterError: If it is missing or damaged, or asks for what is not done here; names the key.
    """
    path = folder / CONFIG_FILE
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterError(
            f"{folder}: no {CONFIG_FILE} in it; give the folder that PEFT saved the adapter to"
        ) from error
    except ValueError as error:
        raise AdapterError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(stated, dict):
        raise AdapterError(f"{path}: not a JSON object; fetch it again")
    _refuse_unsupported(stated, path)
    try:
        return _settings(stated)
    except (TypeError, ValueError, AttributeError, KeyError, re.error) as error:
        raise AdapterError(f"{path}: {error!r}: r, lora_alpha or a pattern is missing or of the wrong kind") from error


def _refuse_unsupported(stated: Mapping[str, Any], path: Path) -> None:
    expected = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "task_type": ("CAUSAL_LM", None),
        "init_lora_weights": _PLAIN_INIT,
    }
    for key, values in expected.items():
        if stated.get(key) not in values:
            raise AdapterError(f"{path}: {key} {stated.get(key)!r} is not supported, only {values[0]!r}")
    for key, value in stated.items():
        if value and key not in _HARMLESS | _READ:
            raise AdapterError(f"{path}: {key} is not supported; train the adapter without it")


def _settings(stated: Mapping[str, Any]) -> LoraSettings:
    targets = stated.get("target_modules") or "all-linear"
    if isinstance(targets, str) and targets != "all-linear":
        re.compile(targets)
    ranks = {key: int(value) for key, value in (stated.get("rank_pattern") or {}).items()}
    alphas = {key: float(value) for key, value in (stated.get("alpha_pattern") or {}).items()}
    for key in (*ranks, *alphas):
        re.compile(key)
    rank = int(stated["r"])
    if min([rank, *ranks.values()]) < 1:
        raise ValueError("a rank below 1")
    return LoraSettings(
        rank=rank,
        alpha=float(stated["lora_alpha"]),
        rslora=bool(stated.get("use_rslora")),
        targets=targets if isinstance(targets, str) else tuple(targets),
        ranks=ranks,
        alphas=alphas,
        base_model_hash=str(stated.get(BASE_HASH_KEY) or ""),
    )


def _ends_with(module: str, pattern: str) -> bool:
    """PEFT's rule for the keys of rank_pattern and alpha_pattern."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _is_end(module: str, end: str) -> bool:
    """PEFT's rule for a list of target_modules."""
    return module == end or module.endswith(f".{end}")

